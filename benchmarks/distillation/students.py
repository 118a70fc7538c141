"""A small convolutional student of photos."""

from itertools import pairwise

from torch import Tensor, nn


class PhotoStudent(nn.Module):
    """Convolutions 3 x 3, the resolution halved between two, and means over places.

    It has a `body`, from whose output FitNet regresses, and a `head`. `n_features` is
    the number of channels. Along the last axis there are `n_means` means. A `strided`
    one is cheaper: its convolutions take every second place, where others are followed
    by a maximum over squares of four.
    """

    def __init__(
        self, n_features, n_outputs, *, widths=(16, 32, 64), strided=False, n_means=1
    ):
        super().__init__()
        layers = []
        for n_in, n_out in pairwise((n_features, *widths)):
            stride = 2 if strided else 1
            layers += [
                nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(n_out),
                nn.ReLU(),
            ]
            if not strided:
                layers.append(nn.MaxPool2d(2))
        if not strided:
            layers.pop()
        pool = nn.AdaptiveAvgPool2d((1, n_means))
        self.body = nn.Sequential(*layers, pool, nn.Flatten())
        self.head = nn.Linear(n_means * widths[-1], n_outputs)

    def forward(self, X: Tensor) -> Tensor:
        return self.head(self.body(X))
