"""Spoken digits and texts for students; images or texts of the same for teachers."""

import subprocess
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
from scipy.fft import rfft

from benchmarks.distillation.datasets.base import (
    Array,
    Drawn,
    Paths,
    standardised,
)
from benchmarks.distillation.datasets.documents import (
    documents,
    embed_documents,
    read_documents,
)
from benchmarks.distillation.datasets.numbers import LABELINGS, draw_numbers
from benchmarks.files import replacing

N_MELS = 32
# Frames of a digit and of a message, and seconds from one to the next.
DIGIT_FRAMES, MESSAGE_FRAMES = 32, 128
DIGIT_HOP, MESSAGE_HOP = 0.02, 0.025
# Speakers of the recorded digits to validate and to test on; the others train.
SPEAKER_OF = {"validation": 4, "test": 5}
# Voices of espeak-ng, none of them in two parts.
VOICES = {
    "train": ("en-us", "en-gb+f2", "en-us+m3", "en-gb-scotland+f4", "en-us+f1"),
    "validation": ("en-gb", "en-us+f3"),
    "test": ("en-gb-x-rp+m1", "en-us+f5"),
}
ESPEAK_RATE = 22_050


def spoken_numbers(
    paths: Paths,
    seed: int,
    part: str,
    *,
    labeling: str,
    n_train: int = 20_000,
    n_score: int = 4_000,
) -> Drawn:
    """Two digits, written for the teacher and spoken for the student.

    A row's image and its sound are of one number, and of nothing else together.
    """
    rng = np.random.default_rng(seed)
    parts = {"train": draw_numbers("train", n_train, rng)}
    parts[part] = draw_numbers(part, n_score, rng)
    task = standardised(parts["train"], parts[part], LABELINGS[labeling])

    def read(n_student: int) -> tuple[Array, Array]:
        sounds = (
            spoken(paths, key, numbers[:n], rng)
            for key, numbers, n in (
                ("train", parts["train"][1], n_student),
                (part, parts[part][1], n_score),
            )
        )
        return alike(*sounds)

    return Drawn(task, read)


def spoken(paths: Paths, part: str, numbers: Array, rng: np.random.Generator) -> Array:
    """Return log-mel spectrograms of numbers, (n, 1, mels, frames)."""
    spectrograms, digit, speaker = recordings(paths.data / "spoken_digits")
    names = np.unique(speaker)
    own = speaker == names[SPEAKER_OF[part]] if part in SPEAKER_OF else None
    if own is None:
        own = np.isin(speaker, [names[i] for i in range(min(SPEAKER_OF.values()))])
    halves = []
    for wanted in (numbers // 10, numbers % 10):
        rows = np.empty(len(numbers), np.intp)
        for name in range(10):
            places = np.flatnonzero(wanted == name)
            rows[places] = rng.choice(
                np.flatnonzero(own & (digit == name)), len(places)
            )
        halves.append(spectrograms[rows])
    return np.concatenate(halves, axis=2)[:, np.newaxis]


@lru_cache(1)
def recordings(folder: Path) -> tuple[Array, Array, Array]:
    """Return spectrograms (n, mels, frames), digits and speakers of all recordings."""
    with np.load(folder / "recordings.npz") as arrays:
        samples, ends = arrays["samples"], arrays["offsets"]
        digit, speaker = arrays["digit"], arrays["speaker"]
    found = [
        log_mel(samples[start:end], 8_000, DIGIT_HOP, DIGIT_FRAMES)
        for start, end in pairwise(ends)
    ]
    return np.stack(found), digit, speaker


def spoken_documents(
    paths: Paths,
    seed: int,
    part: str,
    *,
    name: str,
    n_pool: int = 6_000,
    n_train: int = 4_000,
    n_score: int = 2_000,
    **classes,
) -> Drawn:
    """Texts for the teacher, and for the student the same spoken by espeak-ng."""
    sizes = {"n_pool": n_pool, "n_train": n_train, "n_score": n_score}
    drawn = documents(paths, seed, part, name=name, **sizes, **classes)
    rows = np.random.default_rng(seed).permutation(n_pool)

    def read(n_student: int) -> tuple[Array, Array]:
        train = np.load(sounds_path(paths, name, "train", n_pool), mmap_mode="r")
        score = np.load(sounds_path(paths, name, part, len(drawn.task.y_score)))
        return alike(train[rows[:n_student]], score)

    return Drawn(drawn.task, read)


def speak_documents(
    paths: Paths,
    *,
    name: str,
    n_pool: int = 6_000,
    n_train: int = 0,
    n_score: int = 2_000,
    **classes,
) -> None:
    """Embed the texts of a task, and speak them unless an earlier run has."""
    sizes = {"n_pool": n_pool, "n_score": n_score}
    embed_documents(paths, name=name, **sizes, **classes)
    tables = read_documents(paths.data / name, n_pool, n_score, **classes)
    for part, table in tables.items():
        path = sounds_path(paths, name, part, len(table))
        if not path.exists():
            voices = np.random.default_rng(0).choice(VOICES[part], len(table))
            sounds = map(speak, table["text"], voices)
            found = np.stack(
                [log_mel(x, ESPEAK_RATE, MESSAGE_HOP, MESSAGE_FRAMES) for x in sounds]
            )
            with replacing(path) as unfinished, unfinished.open("wb") as file:
                np.save(file, found[:, np.newaxis].astype(np.float16))


def speak(text: str, voice: str) -> Array:
    """Return the samples of a text spoken by a voice of espeak-ng."""
    command = ["espeak-ng", "-v", voice, "--stdin", "--stdout"]
    spoken = subprocess.run(
        command, input=text.encode(), capture_output=True, check=True
    )
    # A header of 44 bytes comes before the samples.
    return np.frombuffer(spoken.stdout[44:], "<i2")


def log_mel(samples: Array, rate: int, hop: float, n_frames: int) -> Array:
    """Return the logarithms of energies, (mels, frames), what is missing as silence."""
    step = round(rate * hop)
    length = (n_frames + 1) * step
    padded = np.zeros(length, np.float32)
    kept = samples[:length]
    padded[: len(kept)] = kept / 2**15
    frames = np.lib.stride_tricks.sliding_window_view(padded, 2 * step)[::step]
    power = np.abs(rfft(frames * np.hanning(2 * step), axis=1)) ** 2
    energies = power[:n_frames] @ mel_filters(rate, 2 * step).T
    return np.log(energies + 1e-4).T.astype(np.float32)


@lru_cache(2)
def mel_filters(rate: int, n_samples: int) -> Array:
    """Return triangles that are equally wide on the mel scale, (mels, frequencies)."""
    frequencies = np.arange(n_samples // 2 + 1) * rate / n_samples
    mels = np.linspace(0, 2_595 * np.log10(1 + 4_000 / 700), N_MELS + 2)
    edges = 700 * (10 ** (mels / 2_595) - 1)
    rising = (frequencies - edges[:-2, np.newaxis]) / np.diff(edges)[:-1, np.newaxis]
    falling = (edges[2:, np.newaxis] - frequencies) / np.diff(edges)[1:, np.newaxis]
    return np.maximum(np.minimum(rising, falling), 0).astype(np.float32)


def alike(train: Array, score: Array) -> tuple[Array, Array]:
    """Return both, float32, less the mean of a mel in the first and over its spread."""
    train, score = (np.asarray(part, np.float32) for part in (train, score))
    mean = train.mean((0, 1, 3), keepdims=True)
    spread = train.std((0, 1, 3), keepdims=True)
    return (train - mean) / spread, (score - mean) / spread


def sounds_path(paths: Paths, name: str, part: str, n: int) -> Path:
    """Return where the spectrograms of a part are kept."""
    return paths.cache / "speech" / f"{name}_{part}_{n}.npy"
