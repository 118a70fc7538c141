"""Optimizers: named or returned by a callable; AdamW for sparse gradients."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from lelp_sklearn._training.batches import SparseLinear
from lelp_sklearn._training.device import torch_lock

Optimizer = torch.optim.Optimizer
OptimizerParam = str | Callable[..., Optimizer]


def make_optimizer(
    optimizer: OptimizerParam,
    module: nn.Module,
    learning_rate: float,
    weight_decay: float,
) -> Optimizer:
    """Return the optimizer of a module's trainable parameters.

    It decides whether the gradients of the layers for sparse rows are sparse. Schedules
    multiply the "initial_lr" of a group of parameters.
    """
    for layer in module.modules():
        if isinstance(layer, SparseLinear):
            layer.sparse_gradient = optimizer == "sparse_adam"
    parameters = [p for p in module.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError(
            "module has no parameter that requires a gradient: set requires_grad=True "
            "on the parameters to train."
        )
    settings: dict[str, Any] = {"lr": learning_rate, "weight_decay": weight_decay}
    with torch_lock.held():
        if callable(optimizer):
            made = _check_returned(optimizer(parameters, **settings))
        elif optimizer == "sparse_adam":
            made = SparseAdamW(parameters, **settings)
        else:
            is_fused = all(p.is_floating_point() for p in parameters)
            made = torch.optim.AdamW(parameters, **settings, fused=is_fused)
    for group in made.param_groups:
        group.setdefault("initial_lr", float(group["lr"]))
    return made


def check_optimizer(
    optimizer: OptimizerParam, learning_rate: float, weight_decay: float
) -> None:
    """Raise, before work starts, if a callable returns no usable optimizer.

    It is called for a single parameter that belongs to no module.
    """
    if not callable(optimizer):
        return
    if isinstance(optimizer, type) and issubclass(optimizer, Optimizer):
        _check_step(optimizer)
    try:
        parameters = [nn.Parameter(torch.zeros(1, 1))]
        with torch_lock.held():
            made = optimizer(parameters, lr=learning_rate, weight_decay=weight_decay)
    except TypeError as reason:
        name = getattr(optimizer, "__name__", repr(optimizer))
        raise TypeError(
            f"optimizer {name} cannot be called as optimizer(parameters, lr=..., "
            f"weight_decay=...): {reason}. Pass a function of these three that "
            "returns a torch.optim.Optimizer."
        ) from reason
    # It may depend on the parameters of the module.
    except Exception:
        return
    _check_returned(made)


def continue_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Give a new optimizer the state of an earlier one, and keep its own settings.

    Its own settings are the learning rates and weight decays. With other parameters,
    as after some were frozen, it starts again.
    """
    groups = optimizer.param_groups
    earlier_groups = state["param_groups"]
    if [len(g["params"]) for g in groups] != [len(g["params"]) for g in earlier_groups]:
        return
    for earlier, group in zip(earlier_groups, groups, strict=True):
        settings = ("lr", "initial_lr", "weight_decay")
        earlier.update({name: group[name] for name in settings if name in group})
    optimizer.load_state_dict(state)


def _check_returned(made: Any) -> Optimizer:
    if not isinstance(made, Optimizer):
        raise TypeError(
            f"optimizer returned {type(made).__name__}; it must return a "
            "torch.optim.Optimizer."
        )
    _check_step(type(made))
    return made


def _check_step(kind: type[Optimizer]) -> None:
    """Raise if a class of optimizers takes no step without a closure."""
    try:
        inspect.signature(kind.step).bind(None)
    except ValueError:  # built in, and without a signature
        return
    except TypeError as reason:
        raise TypeError(
            f"optimizer {kind.__name__} needs a closure, which evaluates the loss "
            "again and is not given: choose one whose step() takes no argument."
        ) from reason


@dataclass
class MissedSteps:
    """What the steps since the last gradient of a row do to it, for rows of a weight.

    `last_step` (n_rows,) is the step in which a row had its last gradient, 0 if it had
    none. `decay` and `drift` are by that step.
    """

    last_step: Tensor
    decay: Tensor
    drift: Tensor

    @classmethod
    def start(cls, weight: Tensor) -> "MissedSteps":
        """Return the state of rows that have missed nothing."""
        last_step = torch.zeros(len(weight), dtype=torch.long, device=weight.device)
        return cls(last_step, weight.new_ones(1), weight.new_zeros(1))

    def count(self, step: float, group: dict[str, Any]) -> None:
        """Let another step be missed by all rows."""
        rate, (beta1, beta2) = group["lr"], group["betas"]
        kept = 1 - rate * group["weight_decay"]
        size = rate * (1 - beta2**step) ** 0.5 / (1 - beta1**step)
        n_missed = torch.arange(len(self.decay), 0, -1).to(self.decay)
        moved = size * (beta1 / beta2**0.5) ** n_missed
        self.decay = torch.cat([self.decay * kept, self.decay.new_ones(1)])
        self.drift = torch.cat([self.drift * kept + moved, self.drift.new_zeros(1)])

    def make_up(
        self, last_step: Tensor, rows: tuple[Tensor, ...], group: dict[str, Any]
    ) -> None:
        """Bring weights and moments of rows up to date, in place."""
        weights, exp_avg, exp_avg_sq = rows
        n_missed = (len(self.decay) - 1 - last_step).to(weights).unsqueeze(1)
        decay, drift = (
            factor.index_select(0, last_step).unsqueeze(1)
            for factor in (self.decay, self.drift)
        )
        # torch is ten times slower at the root of 0, which inactive units have.
        directions = exp_avg * (exp_avg_sq + group["eps"] ** 2).rsqrt_()
        weights.mul_(decay).addcmul_(directions, drift, value=-1)
        beta1, beta2 = group["betas"]
        exp_avg.mul_(beta1**n_missed)
        exp_avg_sq.mul_(beta2**n_missed)


class SparseAdamW(torch.optim.AdamW):
    r"""AdamW that makes up the steps in which a row of a weight had no gradient.

    It does so for weights whose gradients are sparse tensors, when a row has its next
    gradient or in `complete_rows`. Up to `eps`, the row is then what AdamW makes of the
    same gradients. In the i-th step since the last gradient of a row, step t of all,
    AdamW changes its weights w to

    .. math::

        (1 - \eta_t \lambda) w - \eta_t \frac{\sqrt{1 - \beta_2^t}}{1 - \beta_1^t}
            \left(\frac{\beta_1}{\sqrt{\beta_2}}\right)^i \frac{m}{\sqrt{v}}

    where m and v are the moments after that gradient. So all such steps together
    multiply w by a decay and add a drift times :math:`m / \sqrt{v}`, and both are the
    same for all rows whose last gradient was in the same step.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update the touched rows, then all weights whose gradient is dense."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None and weight.grad.is_sparse:
                    self._update_rows(weight, weight.grad.coalesce(), group)
                    # AdamW skips weights without a gradient.
                    weight.grad = None
                elif weight.grad is not None:
                    self._complete(weight, group)
        return super().step(closure)

    @torch.no_grad()
    def complete_rows(self) -> None:
        """Make up what rows have missed; then all state is that of AdamW."""
        for group in self.param_groups:
            for weight in group["params"]:
                self._complete(weight, group)

    def _complete(self, weight: nn.Parameter, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if (missed := state.pop("missed", None)) is not None:
            rows = weight, state["exp_avg"], state["exp_avg_sq"]
            missed.make_up(missed.last_step, rows, group)

    def _update_rows(
        self, weight: nn.Parameter, gradient: Tensor, group: dict[str, Any]
    ) -> None:
        state, (beta1, beta2) = self.state[weight], group["betas"]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(weight)
            state["exp_avg_sq"] = torch.zeros_like(weight)
        if "missed" not in state:
            state["missed"] = MissedSteps.start(weight)
        missed, index = state["missed"], gradient.indices()[0]
        tensors = weight, state["exp_avg"], state["exp_avg_sq"]
        rows = tuple(tensor.index_select(0, index) for tensor in tensors)
        missed.make_up(missed.last_step.index_select(0, index), rows, group)
        weights, exp_avg, exp_avg_sq = rows
        adamw(
            [weights],
            [gradient.values()],
            [exp_avg],
            [exp_avg_sq],
            [],
            [state["step"]],
            # Elsewhere it wants the number of the step on the device.
            fused=weight.is_cpu,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        for tensor, updated in zip(tensors, rows, strict=True):
            tensor.index_copy_(0, index, updated)
        missed.count(float(state["step"]), group)
        missed.last_step.index_fill_(0, index, len(missed.decay) - 1)
