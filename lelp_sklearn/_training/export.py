"""A student by itself: a torch module of class probabilities, and an ONNX file."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from lelp_sklearn._files import new_file
from lelp_sklearn._locks import copied
from lelp_sklearn._training import export_validation as validation
from lelp_sklearn._training.device import torch_lock

# Below this temperature the mass of a class can vanish in single precision although
# its probability, a power of the mass, does not.
_LOWEST_TEMPERATURE_OF_MASSES = 0.25

_LOGGERS = ("torch", "onnxscript", "onnx_ir")


class ClassProbabilities(nn.Module):
    r"""A module followed by the sum over the subclasses of each class.

    Its output is the softmax of the class logits
    :math:`A_c = \tau \log \sum_s \exp(a_{c,s} / \tau)`. With the mass
    :math:`m_c = \sum_s \mathrm{softmax}(a / \tau)_{c,s}` of a class that is m itself
    at :math:`\tau = 1` and else the softmax of :math:`\tau \log m`, which needs fewer
    and cheaper operations: for a single row their number is what counts.

    Parameters
    ----------
    net : torch.nn.Module
        Makes the logits a.
    n_classes, n_subclasses : int
        Their numbers C and S.
    temperature : float
        The temperature τ.
    """

    fold: Tensor

    def __init__(
        self, net: nn.Module, n_classes: int, n_subclasses: int, temperature: float
    ) -> None:
        super().__init__()
        self.net = net
        self.shape = (n_classes, n_subclasses)
        self.temperature = temperature
        # The last layer makes the logits, of its own precision.
        numbers = [p.dtype for p in net.parameters() if p.is_floating_point()]
        fold = torch.eye(n_classes, dtype=numbers[-1] if numbers else None)
        fold = fold.repeat_interleave(n_subclasses, dim=0)
        self.register_buffer("fold", fold, persistent=False)

    def forward(self, X: Tensor) -> Tensor:
        """Give the class probabilities (n, C) of rows."""
        # A module may compute in a precision of its own.
        logits: Tensor = self.net(X).to(self.fold.dtype)
        if self.shape[1] == 1:
            return logits.softmax(1)
        if self.temperature == 1:
            return logits.softmax(1) @ self.fold
        if self.temperature < _LOWEST_TEMPERATURE_OF_MASSES:
            return self.of_class_logits(logits)
        masses = (logits * (1 / self.temperature)).softmax(1) @ self.fold
        return masses.log_().mul_(self.temperature).softmax(1)

    def of_class_logits(self, logits: Tensor) -> Tensor:
        """Follow the formula to the letter."""
        scaled: Tensor = logits.unflatten(1, self.shape) / self.temperature
        return (self.temperature * scaled.logsumexp(2)).softmax(1)


class _Exported(ClassProbabilities):
    """The same of operations that are small and fast in ONNX.

    There is no matrix of zeros and ones, which the file would hold, and no loop over
    the rows, which is what torch makes of an embedding bag. Recurrent layers get one
    row more, which is cut off at the end: onnxruntime aborts the process where they
    have none.
    """

    def __init__(self, net: nn.Module, *form: Any) -> None:
        super().__init__(net, *form)
        self.adds_row = any(isinstance(m, nn.RNNBase) for m in net.modules())
        for module in net.modules():
            if type(module) is nn.EmbeddingBag:
                module.__class__ = _GatheredBag

    def forward(self, X: Tensor) -> Tensor:
        if self.adds_row:
            X = torch.cat([X, X.new_zeros(1, *X.shape[1:])])
        logits: Tensor = self.net(X).to(self.fold.dtype)
        if self.adds_row:
            logits = logits[:-1]
        return logits.softmax(1) if self.shape[1] == 1 else self.of_class_logits(logits)


class _GatheredBag(nn.EmbeddingBag):
    """An embedding bag for bags of equal length: all rows gathered, then reduced."""

    def forward(
        self,
        input: Tensor,
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
    ) -> Tensor:
        """Give the sum, mean or maximum (n, d) over the ids (n, t) of each row."""
        if input.dim() != 2 or per_sample_weights is not None or self.max_norm:
            bags: Tensor = super().forward(input, offsets, per_sample_weights)
            return bags
        counted = torch.ones_like(input, dtype=torch.bool)
        if self.padding_idx is not None:
            counted = input != self.padding_idx
        counted = counted.unsqueeze(2)
        n_counted = counted.sum(1)
        vectors = nn.functional.embedding(input, self.weight)
        if self.mode == "max":
            largest = vectors.masked_fill(~counted, -torch.inf).amax(1)
            return largest.where(n_counted > 0, 0.0)
        total = (vectors * counted).sum(1)
        return total / n_counted.clamp(min=1) if self.mode == "mean" else total


def class_probabilities(
    net: nn.Module, n_classes: int, n_subclasses: int, temperature: float
) -> ClassProbabilities:
    """Give a module of class probabilities that shares nothing with `net`.

    It is on the CPU, in evaluation mode, and no parameter requires a gradient.
    """
    return _detached(ClassProbabilities, net, n_classes, n_subclasses, temperature)


def export_onnx(
    net: nn.Module,
    n_classes: int,
    n_subclasses: int,
    temperature: float,
    rows: Tensor,
    path: Path,
) -> None:
    """Write class probabilities as an ONNX file in single precision.

    Its input ``X``, of rows like `rows` in shape and kind, and its output
    ``probabilities`` have any number of rows.

    Raises
    ------
    ImportError
        If onnx or onnxscript is not installed.
    ValueError
        If the file cannot be written or would be too large, or if torch cannot export
        the module.
    """
    n_numbers = sum(tensor.numel() for tensor in net.state_dict().values())
    validation.check_onnx_path(path, 4 * n_numbers)
    with torch_lock.held(), _quiet():
        validation.check_onnx_is_installed()
        module = _detached(_Exported, net, n_classes, n_subclasses, temperature).float()
        content = _onnx_bytes(
            module, rows.float() if rows.is_floating_point() else rows
        )
    with new_file(path, len(content), "path") as file:
        file.write(content)


def _detached(
    kind: type[ClassProbabilities], net: nn.Module, *form: Any
) -> ClassProbabilities:
    module = kind(copied(net).cpu(), *form)
    return module.eval().requires_grad_(False)


def _onnx_bytes(module: nn.Module, rows: Tensor) -> bytes:
    # Captured here, because older exporters go on to trace a module that depends on
    # values, and write what it did for one batch.
    any_number = ({0: torch.export.Dim("n_samples")},)
    try:
        captured = torch.export.export(
            module, (rows,), dynamic_shapes=any_number, strict=False
        )
        program = torch.onnx.export(
            captured,
            (rows,),
            dynamo=True,
            input_names=["X"],
            output_names=["probabilities"],
            verbose=False,
        )
    # A user's module may fail in any way, and the exporter with it.
    except Exception as reason:
        raise validation.cannot_be_exported(
            type(module.net).__name__, reason
        ) from reason
    # Nothing is returned only by the older exporter, which is not asked for.
    model = program.model_proto  # type: ignore[union-attr]
    _strip(model)
    content: bytes = model.SerializeToString()
    return content


def _strip(message: Any) -> None:
    """Remove what says where and by which lines of code a file was made."""
    for field, value in message.ListFields():
        if field.name in ("doc_string", "metadata_props"):
            message.ClearField(field.name)
        elif field.message_type is not None:
            for part in [value] if hasattr(value, "ListFields") else value:
                _strip(part)


@contextmanager
def _quiet() -> Iterator[None]:
    """Ignore what the exporter says of its own progress and libraries.

    `warnings.catch_warnings` of another thread may begin or end meanwhile. So the
    filter goes into the list of filters by hand, and out of each list that has it.
    """
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    ignored = "ignore", None, Warning, None, 0
    filters = cast(list[Any], warnings.filters)
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        filters.insert(0, ignored)
        yield
    finally:
        for changed in (filters, cast(list[Any], warnings.filters)):
            changed[:] = [each for each in changed if each is not ignored]
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
