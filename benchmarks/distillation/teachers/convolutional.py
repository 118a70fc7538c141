"""A residual network as teacher of photos: a body, and a linear head upon it.

It learns from photos that are flipped and shifted at random; all of that, as the
training, takes place on one device.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from benchmarks.distillation.datasets.base import Array, Task

BATCH_SIZE = 512
PEAK_RATE, WARM_UP = 0.2, 0.2
WEIGHT_DECAY = 5e-4
# Of the embedding: with large ones the head runs away from what is below it.
SCALE = 1 / 8
# Pixels that a photo is shifted at most, up or down and to either side.
SHIFT = 4
# Photos that are embedded at once.
AT_ONCE = 250


class Pixels(nn.Module):
    """Whole numbers from 0 to 255 as numbers around 0."""

    def forward(self, photos: Tensor) -> Tensor:
        return (photos.float() - 127.5) / 64


class Scaled(nn.Module):
    """What comes in, times a number."""

    def forward(self, X: Tensor) -> Tensor:
        return SCALE * X


class Residual(nn.Module):
    """Two convolutions whose answer is added to what they saw."""

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            convolution(n_channels, n_channels), convolution(n_channels, n_channels)
        )

    def forward(self, X: Tensor) -> Tensor:
        return X + self.layers(X)


def convolution(n_in: int, n_out: int) -> nn.Sequential:
    """Return a convolution 3 x 3, normalised, and ReLU."""
    return nn.Sequential(
        nn.Conv2d(n_in, n_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(n_out),
        nn.ReLU(),
    )


class PhotoTeacher(nn.Module):
    """The output of `body`, 4 * `width` numbers, is the embedding.

    `head` maps it to class logits.
    """

    def __init__(self, n_classes: int, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            Pixels(),
            convolution(3, width),
            convolution(width, 2 * width),
            nn.MaxPool2d(2),
            Residual(2 * width),
            convolution(2 * width, 4 * width),
            nn.MaxPool2d(2),
            convolution(4 * width, 4 * width),
            nn.MaxPool2d(2),
            Residual(4 * width),
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
            Scaled(),
        )
        self.head = nn.Linear(4 * width, n_classes)

    def forward(self, photos: Tensor) -> Tensor:
        return self.head(self.body(photos))


def train_photo_teacher(
    task: Task, seed: int, n_steps: int, width: int, device: torch.device
) -> PhotoTeacher:
    """Train a teacher on the classes of all training rows; it stays on the device."""
    with torch.random.fork_rng(devices=[]):
        # That of the accelerators is left alone: what is drawn there has its own.
        torch.default_generator.manual_seed(seed)
        teacher = PhotoTeacher(int(task.y.max()) + 1, width)
    teacher.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        teacher.parameters(),
        lr=PEAK_RATE,
        momentum=0.9,
        nesterov=True,
        weight_decay=WEIGHT_DECAY,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        PEAK_RATE,
        n_steps,
        pct_start=WARM_UP,
        anneal_strategy="linear",
        cycle_momentum=False,
    )
    batches = Batches(task, seed, device)
    with fastest_convolutions():
        for _ in range(n_steps):
            photos, y = batches.draw()
            with torch.autocast(device.type, torch.bfloat16):
                logits = teacher(photos)
            optimizer.zero_grad()
            nn.functional.cross_entropy(logits.float(), y).backward()
            optimizer.step()
            schedule.step()
    return teacher.eval()


@contextmanager
def fastest_convolutions() -> Iterator[None]:
    """Let cuDNN try its ways of a convolution, for all batches have one shape."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


class Batches:
    """Batches of equal size, flipped and shifted, from photos on a device."""

    def __init__(self, task: Task, seed: int, device: torch.device) -> None:
        photos = torch.tensor(task.X, device=device)
        self.size = photos.shape[-1]
        self.padded = padded(photos)
        self.y = torch.tensor(task.y, device=device)
        self.generator = torch.Generator(device).manual_seed(seed)
        self.left = iter(())

    def draw(self) -> tuple[Tensor, Tensor]:
        """Return the next batch; a new epoch begins after the last whole batch."""
        rows = next(self.left, None)
        if rows is None:
            n = min(BATCH_SIZE, len(self.y))
            order = self._draw(torch.randperm, len(self.y))
            self.left = iter(order[: len(order) // n * n].split(n))
            rows = next(self.left)
        shifts = self._draw(torch.randint, 2 * SHIFT + 1, (2, len(rows)))
        flipped = self._draw(torch.randint, 2, (len(rows),)).bool()
        return crop(self.padded, rows, shifts, flipped, self.size), self.y[rows]

    def _draw(self, draw, *sizes) -> Tensor:
        return draw(*sizes, generator=self.generator, device=self.generator.device)


def padded(photos: Tensor) -> Tensor:
    """Return photos with a grey border, as wide as the largest shift."""
    return nn.functional.pad(photos, (SHIFT,) * 4, value=128)


def crop(
    photos: Tensor, rows: Tensor, shifts: Tensor, flipped: Tensor, size: int
) -> Tensor:
    """Cut squares out of rows of photos, from `shifts` (2, b) on, some flipped."""
    places = torch.arange(size, device=photos.device)
    across = torch.where(flipped.unsqueeze(1), places.flip(0), places)
    down = places + shifts[0].unsqueeze(1)
    across = across + shifts[1].unsqueeze(1)
    channels = torch.arange(photos.shape[1], device=photos.device)
    return photos[
        rows.view(-1, 1, 1, 1),
        channels.view(1, -1, 1, 1),
        down.view(len(rows), 1, -1, 1),
        across.view(len(rows), 1, 1, -1),
    ]


@torch.no_grad()
def embed_photos(teacher: PhotoTeacher, X: Array) -> Array:
    """Return the teacher's embeddings of photos, of shape (n, 4 * width)."""
    device = teacher.head.weight.device
    found = [
        teacher.body(torch.tensor(X[start : start + AT_ONCE], device=device)).cpu()
        for start in range(0, len(X), AT_ONCE)
    ]
    return torch.cat(found).numpy()
