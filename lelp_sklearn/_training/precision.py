"""Mixed precision: products in half precision, weights and sums in single."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from lelp_sklearn import _training_validation as validation

_MIXED = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class Precision:
    """How a step multiplies; half precision needs its gradients scaled.

    Parameters
    ----------
    name : {"auto", "float32", "bfloat16", "float16"}
        The first two multiply in the dtype of the weights.
    device : torch.device
        Where the module is.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.dtype = _MIXED.get(name)
        self.device_type = device.type
        self.scaler: torch.amp.GradScaler | None = None
        if self.dtype is None:
            return
        try:
            with torch.autocast(self.device_type, dtype=self.dtype):
                is_usable = torch.is_autocast_enabled(self.device_type)
            if self.dtype == torch.float16:
                self.scaler = torch.amp.GradScaler(self.device_type)
                is_usable = is_usable and self.scaler.is_enabled()
        except RuntimeError as reason:
            raise validation.unusable_precision(name, device, reason) from reason
        if not is_usable:
            what = "torch does not support it there"
            raise validation.unusable_precision(name, device, what)

    def outputs(self, module: nn.Module, X: Tensor) -> Tensor:
        """Give what a module makes of a batch, perhaps in half precision."""
        mixed: AbstractContextManager[Any] = nullcontext()
        if self.dtype is not None:
            mixed = torch.autocast(self.device_type, dtype=self.dtype)
        with mixed:
            made: Tensor = module(X)
        return made

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients of the weights."""
        scaled = loss if self.scaler is None else self.scaler.scale(loss)
        scaled.backward()

    def step(
        self,
        optimizer: torch.optim.Optimizer,
        parameters: Iterable[nn.Parameter],
        max_grad_norm: float | None,
    ) -> None:
        """Move the weights; longer gradients are first shortened to the norm."""
        if max_grad_norm is not None:
            if self.scaler is not None:
                self.scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(parameters, max_grad_norm)
        if self.scaler is None:
            optimizer.step()
        else:
            self.scaler.step(optimizer)
            self.scaler.update()
