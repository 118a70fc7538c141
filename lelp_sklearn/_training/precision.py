"""Mixed precision: products in half precision, weights and sums in single."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

_MIXED = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class Precision:
    """Runs the parts of a step in one precision, on the device of the module.

    "auto" and "float32" compute in the dtype of the weights; "float16" scales the
    gradients.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.dtype = _MIXED.get(name)
        self.device_type = device.type
        self.scaler: torch.amp.GradScaler | None = None
        if self.dtype is None:
            return
        reason: object = "torch does not support it there"
        is_usable = False
        try:
            with torch.autocast(self.device_type, dtype=self.dtype):
                is_usable = torch.is_autocast_enabled(self.device_type)
            if self.dtype == torch.float16:
                self.scaler = torch.amp.GradScaler(self.device_type)
                is_usable = is_usable and self.scaler.is_enabled()
        except RuntimeError as error:
            reason, is_usable = error, False
        if not is_usable:
            raise ValueError(
                f"precision={name!r} cannot be used on {str(device)!r} "
                f"({str(reason).splitlines()[0]}): use 'float32', or another device."
            )

    def outputs(self, module: nn.Module, X: Tensor) -> Tensor:
        """Return the outputs of a module for a batch."""
        context: AbstractContextManager[Any] = nullcontext()
        if self.dtype is not None:
            context = torch.autocast(self.device_type, dtype=self.dtype)
        with context:
            outputs: Tensor = module(X)
        return outputs

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
        """Update the weights, with gradients clipped to the norm."""
        if max_grad_norm is not None:
            if self.scaler is not None:
                self.scaler.unscale_(optimizer)
            _clip_gradients(parameters, max_grad_norm)
        if self.scaler is None:
            optimizer.step()
        else:
            self.scaler.step(optimizer)
            self.scaler.update()


def _clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> None:
    """Clip the gradients, some of which may be sparse, to a norm of all together."""
    gradients = []
    for parameter in parameters:
        if parameter.grad is not None and parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
            gradients.append(parameter.grad.values())
        elif parameter.grad is not None:
            gradients.append(parameter.grad)
    norm = nn.utils.get_total_norm(gradients)
    factor = (max_norm / (norm + 1e-6)).clamp(max=1)
    for gradient in gradients:
        gradient.mul_(factor.to(gradient.device))
