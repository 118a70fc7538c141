"""Find the layers whose output a model returns, by running it on a few rows."""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

# Products in single precision may have fewer digits than their factors (TF32).
_EPS_OF_PRODUCTS = 2.0**-11
# One of many positions comes near by chance: only a copy counts, up to its log-softmax.
_EPS_OF_COPIES = 2.0**-18


class Run(NamedTuple):
    """One of the runs of a module in a call of the model, counted from the last, -1."""

    module: str
    from_last: int


@dataclass(frozen=True)
class Output:
    """What a model returns for a row, and the layers that compute it."""

    # Zero if the model does not return one vector per row.
    n_logits: int = 0
    # The softmax of the logits, or the sigmoid of a single one.
    are_probabilities: bool = False
    # The linear layer whose weights, times its input, are the logits.
    head: Run | None = None
    # The head, else the layer nearest to the output.
    layer: Run | None = None
    # A module whose output holds the logits of each row at one of its positions.
    position_source: Run | None = None
    # The linear layer whose weights come closest to the logits, and the largest
    # difference of its log-probabilities from the model's.
    closest: str | None = None
    difference: float = 0.0
    # The linear layer that ran last.
    last_linear: str | None = None

    def logits(self, returned: Any, n_rows: int) -> Tensor:
        """Return the logits (n_rows, n_logits) in what the model returned."""
        answer = answer_of(returned)
        if answer is None or answer.numel() != n_rows * self.n_logits:
            shape = None if answer is None else tuple(answer.shape)
            raise ValueError(
                f"model returned a tensor of shape {shape} for {n_rows} rows, and "
                f"{self.n_logits} logits for each of the first rows: it must return as "
                "many for every row."
            )
        logits = answer.float().reshape(n_rows, self.n_logits)
        if not self.are_probabilities:
            return logits
        info = torch.finfo(torch.float32)
        if self.n_logits == 1:
            return torch.logit(logits, eps=info.eps)
        return logits.clamp(min=info.tiny).log()


def find_output(model: nn.Module, call: Callable[[], Any], n_rows: int) -> Output:
    """Compare the outputs of all layers with what `call` of the model returns."""
    answer = _vectors(answer_of(call()), n_rows)
    # Numbers between 0 and 1 may be logits too: they are the sigmoid of a logit if some
    # module puts out that logit.
    for are_probabilities in _readings(answer):
        comparison = _Comparison(model, n_rows, answer, are_probabilities)
        comparison.run(call)
        if comparison.has_answer():
            break
    return comparison.output()


def nearest_positions(outputs: Tensor, logits: Tensor) -> Tensor:
    """Return the position (n,) in outputs (n, L, C) that holds the logits of a row."""
    return _gaps(outputs, _log_softmax(logits), -torch.inf).argmin(1)


def first_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Return the input of a module, which may be passed by name."""
    return [*args, *kwargs.values(), None][0]


def answer_of(returned: Any) -> Tensor | None:
    """Return the logits in what a module returned, else its first tensor."""
    if isinstance(returned, Tensor):
        return returned
    if isinstance(returned, Mapping):
        entries = dict(returned)
    elif hasattr(returned, "_asdict"):
        entries = returned._asdict()
    elif isinstance(returned, tuple | list):
        entries = dict(enumerate(returned))
    else:
        entries = dict(getattr(returned, "__dict__", {}))
    candidates = [entries.get("logits"), *entries.values()]
    return next((each for each in candidates if isinstance(each, Tensor)), None)


@dataclass
class _Compared:
    """A run of a module, and how far its output is from what the model returned."""

    module: str
    # How often the module had run before.
    number: int
    # The `id` of its input.
    input_id: int
    output_shape: torch.Size
    # Whether its output, at one position of each row, is what the model returned.
    is_answer: bool = False
    # Whether its output holds logits at several positions of a row.
    has_positions: bool = False
    # Largest difference of weights times input; None if it is not linear.
    weights_differ: float | None = None
    # Whether weights times input are what the model returned.
    is_head: bool = False


class _Comparison:
    """Compares the output of each module with what the model returned.

    A module is a layer if it has weights that mix features, and no module in it has. If
    an adapter runs beside a layer, the layer that takes the input of both counts.
    """

    def __init__(
        self,
        model: nn.Module,
        n_rows: int,
        answer: Tensor | None,
        are_probabilities: bool,
    ) -> None:
        self._model, self._n_rows = model, n_rows
        self._answer, self._are_probabilities = answer, are_probabilities
        self._least = -torch.inf
        if answer is not None and are_probabilities:
            self._target, self._least = _log_of_probabilities(answer)
        elif answer is not None:
            self._target = _log_softmax(answer)
        self._open: list[tuple[Any, int]] = []
        self._n_runs: Counter[str] = Counter()
        self._layers: list[_Compared] = []
        self._compared: list[_Compared] = []
        self._last_linear: str | None = None

    def run(self, call: Callable[[], Any]) -> None:
        """Call the model with hooks on all its modules."""
        with ExitStack() as stack:
            for name, module in self._model.named_modules():
                # No hook sees the parts of a scripted module run.
                if isinstance(module, torch.jit.ScriptModule):
                    continue
                for hook in (
                    module.register_forward_pre_hook(self._begin, with_kwargs=True),
                    module.register_forward_hook(partial(self._end, name)),
                ):
                    stack.callback(hook.remove)
            call()

    def has_answer(self) -> bool:
        """Return whether the model returns the output of some module."""
        return any(each.is_answer for each in self._compared)

    def output(self) -> Output:
        """Decide which layer is the head, and which is nearest to the output."""

        def nearness(layer: _Compared) -> tuple[bool, bool]:
            return layer.is_answer, self._has_logits(layer.output_shape)

        # Of several that are equal, the first of the reversed ones ran last.
        latest = self._compared[::-1]
        head = next((each for each in latest if each.is_head), None)
        nearest = max(self._layers[::-1], key=nearness, default=None)
        pooled = (e for e in self._compared if e.is_answer and e.has_positions)
        linear = (e for e in self._compared if e.weights_differ is not None)
        closest = min(linear, key=lambda e: e.weights_differ or 0.0, default=None)
        return Output(
            n_logits=0 if self._answer is None else self._answer.shape[1],
            are_probabilities=self._are_probabilities,
            head=self._run_of(head),
            layer=self._run_of(head or nearest),
            position_source=self._run_of(next(pooled, None)),
            closest=None if closest is None else closest.module,
            difference=0.0 if closest is None else closest.weights_differ or 0.0,
            last_linear=self._last_linear,
        )

    def _run_of(self, compared: _Compared | None) -> Run | None:
        if compared is None:
            return None
        name = compared.module
        return Run(name, compared.number - self._n_runs[name])

    def _begin(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._open.append((first_input(args, kwargs), len(self._layers)))

    def _end(self, name: str, module: nn.Module, args: Any, returned: Any) -> None:
        inputs, n_before = self._open.pop()
        number = self._n_runs[name]
        self._n_runs[name] += 1
        if isinstance(module, nn.Linear):
            self._last_linear = name
        outputs = answer_of(returned)
        if outputs is None or outputs.ndim == 0 or len(outputs) != self._n_rows:
            return
        outputs = outputs if outputs.ndim > 1 else outputs[:, None]
        compared = _Compared(name, number, id(inputs), outputs.shape)
        if self._may_be_logits(outputs):
            self._compare(compared, module, inputs, outputs)
            self._compared.append(compared)
        if not _are_embeddings(inputs, self._n_rows):
            return
        inner = self._layers[n_before:]
        readers = [each for each in inner if each.input_id == compared.input_id]
        adapted = [each for each in readers if each.output_shape == outputs.shape]
        if adapted and len(readers) > 1 and self._has_logits(outputs.shape):
            self._layers[n_before:] = adapted[:1]
        elif not inner and _mixes_features(module, inputs, outputs):
            self._layers.append(compared)

    def _has_logits(self, shape: torch.Size) -> bool:
        return self._answer is not None and self._answer.shape[1] in shape[1:]

    def _may_be_logits(self, outputs: Tensor) -> bool:
        return (
            self._answer is not None
            and outputs.is_floating_point()
            and outputs.ndim <= 3
            and outputs.shape[-1] == self._answer.shape[1]
            and outputs.numel() > 0
        )

    def _compare(
        self, compared: _Compared, module: nn.Module, inputs: Any, outputs: Tensor
    ) -> None:
        """Compare an output (n, C) or (n, L, C), and weights times input."""
        assert self._answer is not None
        eps = max(torch.finfo(each.dtype).eps for each in (outputs, self._answer))
        eps = max(eps, _EPS_OF_PRODUCTS)
        gaps = _gaps(outputs, self._target, self._least)
        compared.has_positions = outputs.ndim == 3
        rows = torch.arange(len(outputs))
        at = (rows, gaps.argmin(1)) if compared.has_positions else (rows,)
        compared.is_answer = self._is_close(
            gaps[at], _EPS_OF_COPIES if compared.has_positions else eps
        )
        if not _is_linear(module, inputs, outputs):
            return
        linear: Any = module
        embeddings, weight = _exact(inputs[at]), _exact(linear.weight)
        bias = weight.new_zeros(len(weight))
        if linear.bias is not None:
            bias = _exact(linear.bias)
        gaps = _gaps(embeddings @ weight.T + bias, self._target, self._least)
        # Rounding errors of the products add up like their squares.
        size = (embeddings.square() @ weight.T.square() + bias.square()).sqrt()
        compared.weights_differ = float(gaps.max())
        compared.is_head = self._is_close(gaps, eps, size.amax(1)) and (
            compared.is_answer or not compared.has_positions
        )

    def _is_close(self, gaps: Tensor, eps: float, size: Tensor | float = 0.0) -> bool:
        """Whether differences are no more than the rounding of numbers of a size."""
        assert self._answer is not None
        largest: Tensor | float = 1.0
        if not self._are_probabilities:
            largest = _exact(self._answer).abs().amax(1)
        return bool((gaps <= 4 * eps * (size + largest)).all())


def _vectors(answer: Tensor | None, n_rows: int) -> Tensor | None:
    """Return an answer as logits (n_rows, n_logits); None for one of another shape."""
    if answer is None or not answer.is_floating_point():
        return None
    # A model may squeeze what it returns for one row.
    shape = answer.shape if n_rows > 1 else (1, *answer.shape)
    is_vector = len(shape) and shape[0] == n_rows and sum(n != 1 for n in shape[1:]) < 2
    return answer.detach().reshape(n_rows, -1) if is_vector and answer.numel() else None


def _readings(answer: Tensor | None) -> list[bool]:
    """Whether an answer may be probabilities, in the order in which to try."""
    if answer is None or bool((answer < 0).any()) or bool((answer > 1).any()):
        return [False]
    if answer.shape[1] == 1:
        return [True, False]
    slack = max(1e-3, 4 * torch.finfo(answer.dtype).eps)
    return [bool(((_exact(answer).sum(1) - 1).abs() < slack).all())]


def _gaps(logits: Tensor, target: Tensor, least: float) -> Tensor:
    """Return the largest difference of each log-softmax of logits from a target."""
    log_p = _log_softmax(logits).clamp(min=least)
    target = target.clamp(min=least)
    if log_p.ndim == 3:
        target = target[:, None]
    return (log_p - target).abs().amax(-1)


def _log_softmax(logits: Tensor) -> Tensor:
    """Return log-probabilities of logits; a single one is the logit of a sigmoid."""
    if logits.shape[-1] == 1:
        logits = nn.functional.pad(logits, (1, 0))
    return _exact(logits).log_softmax(-1)


def _log_of_probabilities(probabilities: Tensor) -> tuple[Tensor, float]:
    """Return log-probabilities, and the least that their dtype can tell from zero."""
    info = torch.finfo(probabilities.dtype)
    least, doubles = info.tiny, _exact(probabilities)
    if doubles.shape[1] == 1:
        least, doubles = info.eps**0.5, torch.cat([1 - doubles, doubles], dim=1)
    return doubles.clamp(min=least).log(), math.log(least)


def _exact(tensor: Tensor) -> Tensor:
    """Return a tensor in double precision, which not every device has."""
    return tensor.detach().cpu().double()


def _are_embeddings(inputs: Any, n_rows: int) -> bool:
    is_tensor = isinstance(inputs, Tensor) and inputs.is_floating_point()
    return is_tensor and inputs.ndim > 1 and len(inputs) == n_rows


def _is_linear(module: nn.Module, inputs: Any, outputs: Tensor) -> bool:
    """Whether a module is a linear layer with weights that fit its input and output."""
    if not isinstance(module, nn.Linear) or not isinstance(inputs, Tensor):
        return False
    shape = outputs.shape[-1], inputs.shape[-1]
    return module.weight.is_floating_point() and module.weight.shape == shape


def _mixes_features(module: nn.Module, inputs: Tensor, outputs: Tensor) -> bool:
    """Whether a module has weights, and is no scale or shift of each feature."""
    state = list(module.state_dict().values())
    is_matrix = any(
        not isinstance(t, Tensor) or sum(n > 1 for n in t.shape) > 1 for t in state
    )
    return is_matrix or (bool(state) and inputs.shape != outputs.shape)
