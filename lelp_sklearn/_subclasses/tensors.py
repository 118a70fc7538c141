"""Torch tensors as rows of embeddings, without importing torch before one comes."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

import numpy as np
from numpy.typing import NDArray
from sklearn.utils._chunking import get_chunk_n_rows

from lelp_sklearn._typing import FloatArray, IntArray

if TYPE_CHECKING:
    import torch

# A block has at most so many numbers: enough for a device to be busy for longer than it
# takes to ask it.
_MANY_NUMBERS = 2**26
# Arrays of a block's size that are alive at once.
_BLOCK_TEMPORARIES = 4
# Where compiled kernels read rows, a block brought to NumPy's precision at a time.
_NEAR = ("cpu",)
# Dtypes that NumPy has too: on the CPU such a tensor is an array already.
_VIEWABLE = ("torch.float16", "torch.float32", "torch.float64")

Result = TypeVar("Result")


def is_tensor(array: object) -> bool:
    """Whether `array` is a torch tensor."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def is_linear(layer: Any, coef: NDArray[Any], intercept: Any) -> bool:
    """Tell whether a layer returns coef (C, d) times its input plus the intercept."""
    import torch

    rows = np.random.RandomState(0).normal(size=(4, coef.shape[1]))
    weight = layer.weight
    try:
        with torch.no_grad():
            given = torch.from_numpy(rows).to(weight.dtype).to(weight.device)
            returned = to_array(layer(given))
    # A layer may be any, such as one that takes labels beside the rows.
    except Exception:
        return False
    rows = to_array(given)
    products = rows @ coef.T + intercept
    # Rounding errors of products add up like their squares; single precision may
    # multiply with fewer digits than it has (TF32).
    size = np.sqrt(rows**2 @ coef.T**2 + intercept**2)
    slack = 8 * max(torch.finfo(weight.dtype).eps, 2.0**-11) * size
    same_shape = np.shape(returned) == products.shape
    return same_shape and bool((np.abs(returned - products) <= slack).all())


class TensorRows:
    """A 2-D tensor whose rows are read where they lie.

    Serves the dtypes and devices that NumPy cannot view (bfloat16, CUDA). An index
    gives NumPy copies of rows: of all of them, block by block, where they lie on the
    CPU. On another device passes over all rows are made there, by `tensor_passes` and
    `tensor_labels`, and only few rows are asked for.
    """

    def __init__(self, tensor: "torch.Tensor") -> None:
        self.tensor = tensor.detach()
        self.shape: tuple[int, ...] = tuple(tensor.shape)
        self.ndim = tensor.ndim
        self.dtype = np.dtype(np.float64 if _is_double(tensor) else np.float32)
        self._groups: tuple[IntArray, FloatArray, Groups] | None = None
        self._kept: list[tuple[NDArray[Any], torch.Tensor]] = []

    def __getitem__(self, rows: Any) -> NDArray[Any]:
        if isinstance(rows, np.ndarray):
            rows = self.beside(rows)
        block = self.tensor[rows]
        return (block.double() if _is_double(block) else block.float()).cpu().numpy()

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def precision(self) -> "torch.dtype":
        """The dtype in which rows are computed with."""
        import torch

        return torch.float64 if self.dtype == np.float64 else torch.float32

    def precision_of(self, dtype: np.dtype[Any]) -> "torch.dtype":
        """As near to `dtype` as the device has it."""
        return self.double if dtype == np.float64 else self.precision

    @property
    def double(self) -> "torch.dtype":
        """Double precision, or single on a device that has no other."""
        import torch

        return torch.float64 if self.has_double else torch.float32

    @property
    def has_double(self) -> bool:
        """Whether the device has double precision."""
        return _has_double(self.tensor)

    def empty(self, shape: tuple[int, ...]) -> "torch.Tensor":
        """Room for numbers of their precision beside the rows."""
        import torch

        return torch.empty(shape, dtype=self.precision, device=self.tensor.device)

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
        import torch

        # Torch has no read-only tensors, and would warn of what nobody writes to.
        values = values if values.flags.writeable else values.copy()
        tensor = torch.from_numpy(np.ascontiguousarray(values))
        return tensor.to(self.tensor.device, dtype=dtype)

    def kept(self, values: NDArray[Any]) -> "torch.Tensor":
        """As `beside`, once for an array that no one changes; unsigned as signed."""
        for known, tensor in self._kept:
            if known is values:
                return tensor
        signed = values.view(np.int64) if values.dtype == np.uint64 else values
        return self.keep(values, self.beside(signed))

    def keep(self, values: NDArray[Any], tensor: "torch.Tensor") -> "torch.Tensor":
        """Remember the copy of an array on the device; the last few are kept."""
        self._kept = [*self._kept[-2:], (values, tensor)]
        return tensor

    def groups(self, codes: IntArray, weight: FloatArray, n_classes: int) -> "Groups":
        """Find the rows of each class, by codes (n,); kept for the next pass."""
        if self._groups is not None:
            of_codes, of_weight, known = self._groups
            if of_codes is codes and of_weight is weight:
                return known
        found = Groups.of(self, codes, weight, n_classes)
        self._groups = codes, weight, found
        return found


class Groups:
    """Indices of the rows of each class, on the device, and their weights.

    The weights are in units of the largest, which single precision can hold.
    """

    def __init__(
        self,
        order: "torch.Tensor",
        ends: list[int],
        weight: "torch.Tensor",
        unit: float,
    ) -> None:
        self.order, self.ends, self.weight, self.unit = order, ends, weight, unit

    @classmethod
    def of(
        cls, rows: TensorRows, codes: IntArray, weight: FloatArray, n_classes: int
    ) -> "Groups":
        import torch

        unit = float(weight.max(initial=0)) or 1.0
        own_codes = rows.beside(codes.astype(np.int32))
        counts = torch.bincount(own_codes + 1, minlength=n_classes + 1)
        # Stable: rows are read in the order in which they lie.
        order = torch.argsort(own_codes, stable=True)
        ends = np.cumsum(counts.tolist()).tolist()
        return cls(order, ends, rows.beside(weight / unit, rows.precision), unit)

    def index(self, code: int) -> "torch.Tensor":
        """Ascending indices of the rows of a class."""
        return self.order[self.ends[code] : self.ends[code + 1]]


def as_rows(tensor: "torch.Tensor") -> "NDArray[Any] | TensorRows":
    """View `tensor` as a NumPy array where that needs no copy, else as rows."""
    if tensor.device.type == "cpu" and str(tensor.dtype) in _VIEWABLE:
        view: NDArray[Any] = tensor.detach().numpy()
        return view
    return TensorRows(tensor)


def is_on_device(rows: object) -> TypeGuard[TensorRows]:
    """Whether passes over rows are made on another device than the CPU."""
    return isinstance(rows, TensorRows) and rows.tensor.device.type not in _NEAR


def dispatch_to_device(
    twin: Callable[..., Result],
) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Have `twin` make a pass over labelled rows that lie on another device.

    For a function of labelled rows, as the first argument, and more.
    """

    def decorate(function: Callable[..., Result]) -> Callable[..., Result]:
        @wraps(function)
        def choose(data: Any, *arguments: Any, **options: Any) -> Result:
            if not is_on_device(data.X):
                return function(data, *arguments, **options)
            with exact_products():
                return twin(data, *arguments, **options)

        return choose

    return decorate


@contextmanager
def exact_products() -> Iterator[None]:
    """Have float32 products be what they are called, and record no gradients.

    Whatever was allowed elsewhere: TensorFloat-32 has three digits.
    """
    import torch

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
    import torch

    if isinstance(values, torch.Tensor):
        return values
    return torch.from_numpy(values).to(tensor.device)


def _is_double(tensor: "torch.Tensor") -> bool:
    import torch

    if tensor.is_floating_point():
        return tensor.dtype == torch.float64
    # Integer tensors are read in double precision, as scikit-learn reads them.
    return _has_double(tensor)


def _has_double(tensor: "torch.Tensor") -> bool:
    import torch

    kind = tensor.device.type
    if kind == "xpu":
        return bool(torch.xpu.get_device_capability(tensor.device).get("has_fp64", 1))
    return kind != "mps"
