"""Passes over rows that are tensors, made on the device where these lie.

The twins of functions of labelled rows elsewhere in this folder, with their arguments
and results. What is summed stays on the device until the pass is over: the host asks
for it once. Rows of one class are gathered a block at a time, less a centre amid them,
and multiplied in their precision, at least single; some thousand rows are summed so,
and these sums in double precision. No sum hangs on the order in which threads end.
"""

import os
import shutil
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lelp_sklearn._subclasses.tensors import TensorRows, exact_products, tie_share
from lelp_sklearn._typing import FloatArray, IntArray

if TYPE_CHECKING:
    from torch import Tensor, dtype

# Shifts to the right and factors, as a signed number, of 64-bit hashing.
Scrambling = list[tuple[int, int | None]]

# So many rows are summed in their own precision, the sums of them in double.
_PART_ROWS = 4096
# As many rows, spread over a class, have a mean near enough to that of all.
_CENTRE_ROWS = 256

# The lower half and the sign of a 64-bit number, as torch's signed ones hold them.
_LOWER = 2**32 - 1
_SIGN = -(2**63)


class Labelled(Protocol):
    """What is asked of labelled rows."""

    @property
    def X(self) -> Any: ...  # noqa: N802 - the name that rows have everywhere

    @property
    def class_index(self) -> IntArray: ...

    @property
    def weight(self) -> FloatArray: ...

    @property
    def digests(self) -> NDArray[np.uint64]: ...

    @property
    def logits(self) -> FloatArray | None: ...

    @property
    def first_row(self) -> int: ...


def kernels_of(tensor: "Tensor") -> Any:
    """Module of kernels for the device of a tensor, None without."""
    import torch

    if tensor.device.type != "cuda" or torch.version.cuda is None:
        return None
    # Older tensor cores know neither bfloat16 nor TensorFloat-32.
    if torch.cuda.get_device_capability(tensor.device) < (8, 0):
        return None
    if not _has_triton():
        return None
    from lelp_sklearn._subclasses import triton_kernel

    return triton_kernel


@cache
def _has_triton() -> bool:
    """Whether Triton is there, and a C compiler for what starts its kernels."""
    compilers = os.environ.get("CC"), *map(shutil.which, ("clang", "gcc"))
    return find_spec("triton") is not None and any(compilers)


def hash_rows(
    X: TensorRows, factors: NDArray[np.uint64]
) -> tuple[NDArray[np.uint64], bool]:
    """Digests (n,) as the compiled kernel gives them; whether all is finite."""
    import torch

    multipliers = X.beside(factors.view(np.int64))
    digests = torch.empty(len(X), dtype=torch.int64, device=X.tensor.device)
    kernels = kernels_of(X.tensor)
    if kernels is not None and X.dtype == np.float32:
        all_finite = kernels.digest_rows(X.tensor, multipliers, digests)
    else:
        all_finite = _digest_blocks(X, multipliers, digests)
    array = digests.cpu().numpy().view(np.uint64)
    X.keep(array, digests)
    return array, all_finite


def _digest_blocks(X: TensorRows, multipliers: "Tensor", digests: "Tensor") -> bool:
    """Write the digest of each row by torch's operations; say whether all is finite."""
    import torch

    finite, single = [], X.dtype == np.float32
    with exact_products():
        for block in X.slices():
            # Adding zero makes -0.0 positive.
            rows = X.tensor[block].to(X.precision) + 0
            finite.append(torch.isfinite(torch.stack(torch.aminmax(rows))).all())
            if single:
                bits = rows.view(torch.int32).long() & _LOWER
            else:
                bits = rows.view(torch.int64)
                bits = bits ^ ((bits >> 32) & _LOWER)
            torch.sum(bits.mul_(multipliers), dim=1, out=digests[block])
    return bool(torch.stack(finite).all())


def first_nonfinite_row(X: TensorRows) -> int | None:
    """Give the first row with NaN or infinity, if any."""
    import torch

    for block in X.slices():
        has_nonfinite = ~torch.isfinite(X.tensor[block]).all(dim=1)
        if has_nonfinite.any():
            return int(block.start + has_nonfinite.int().argmax())
    return None


def distinct_rows(
    data: Labelled, n_classes: int, scrambling: Scrambling, seed: np.uint64, most: int
) -> list[tuple[NDArray[np.uint64], IntArray, FloatArray, bool]]:
    """Digests, places and weights of the distinct rows of each class.

    At most so many of the largest priorities; whether these are all. As `Sketch.of`
    finds them, in another order.
    """
    import torch

    X: TensorRows = data.X
    digests, weights = X.kept(data.digests), X.kept(data.weight)
    found = []
    for code in range(n_classes):
        index = X.groups(data.class_index, data.weight, n_classes).index(code)
        own = digests[index]
        # As of arrays: a number that sorts by content, then by place.
        number = 2 ** len(own).bit_length() - 1
        keys = (own & ~number) | torch.arange(len(own), device=own.device)
        # Unsigned numbers are in the order of signed ones whose first bit is turned.
        keys = (keys ^ _SIGN).sort().values ^ _SIGN
        content, place = keys & ~number, keys & number
        is_first = torch.ones_like(keys, dtype=torch.bool)
        is_first[1:] = content[1:] != content[:-1]
        first = is_first.nonzero()[:, 0]
        weight = weights[index[place]]
        if len(first) < len(place):
            end = torch.full_like(first[:1], len(place))
            lengths = torch.diff(first, append=end)
            weight = torch.segment_reduce(weight, "sum", lengths=lengths)
        kept = place[first]
        is_whole = len(first) <= most
        if not is_whole:
            uniform = _uniform(own[kept] ^ int(seed), scrambling)
            largest = torch.topk(weight / uniform, most).indices
            kept, weight = kept[largest], weight[largest]
        places = (index[kept] + data.first_row).cpu().numpy()
        contents = own[kept].cpu().numpy().view(np.uint64)
        found.append((contents, places, _host(weight), is_whole))
    return found


def _uniform(numbers: "Tensor", scrambling: Scrambling) -> "Tensor":
    """Numbers in (0, 1] that hang on 64 bits, scrambled as `digests` does."""
    for shift, multiplier in scrambling:
        numbers = _shifted(numbers, shift)
        if multiplier is not None:
            numbers = numbers * multiplier
    upper, lower = (numbers >> 32) & _LOWER, numbers & _LOWER
    uniform: Tensor = (upper.double() * 2**32 + lower.double() + 1) / 2.0**64
    return uniform


def _shifted(numbers: "Tensor", shift: int) -> "Tensor":
    """Numbers exclusive-or themselves shifted to the right, zeros coming in."""
    shifted: Tensor = (numbers >> shift) & (2 ** (64 - shift) - 1)
    return numbers ^ shifted


def likeliest(data: Labelled, wanted: NDArray[np.bool_], head: Any) -> IntArray:
    """Give each of the `wanted` rows (n,) the class that the head gives it."""
    X: TensorRows = data.X
    index = X.beside(np.flatnonzero(wanted))
    coef, intercept = (X.beside(a, X.double) for a in (head.coef, head.intercept))
    found = np.empty(len(index), dtype=np.intp)
    size = X.block_rows()
    for start in range(0, len(index), size):
        rows = X.tensor[index[start : start + size]].to(X.double)
        logits = rows @ coef.T + intercept
        found[start : start + size] = logits.argmax(dim=1).cpu().numpy()
    return found


def moments(
    data: Labelled, n_classes: int, extra: FloatArray | None, dtype: np.dtype[Any]
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Weights (C,), means (C, p), scatters (C, p, p) of rows, `extra` beside them.

    In `dtype` over some thousand rows, in double precision over the sums of these.
    """
    import torch

    X: TensorRows = data.X
    precision = X.precision_of(dtype)
    beside = None if extra is None else X.beside(extra, X.double)
    width = X.shape[1] + (0 if extra is None else extra.shape[1])
    total = _Sums(X, (n_classes, width + 1, width))
    held = _Sums(X, (n_classes,))
    centres = torch.zeros((n_classes, width), dtype=precision, device=X.tensor.device)
    for code in range(n_classes):
        index = X.groups(data.class_index, data.weight, n_classes).index(code)
        few = index[:: max(1, len(index) // _CENTRE_ROWS)]
        if len(few):
            centres[code] = _joint(X, few, beside, precision).mean(dim=0)
    for code, index, weight in _blocks(data, n_classes):
        weight = weight.to(precision)
        rows = _joint(X, index, beside, precision) - centres[code]
        ones = torch.ones_like(rows[:, :1])
        weighted = torch.cat([rows, ones], dim=1) * weight[:, None]
        total.add(code, _inner(weighted, rows, X.double))
        held.add(code, weight.to(X.double).sum())
    unit = X.groups(data.class_index, data.weight, n_classes).unit
    sums, weights = total.array(), held.array()
    step = sums[:, -1] / np.where(weights > 0, weights, 1)[:, None]
    scatter = sums[:, :-1] - sums[:, -1, :, None] * step[:, None, :]
    scatter = (scatter + scatter.transpose(0, 2, 1)) / 2
    return weights * unit, _host(centres) + step, scatter * unit


def products(
    data: Labelled, centres: FloatArray, bases: list[FloatArray]
) -> list[FloatArray]:
    """Products (d, k_c) of each class, sums of rows (C, d) and squares (C,)."""
    import torch

    X: TensorRows = data.X
    precision = X.precision_of(centres.dtype)
    own_centres = X.beside(centres, precision)
    own_bases = [X.beside(basis, precision) for basis in bases]
    n_columns = [basis.shape[1] + 1 for basis in bases]
    total = _Sums(X, (len(bases), max(n_columns), X.shape[1]))
    squares = _Sums(X, (len(bases),))
    for code, index, weight in _blocks(data, len(bases)):
        rows = X.tensor[index].to(precision) - own_centres[code]
        ones = torch.ones_like(rows[:, :1])
        scores = torch.cat([rows @ own_bases[code], ones], dim=1) * weight[:, None]
        total.add((code, slice(n_columns[code])), _inner(scores, rows, X.double))
        lengths = torch.linalg.vector_norm(rows, dim=1)
        squares.add(code, weight.to(X.double) @ lengths.square().to(X.double))
    unit = X.groups(data.class_index, data.weight, len(bases)).unit
    sums = total.array() * unit
    moved = [own[: n - 1].T for own, n in zip(sums, n_columns, strict=True)]
    last = sums[np.arange(len(bases)), np.array(n_columns) - 1]
    return [*moved, last, squares.array() * unit]


def nearest_sums(
    data: Labelled, mean: FloatArray, centroids: list[FloatArray]
) -> list[FloatArray]:
    """Sums (k_c, d) and then weights (k_c,) of the rows nearest to each centroid."""
    import torch

    X: TensorRows = data.X
    sizes = [len(each) for each in centroids]
    means = X.beside(mean, X.precision)
    known = [X.beside(each, X.precision) for each in centroids]
    half_squares = [torch.linalg.vector_norm(k, dim=1) ** 2 / 2 for k in known]
    tie = tie_share(X.dtype)
    sums = _Sums(X, (len(sizes), max(sizes), X.shape[1]))
    held = _Sums(X, (len(sizes), max(sizes)))
    for code, index, weight in _blocks(data, len(sizes)):
        rows = X.tensor[index] - means[code]
        scores = rows @ known[code].T - half_squares[code]
        least = scores.amax(dim=1, keepdim=True) - tie * half_squares[code]
        # The first that is near enough.
        labels = (scores >= least).int().argmax(dim=1)
        names = torch.arange(sizes[code], device=labels.device)
        members = (labels[:, None] == names) * weight[:, None]
        place = code, slice(sizes[code])
        sums.add(place, _inner(members, rows, X.double))
        held.add(place, members.to(X.double).sum(dim=0))
    unit = X.groups(data.class_index, data.weight, len(sizes)).unit
    totals = sums.array() * unit, held.array() * unit
    return [own[:k] for each in totals for own, k in zip(each, sizes, strict=True)]


def farthest(
    data: Labelled,
    code: int,
    mean: FloatArray,
    row_space: FloatArray,
    centroids: FloatArray,
) -> tuple[float, FloatArray]:
    """Squared distance to its centroid of the row farthest from all; the row (d,)."""
    import torch

    X: TensorRows = data.X
    share = 10 * torch.finfo(X.precision).eps
    own_mean, rows_removed, known = (
        X.beside(each, X.double) for each in (mean[code], row_space, centroids)
    )
    half_squares = torch.linalg.vector_norm(known, dim=1) ** 2 / 2
    found: tuple[float, FloatArray] = (0.0, centroids[0])
    for mine, index, _ in _blocks(data, len(mean)):
        if mine != code:
            continue
        centred = X.tensor[index].to(X.double) - own_mean
        offsets = centred - (centred @ rows_removed) @ rows_removed.T
        nearest = (offsets @ known.T - half_squares).argmax(dim=1)
        squares = torch.linalg.vector_norm(offsets - known[nearest], dim=1) ** 2
        lengths = torch.linalg.vector_norm(centred, dim=1) ** 2
        squares = squares * (squares > share * lengths.max())
        place = squares.argmax()
        square = float(squares[place])
        if square > found[0]:
            found = square, _host(offsets[place])
    return found


def preferences(
    data: Labelled, mean: FloatArray, row_space: FloatArray, spread: FloatArray
) -> FloatArray:
    """How much more each row (n,) is to be drawn, by its share of the variance."""
    import torch

    X: TensorRows = data.X
    preferred = torch.ones(len(X), dtype=X.precision, device=X.tensor.device)
    prefer = _Preference(X, mean, row_space, spread)
    for code, index, _ in _blocks(data, len(mean)):
        preferred[index] = prefer(X.tensor[index] - prefer.mean[code], code)
    return _host(preferred)


def at_places(
    data: Labelled,
    places: list[IntArray],
    mean: FloatArray,
    row_space: FloatArray,
    axes: list[FloatArray],
    spread: FloatArray,
) -> list[list[tuple[FloatArray, FloatArray]]]:
    """Coordinates and preferences of those of the places that lie in these rows."""
    X: TensorRows = data.X
    prefer = _Preference(X, mean, row_space, spread)
    size, result = X.block_rows(), []
    for code, place in enumerate(places):
        start, stop = np.searchsorted(
            place, [data.first_row, data.first_row + len(X)]
        ).tolist()
        index = X.beside(place[start:stop] - data.first_row)
        own_axes, blocks = X.beside(axes[code], X.precision), []
        # One block too where there are no places: its shape is asked for.
        for first in range(0, max(1, len(index)), size):
            rows = X.tensor[index[first : first + size]] - prefer.mean[code]
            points = (rows @ own_axes).cpu().numpy()
            blocks.append((points, _host(prefer(rows, code))))
        result.append(blocks)
    return result


class _Preference:
    """The preference of rows less the mean of their class, as `coordinates` has it."""

    def __init__(
        self,
        X: TensorRows,
        mean: FloatArray,
        row_space: FloatArray,
        spread: FloatArray,
    ) -> None:
        self.mean = X.beside(mean, X.precision)
        self._removed = X.beside(row_space, X.precision)
        self._per_unit = 1 / np.sqrt(spread)

    def __call__(self, rows: "Tensor", code: int) -> "Tensor":
        import torch

        # In units of the spread: the squares of others may overflow.
        rows = rows * float(self._per_unit[code])
        squares = torch.linalg.vector_norm(rows, dim=1) ** 2
        inside = torch.linalg.vector_norm(rows @ self._removed, dim=1) ** 2
        return 1 + torch.clamp(squares - inside, min=0)


class _Sums:
    """Sums in double precision: on the device, or on the host where it has none."""

    def __init__(self, X: TensorRows, shape: tuple[int, ...]) -> None:
        import torch

        self._device = X.tensor.device if X.double == torch.float64 else "cpu"
        self._total = torch.zeros(shape, dtype=torch.float64, device=self._device)

    def add(self, place: Any, part: "Tensor") -> None:
        self._total[place] += part.to(self._device)

    def array(self) -> FloatArray:
        return _host(self._total)


def _blocks(data: Labelled, n_classes: int) -> Iterator[tuple[int, "Tensor", "Tensor"]]:
    """Give code, indices and weights of the rows of each class, block by block."""
    X: TensorRows = data.X
    groups = X.groups(data.class_index, data.weight, n_classes)
    size = X.block_rows()
    for code in range(n_classes):
        index = groups.index(code)
        for start in range(0, len(index), size):
            own = index[start : start + size]
            yield code, own, groups.weight[own]


def _joint(
    X: TensorRows, index: "Tensor", beside: "Tensor | None", precision: "dtype"
) -> "Tensor":
    """Rows at an index, and what lies beside them."""
    import torch

    rows = X.tensor[index].to(precision)
    if beside is None:
        return rows
    return torch.cat([rows, beside[index].to(precision)], dim=1)


def _inner(left: "Tensor", right: "Tensor", double: "dtype") -> "Tensor":
    """Products (k, d) of (n, k) and (n, d), parts of the rows summed in `double`."""
    import torch

    n_whole = len(left) // _PART_ROWS * _PART_ROWS
    total = (left[n_whole:].T @ right[n_whole:]).to(double)
    if n_whole:
        lefts, rights = (
            each[:n_whole].view(-1, _PART_ROWS, each.shape[1]) for each in (left, right)
        )
        parts = torch.bmm(lefts.transpose(1, 2), rights)
        total += parts.sum(dim=0, dtype=double)
    return total


def _host(values: "Tensor") -> FloatArray:
    array: FloatArray = values.cpu().double().numpy()
    return array
