"""Rows of embeddings that are torch tensors, read and passed over where they are.

Torch is imported when the first tensor comes. The passes are the twins of functions of
labelled rows elsewhere in this folder. What is summed stays on the device until the
pass is over. Rows of one class are gathered a block at a time, less a centre amid them,
and multiplied in their precision, at least single; some thousand rows are summed so,
and these sums in double precision. No sum depends on the order in which threads end.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeGuard, cast

import numpy as np
from numpy.typing import NDArray
from sklearn.utils._chunking import get_chunk_n_rows

from lelp_sklearn._typing import FloatArray, IntArray

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from lelp_sklearn._subclasses.rows import LabelledRows
else:

    class _LazyTorch:
        """Torch, imported when the first tensor comes."""

        def __getattr__(self, name: str) -> Any:
            import torch

            return getattr(torch, name)

    torch = _LazyTorch()

# Largest number of entries of a block: enough to keep a device busy.
_MANY_NUMBERS = 2**26
# Arrays of a block's size that are alive at once.
_BLOCK_TEMPORARIES = 4
# Where compiled kernels read rows, a block brought to NumPy's precision at a time.
_NEAR = ("cpu",)
# Dtypes that NumPy has too: on the CPU such a tensor is an array already.
_VIEWABLE = ("torch.float16", "torch.float32", "torch.float64")
# Number of rows that are summed in their own precision; their sums are in double.
_PART_ROWS = 4096
# Number of rows, spread over a class, whose mean is the centre of the class.
_CENTRE_ROWS = 256

# The lower half and the sign of a 64-bit number, as torch's signed ones hold them.
_LOWER = 2**32 - 1
_SIGN = -(2**63)


def is_tensor(array: object) -> bool:
    """Whether `array` is a torch tensor."""
    return sys.modules.get("torch") is not None and isinstance(array, torch.Tensor)


class TensorRows:
    """A 2-D tensor whose rows are read on its device.

    Serves the dtypes and devices that NumPy cannot view (bfloat16, CUDA). An index
    gives NumPy copies of rows: of all of them, block by block, on the CPU. On another
    device passes over all rows are made there, and only few rows are asked for.
    """

    def __init__(self, tensor: "torch.Tensor") -> None:
        self.tensor = tensor.detach()
        self.shape: tuple[int, ...] = tuple(tensor.shape)
        self.ndim = tensor.ndim
        kind = tensor.device.type
        self.has_double = kind != "mps"
        if kind == "xpu":
            capability = torch.xpu.get_device_capability(tensor.device)
            self.has_double = bool(capability.get("has_fp64", 1))
        is_double = tensor.dtype == torch.float64
        if not tensor.is_floating_point():
            # They are read in double precision, as scikit-learn reads them.
            is_double = self.has_double
        self.dtype = np.dtype(np.float64 if is_double else np.float32)
        self._groups: tuple[tuple[IntArray, FloatArray], Groups] | None = None

    def __getitem__(self, rows: Any) -> NDArray[Any]:
        if isinstance(rows, np.ndarray):
            rows = self.beside(rows)
        block: NDArray[Any] = self.tensor[rows].to(self.precision).cpu().numpy()
        return block

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def precision(self) -> "torch.dtype":
        """The dtype of computations with the rows."""
        return torch.float64 if self.dtype == np.float64 else torch.float32

    def precision_of(self, dtype: np.dtype[Any]) -> "torch.dtype":
        """As near to `dtype` as the device has it."""
        return self.double if dtype == np.float64 else self.precision

    @property
    def double(self) -> "torch.dtype":
        """Double precision, or single on a device that has no other."""
        return torch.float64 if self.has_double else torch.float32

    def empty(self, shape: tuple[int, ...]) -> "torch.Tensor":
        """Room for numbers of their precision beside the rows."""
        return torch.empty(shape, dtype=self.precision, device=self.tensor.device)

    def zeros(self, shape: tuple[int, ...]) -> "torch.Tensor":
        """Sums in double precision, on the host if the device does not have it."""
        device = self.tensor.device if self.has_double else "cpu"
        return torch.zeros(shape, dtype=torch.float64, device=device)

    def block_rows(self) -> int:
        """How many rows a block has, within scikit-learn's ``working_memory``."""
        n_features = max(1, self.shape[1])
        row_bytes = n_features * self.dtype.itemsize * _BLOCK_TEMPORARIES
        size = get_chunk_n_rows(
            row_bytes, max_n_rows=max(1, _MANY_NUMBERS // n_features)
        )
        return max(1, int(size))

    def slices(self) -> Iterator[slice]:
        """Cut the rows into blocks."""
        size = self.block_rows()
        for start in range(0, len(self), size):
            yield slice(start, min(start + size, len(self)))

    def beside(
        self, values: NDArray[Any], dtype: "torch.dtype | None" = None
    ) -> "torch.Tensor":
        """Copy an array to the device of the rows."""
        # Torch has no read-only tensors, and would warn of what nobody writes to.
        values = values if values.flags.writeable else values.copy()
        tensor = torch.from_numpy(np.ascontiguousarray(values))
        return tensor.to(self.tensor.device, dtype=dtype)

    def groups(self, data: "LabelledRows", n_classes: int) -> "Groups":
        """Return the rows of each class; kept for the next pass."""
        labels = data.class_index, data.weight
        if self._groups is None or any(
            known is not own for known, own in zip(self._groups[0], labels, strict=True)
        ):
            self._groups = labels, Groups.of(self, *labels, n_classes)
        return self._groups[1]


@dataclass(frozen=True)
class Groups:
    """Indices of the rows of each class, on the device, and their weights.

    The weights are in units of the largest, which single precision can hold.
    """

    order: "Tensor"
    ends: list[int]
    weight: "Tensor"
    unit: float

    @classmethod
    def of(
        cls, rows: TensorRows, class_index: IntArray, weight: FloatArray, n_classes: int
    ) -> "Groups":
        unit = float(weight.max(initial=0)) or 1.0
        own_index = rows.beside(class_index.astype(np.int32))
        counts = torch.bincount(own_index + 1, minlength=n_classes + 1)
        # Stable, so that the rows of a class stay in order.
        order = torch.argsort(own_index, stable=True)
        ends = np.cumsum(counts.tolist()).tolist()
        return cls(order, ends, rows.beside(weight / unit, rows.precision), unit)

    def index(self, c: int) -> "torch.Tensor":
        """Ascending indices of the rows of a class."""
        return self.order[self.ends[c] : self.ends[c + 1]]


def as_rows(tensor: "torch.Tensor") -> "NDArray[Any] | TensorRows":
    """View `tensor` as a NumPy array if that needs no copy, else as `TensorRows`."""
    if tensor.device.type == "cpu" and str(tensor.dtype) in _VIEWABLE:
        view: NDArray[Any] = tensor.detach().numpy()
        return view
    return TensorRows(tensor)


def alongside(rows: Any, *arrays: FloatArray) -> Any:
    """Return arrays as they are, or as tensors like `rows` if these are a tensor."""
    if not is_tensor(rows):
        return arrays
    return [torch.from_numpy(each).to(rows) for each in arrays]


def class_blocks(data: "LabelledRows", n_classes: int) -> Iterator[Any]:
    """Yield class index, rows, weights and indices, in double precision."""
    X = cast("TensorRows", data.X)
    unit = X.groups(data, n_classes).unit
    for c, index, weight in _blocks(data, n_classes):
        yield c, X.tensor[index].to(X.double), unit * weight.to(X.double), index


def is_on_device(rows: object) -> TypeGuard[TensorRows]:
    """Whether passes over rows are made on another device than the CPU."""
    return isinstance(rows, TensorRows) and rows.tensor.device.type not in _NEAR


@contextmanager
def exact_products() -> Iterator[None]:
    """Have float32 products be what they are called, and record no gradients.

    Whatever was allowed elsewhere: TensorFloat-32 has three digits.
    """
    with torch.no_grad():
        if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
            # Before torch 2.9 one word speaks for all devices.
            before = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision("highest")
            try:
                yield
            finally:
                torch.set_float32_matmul_precision(before)
            return
        # torch has no types for the second.
        backends: list[Any] = [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]  # type: ignore[attr-defined]
        kept = [backend.fp32_precision for backend in backends]
        try:
            for backend, precision in zip(backends, kept, strict=True):
                if precision not in ("none", "ieee"):
                    backend.fp32_precision = "ieee"
            yield
        finally:
            for backend, precision in zip(backends, kept, strict=True):
                if backend.fp32_precision != precision:
                    backend.fp32_precision = precision


def tie_share(dtype: np.dtype[Any]) -> float:
    """By what share of half its square a centroid is as near as another to a row."""
    return float(max(10 * np.finfo(dtype).eps, 1e-10))


def to_array(values: Any) -> Any:
    """Give a tensor, of any dtype and device, as an array; anything else as it is."""
    if not is_tensor(values):
        return values
    # On the host: a device may have no double precision.
    return values.detach().cpu().double().numpy()


def like(values: "NDArray[Any] | torch.Tensor", tensor: "torch.Tensor") -> Any:
    """Give `values` as a tensor on the device of `tensor`."""
    if isinstance(values, torch.Tensor):
        return values
    return torch.from_numpy(values).to(tensor.device)


@cache
def _has_triton() -> bool:
    """Return whether Triton is there, and a C compiler for what starts its kernels."""
    compilers = os.environ.get("CC"), *map(shutil.which, ("clang", "gcc"))
    return find_spec("triton") is not None and any(compilers)


def kernels_of(tensor: "Tensor") -> Any:
    """Return the module of kernels for the device of a tensor, None without."""
    is_cuda = tensor.device.type == "cuda" and torch.version.cuda is not None
    # Older tensor cores know neither bfloat16 nor TensorFloat-32.
    if not is_cuda or torch.cuda.get_device_capability(tensor.device) < (8, 0):
        return None
    if not _has_triton():
        return None
    from lelp_sklearn._subclasses import triton_kernel

    return triton_kernel


def hash_rows(
    X: TensorRows, factors: NDArray[np.uint64]
) -> tuple[NDArray[np.uint64], bool]:
    """Digests (n,) as the compiled kernel gives them; whether all is finite."""
    multipliers = X.beside(factors.view(np.int64))
    digests = torch.empty(len(X), dtype=torch.int64, device=X.tensor.device)
    kernels = kernels_of(X.tensor)
    if kernels is not None and X.dtype == np.float32:
        all_finite = kernels.digest_rows(X.tensor, multipliers, digests)
    else:
        all_finite = _digest_blocks(X, multipliers, digests)
    return digests.cpu().numpy().view(np.uint64), all_finite


def _digest_blocks(X: TensorRows, multipliers: "Tensor", digests: "Tensor") -> bool:
    """Write the digest of each row by torch's operations; say whether all is finite."""
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
    for block in X.slices():
        has_nonfinite = ~torch.isfinite(X.tensor[block]).all(dim=1)
        if has_nonfinite.any():
            return int(block.start + has_nonfinite.int().argmax())
    return None


def distinct_rows(
    data: "LabelledRows", n_classes: int, seed: np.uint64, most: int
) -> list[tuple[NDArray[np.uint64], IntArray, FloatArray, bool]]:
    """Digests, places and weights of the distinct rows of each class.

    At most so many of the largest priorities; whether these are all. As `Sketch.of`
    finds them, in another order.
    """
    X = cast("TensorRows", data.X)
    digests, weights = X.beside(data.digests.view(np.int64)), X.beside(data.weight)
    found = []
    for c in range(n_classes):
        index = X.groups(data, n_classes).index(c)
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
            uniform = _uniform(own[kept] ^ int(seed))
            largest = torch.topk(weight / uniform, most).indices
            kept, weight = kept[largest], weight[largest]
        places = (index[kept] + data.first_row).cpu().numpy()
        contents = own[kept].cpu().numpy().view(np.uint64)
        found.append((contents, places, _host(weight), is_whole))
    return found


def _uniform(numbers: "Tensor") -> "Tensor":
    """Return numbers in (0, 1] that depend on 64 bits, scrambled as by `splitmix64`."""
    # Imported here: `rows` imports this module.
    from lelp_sklearn._subclasses.rows import SPLITMIX64

    for shift, multiplier in SPLITMIX64:
        # Zeros come in from the left. Torch multiplies signed numbers.
        numbers = numbers ^ ((numbers >> shift) & (2 ** (64 - shift) - 1))
        numbers = numbers * int(np.uint64(multiplier).view(np.int64))
    upper, lower = (numbers >> 32) & _LOWER, numbers & _LOWER
    uniform: Tensor = (upper.double() * 2**32 + lower.double() + 1) / 2.0**64
    return uniform


@exact_products()
def moments(
    data: "LabelledRows", n_classes: int, extra: FloatArray | None, dtype: np.dtype[Any]
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Weights (C,), means (C, p), scatters (C, p, p) of rows, `extra` beside them.

    In `dtype` over some thousand rows, in double precision over the sums of these.
    """
    X = cast("TensorRows", data.X)
    precision = X.precision_of(dtype)
    beside = None if extra is None else X.beside(extra, precision)
    width = X.shape[1] + (0 if extra is None else extra.shape[1])

    def joint_rows(index: "Tensor") -> "Tensor":
        rows = X.tensor[index].to(precision)
        return rows if beside is None else torch.cat([rows, beside[index]], dim=1)

    total = X.zeros((n_classes, width + 1, width))
    held = X.zeros((n_classes,))
    centres = torch.zeros((n_classes, width), dtype=precision, device=X.tensor.device)
    for c in range(n_classes):
        index = X.groups(data, n_classes).index(c)
        few = index[:: max(1, len(index) // _CENTRE_ROWS)]
        if len(few):
            centres[c] = joint_rows(few).mean(dim=0)
    for c, index, weight in _blocks(data, n_classes):
        weight = weight.to(precision)
        rows = joint_rows(index) - centres[c]
        ones = torch.ones_like(rows[:, :1])
        weighted = torch.cat([rows, ones], dim=1) * weight[:, None]
        total[c] += _inner(weighted, rows, X.double).to(total.device)
        held[c] += weight.to(X.double).sum().to(held.device)
    unit = X.groups(data, n_classes).unit
    sums, weights = _host(total), _host(held)
    step = sums[:, -1] / np.where(weights > 0, weights, 1)[:, None]
    scatter = sums[:, :-1] - sums[:, -1, :, None] * step[:, None, :]
    scatter = (scatter + scatter.transpose(0, 2, 1)) / 2
    return weights * unit, _host(centres) + step, scatter * unit


@exact_products()
def product_sums(
    data: "LabelledRows", centres: FloatArray, bases: list[FloatArray]
) -> tuple[FloatArray, FloatArray]:
    """Do what `moments._product_sums` does."""
    X = cast("TensorRows", data.X)
    precision = X.precision_of(centres.dtype)
    own_centres = X.beside(centres, precision)
    own_bases = [X.beside(basis, precision) for basis in bases]
    n_columns = [basis.shape[1] + 1 for basis in bases]
    total = X.zeros((len(bases), max(n_columns), X.shape[1]))
    squares = X.zeros((len(bases),))
    for c, index, weight in _blocks(data, len(bases)):
        rows = X.tensor[index].to(precision) - own_centres[c]
        ones = torch.ones_like(rows[:, :1])
        scores = torch.cat([rows @ own_bases[c], ones], dim=1) * weight[:, None]
        part = _inner(scores, rows, X.double)
        total[c, : n_columns[c]] += part.to(total.device)
        lengths = torch.linalg.vector_norm(rows, dim=1)
        own = weight.to(X.double) @ lengths.square().to(X.double)
        squares[c] += own.to(squares.device)
    unit = X.groups(data, len(bases)).unit
    return _host(total) * unit, _host(squares) * unit


@exact_products()
def cluster_sums(
    data: "LabelledRows", mean: FloatArray, centroids: list[FloatArray]
) -> tuple[FloatArray, FloatArray]:
    """Do what `kmeans._cluster_sums` does."""
    X = cast("TensorRows", data.X)
    sizes = [len(each) for each in centroids]
    means = X.beside(mean, X.precision)
    known = [X.beside(each, X.precision) for each in centroids]
    half_squares = [torch.linalg.vector_norm(k, dim=1) ** 2 / 2 for k in known]
    tie = tie_share(X.dtype)
    sums = X.zeros((len(sizes), max(sizes), X.shape[1]))
    held = X.zeros((len(sizes), max(sizes)))
    for c, index, weight in _blocks(data, len(sizes)):
        rows = X.tensor[index] - means[c]
        scores = rows @ known[c].T - half_squares[c]
        least = scores.amax(dim=1, keepdim=True) - tie * half_squares[c]
        # The first that is near enough.
        labels = (scores >= least).int().argmax(dim=1)
        names = torch.arange(sizes[c], device=labels.device)
        members = (labels[:, None] == names) * weight[:, None]
        part = _inner(members, rows, X.double)
        sums[c, : sizes[c]] += part.to(sums.device)
        held[c, : sizes[c]] += members.to(X.double).sum(dim=0).to(held.device)
    unit = X.groups(data, len(sizes)).unit
    return _host(sums) * unit, _host(held) * unit


def _blocks(
    data: "LabelledRows", n_classes: int
) -> Iterator[tuple[int, "Tensor", "Tensor"]]:
    """Yield class index, indices and weights of rows, by class and block."""
    X = cast("TensorRows", data.X)
    groups = X.groups(data, n_classes)
    size = X.block_rows()
    for c in range(n_classes):
        index = groups.index(c)
        for start in range(0, len(index), size):
            own = index[start : start + size]
            yield c, own, groups.weight[own]


def _inner(left: "Tensor", right: "Tensor", double: "torch.dtype") -> "Tensor":
    """Products (k, d) of (n, k) and (n, d), parts of the rows summed in `double`."""
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
