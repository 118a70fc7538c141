"""Export of a student: a torch module of class probabilities, and an ONNX file."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lelp_sklearn._callers import ignored_warnings
from lelp_sklearn._files import check_writable, new_file
from lelp_sklearn._threads import copied
from lelp_sklearn._training.device import torch_lock

# Below this temperature the mass of a class can vanish in single precision although
# its probability, a power of the mass, does not.
_LOWEST_TEMPERATURE_OF_MASSES = 0.25

# The largest file that protobuf, the format of ONNX files, can hold.
_LARGEST_FILE = 2**31 - 1
# Characters of torch's error that a message of ours repeats.
_LONGEST_CAUSE = 200

_LOGGERS = ("torch", "onnxscript", "onnx_ir")


class ClassProbabilities(nn.Module):
    r"""A copy of a module, followed by the class probabilities of its outputs.

    It is on the CPU, in evaluation mode, and no parameter requires a gradient.
    Its output is the softmax of the class logits
    :math:`A_c = \tau \log \sum_s \exp(a_{c,s} / \tau)`. With the mass
    :math:`m_c = \sum_s \mathrm{softmax}(a / \tau)_{c,s}` of a class it is m itself at
    :math:`\tau = 1`, else the softmax of :math:`\tau \log m`. That needs fewer and
    cheaper operations, which is what counts for a single row.
    """

    class_indicator: Tensor

    def __init__(
        self, net: nn.Module, n_classes: int, n_subclasses: int, temperature: float
    ) -> None:
        super().__init__()
        self.net = copied(net).cpu()
        self.eval().requires_grad_(False)
        self.shape = (n_classes, n_subclasses)
        self.temperature = temperature
        # The last layer returns the logits, in its own precision.
        dtypes = [p.dtype for p in net.parameters() if p.is_floating_point()]
        indicator = torch.eye(n_classes, dtype=dtypes[-1] if dtypes else None)
        indicator = indicator.repeat_interleave(n_subclasses, dim=0)
        self.register_buffer("class_indicator", indicator, persistent=False)

    def forward(self, X: Tensor) -> Tensor:
        """Return the class probabilities (n, C) of rows."""
        # A module may compute in a precision of its own.
        logits: Tensor = self.net(X).to(self.class_indicator.dtype)
        if self.shape[1] == 1:
            return logits.softmax(1)
        if self.temperature == 1:
            return logits.softmax(1) @ self.class_indicator
        if self.temperature < _LOWEST_TEMPERATURE_OF_MASSES:
            return self.from_class_logits(logits)
        masses = (logits * (1 / self.temperature)).softmax(1) @ self.class_indicator
        return masses.log_().mul_(self.temperature).softmax(1)

    def from_class_logits(self, logits: Tensor) -> Tensor:
        """Compute the class probabilities from the class logits."""
        scaled: Tensor = logits.unflatten(1, self.shape) / self.temperature
        return (self.temperature * scaled.logsumexp(2)).softmax(1)


class _Exported(ClassProbabilities):
    """The same with operations that are small and fast in ONNX.

    It has no matrix of zeros and ones, which the file would hold, and no loop over the
    rows, which torch makes of an embedding bag. Recurrent layers get one row more,
    which is cut off at the end: with no row, onnxruntime aborts the process.
    """

    def __init__(
        self, net: nn.Module, n_classes: int, n_subclasses: int, temperature: float
    ) -> None:
        super().__init__(net, n_classes, n_subclasses, temperature)
        self.adds_row = any(isinstance(m, nn.RNNBase) for m in net.modules())
        for module in self.modules():
            if type(module) is nn.EmbeddingBag:
                module.__class__ = _GatheredBag

    def forward(self, X: Tensor) -> Tensor:
        if self.adds_row:
            X = torch.cat([X, X.new_zeros(1, *X.shape[1:])])
        logits: Tensor = self.net(X).to(self.class_indicator.dtype)
        if self.adds_row:
            logits = logits[:-1]
        if self.shape[1] == 1:
            return logits.softmax(1)
        return self.from_class_logits(logits)


class _GatheredBag(nn.EmbeddingBag):
    """An embedding bag for bags of equal length: all rows gathered, then reduced."""

    def forward(
        self,
        input: Tensor,
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
    ) -> Tensor:
        """Return the sum, mean or maximum (n, d) over the ids (n, t) of each row."""
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


def export_onnx(
    net: nn.Module,
    n_classes: int,
    n_subclasses: int,
    temperature: float,
    rows: Tensor,
    path: str | PathLike[str],
) -> None:
    """Write class probabilities as an ONNX file in single precision.

    Its input ``X``, with the shape and kind of `rows`, and its output
    ``probabilities`` have any number of rows.
    """
    if not isinstance(path, str | PathLike):
        raise TypeError(
            f"path must be the name of a file, a str or a path-like object; got "
            f"{type(path).__name__}."
        )
    target = Path(path)
    n_bytes = 4 * sum(tensor.numel() for tensor in net.state_dict().values())
    check_writable(target, "path", ".onnx")
    if n_bytes > _LARGEST_FILE:
        raise ValueError(
            f"The student has {n_bytes:,} bytes of weights in single precision and one "
            f"ONNX file holds at most {_LARGEST_FILE:,}; use to_module instead."
        )
    with torch_lock.held(), _quiet():
        _check_onnx_is_installed()
        module = _Exported(net, n_classes, n_subclasses, temperature).float()
        content = _onnx_bytes(
            module, rows.float() if rows.is_floating_point() else rows
        )
    with new_file(target, len(content), "path") as file:
        file.write(content)


def _check_onnx_is_installed() -> None:
    for name in ("onnx", "onnxscript"):
        try:
            import_module(name)
        except ImportError as reason:
            raise ImportError(
                f"to_onnx needs {name}, which the extra 'onnx' brings: "
                "python -m pip install 'lelp-sklearn[onnx]'"
            ) from reason


def _onnx_bytes(module: _Exported, rows: Tensor) -> bytes:
    # Captured here, because older exporters trace a module that depends on values, and
    # write what it did for one batch.
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
        cause = reason
        while isinstance(cause.__cause__, Exception):
            cause = cause.__cause__
        first_line = str(cause).strip().partition("\n")[0]
        raise ValueError(
            f"module ({type(module.net).__name__}) cannot be exported to ONNX with any "
            f"number of rows: {type(cause).__name__}, {first_line[:_LONGEST_CAUSE]} "
            "(torch's own error is the cause of this one). Mind operations that have "
            "no counterpart in ONNX, and Python code that depends on the number of "
            "rows or on values. to_module needs no export."
        ) from reason
    # Nothing is returned only by the older exporter, which is not asked for.
    model = program.model_proto  # type: ignore[union-attr]
    _strip(model)
    content: bytes = model.SerializeToString()
    return content


def _strip(message: Any) -> None:
    """Remove the paths and lines of code from which a file was made."""
    for field, value in message.ListFields():
        if field.name in ("doc_string", "metadata_props"):
            message.ClearField(field.name)
        elif field.message_type is not None:
            for part in [value] if hasattr(value, "ListFields") else value:
                _strip(part)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the logs and warnings of the exporter about itself and its libraries."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        with ignored_warnings():
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
