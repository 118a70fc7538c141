"""Torch tensors as rows of embeddings, without importing torch before one comes."""

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch


def is_tensor(array: object) -> bool:
    """Whether `array` is a torch tensor."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


class TensorRows:
    """A 2-D tensor whose row blocks come out as NumPy arrays.

    Serves the dtypes and devices that NumPy cannot view (bfloat16, CUDA): a block is
    brought over at a time, the whole never.
    """

    def __init__(self, tensor: "torch.Tensor") -> None:
        self._tensor = tensor.detach()
        self.shape: tuple[int, ...] = tuple(tensor.shape)
        self.ndim = tensor.ndim
        self.dtype = np.dtype(np.float64 if _is_double(tensor) else np.float32)

    def __getitem__(self, rows: Any) -> NDArray[Any]:
        if isinstance(rows, np.ndarray):
            import torch

            rows = torch.from_numpy(rows).to(self._tensor.device)
        block = self._tensor[rows]
        return (block.double() if _is_double(block) else block.float()).cpu().numpy()

    def __len__(self) -> int:
        return self.shape[0]


def as_rows(tensor: "torch.Tensor") -> "NDArray[Any] | TensorRows":
    """View `tensor` as a NumPy array where that needs no copy, else as rows."""
    import torch

    viewable = (torch.float16, torch.float32, torch.float64)
    if tensor.device.type == "cpu" and tensor.dtype in viewable:
        view: NDArray[Any] = tensor.detach().numpy()
        return view
    return TensorRows(tensor)


def to_array(values: Any) -> Any:
    """Give a tensor, of any dtype and device, as an array; anything else as it is."""
    return values.detach().double().cpu().numpy() if is_tensor(values) else values


def like(array: NDArray[Any], tensor: "torch.Tensor") -> "torch.Tensor":
    """Give `array` as a tensor on the device of `tensor`."""
    import torch

    return torch.from_numpy(array).to(tensor.device)


def _is_double(tensor: "torch.Tensor") -> bool:
    import torch

    # Integer tensors are read in double precision, as scikit-learn reads them.
    return tensor.dtype == torch.float64 or not tensor.is_floating_point()
