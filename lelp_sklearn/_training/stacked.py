"""Several students trained together, as `EpochLoop` trains them one after the other.

The weights of modules with equal layers are stacked, so that a step of all of them is a
few batched products. Between layers and in the loss, the students are the first axis
and the rows of the batch the last, along which the arithmetic runs fastest.
"""

from collections.abc import Callable, Hashable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.optim.adamw import adamw

from lelp_sklearn._threads import copied
from lelp_sklearn._training.batches import (
    SparseLinear,
    TrainingTensors,
    select_rows,
    shuffled_batches,
    sparse_product,
)
from lelp_sklearn._training.cuda_graphs import MODULE_HOOKS, PARAMETER_HOOKS
from lelp_sklearn._training.device import denormals_are_zero, derive_seed, seeded
from lelp_sklearn._training.loop import Trainer
from lelp_sklearn._training.objective import Objective, Schedule, schedule_value

# Weights by name, of shape (n_students, ...).
Weights = dict[str, Tensor]
# Returns the outputs (n_students, n_outputs, n_rows) of rows.
Forward = Callable[[Weights, Tensor], Tensor]


def group_alike(trainers: Sequence[Trainer]) -> tuple[list[list[int]], list[int]]:
    """Group the positions of trainers that `train_together` can train together.

    The trainers have the same rows, and modules that are built alike: only sizes and
    weights may differ. Also returns the positions of those that it cannot train.
    """
    groups: dict[Hashable, list[int]] = {}
    for position, trainer in enumerate(trainers):
        groups.setdefault(_key(trainer), []).append(position)
    together, alone = [], []
    for positions in groups.values():
        first = trainers[positions[0]]
        if _uses_adamw(first) and _can_stack(first):
            together.append(positions)
        else:
            alone += positions
    return together, alone


def train_together(
    trainers: Sequence[Trainer], after_epoch: Callable[[int], None] | None = None
) -> list[bool]:
    """Train the modules of a group in place, over all epochs.

    `after_epoch` is called with the number of each complete epoch, from 1, when the
    modules have its weights; None skips that. Returns, for each student, whether its
    losses and weights were finite throughout.
    """
    stack = _Stack(trainers)
    for epoch in range(trainers[0].max_epochs):
        stack.run_epoch(epoch)
        if after_epoch is not None:
            stack.unstack()
            after_epoch(epoch + 1)
    stack.unstack()
    return stack.is_finite.tolist()


class _Stack:
    """Trains a group of students in a common order of rows."""

    def __init__(self, trainers: Sequence[Trainer]) -> None:
        first = trainers[0]
        self.trainers, self.first = trainers, first
        self.device = first.rows.X.device
        modules = [trainer.module for trainer in trainers]
        self.weights = stack_weights(modules)
        self.forward = _make_forward(modules[0])
        self.optimizer = StackedAdamW(trainers, self._trainable())
        self.objective = _stack_objectives(trainers)
        self.targets, self.targets_of = _stack_targets(trainers)
        labels = [trainer.rows.label_targets for trainer in trainers]
        self.labels = next((each for each in labels if each is not None), None)
        self.row_weights = _stack_row_weights(trainers)
        self.is_finite = torch.ones(len(trainers), dtype=torch.bool, device=self.device)

    def run_epoch(self, epoch: int) -> None:
        """Train for one epoch, which counts from 0."""
        for trainer in self.trainers:
            trainer.module.train()
        with denormals_are_zero(), torch.enable_grad(), ExitStack() as contexts:
            seed = derive_seed(self.first.seed, epoch)
            contexts.enter_context(seeded(seed, self.device))
            batches = shuffled_batches(self.first.train_index, self.first.batch_size)
            for step, index in enumerate(batches):
                progress = (epoch + step / len(batches)) / self.first.max_epochs
                self._step(index, progress, (epoch, step))
        # A loss that is not finite has a gradient that is not.
        finite = [weight.isfinite().flatten(1).all(1) for weight in self._trainable()]
        self.is_finite &= torch.stack(finite).all(0)

    def unstack(self) -> None:
        """Copy the weights into the modules."""
        with torch.no_grad():
            for i, trainer in enumerate(self.trainers):
                trainer.module.zero_grad()
                trainer.module.eval()
                for name, parameter in trainer.module.named_parameters():
                    parameter.copy_(self.weights[name][i])

    def _step(self, index: Tensor, progress: float, at: tuple[int, int]) -> None:
        """Update the weights by the loss of a batch."""
        X = select_rows(self.first.rows.X, index)
        if self.first.augment is not None:
            X = self.first.augment(X)
        self.optimizer.zero_grad()
        outputs = self.forward(self.weights, X)
        targets = self.targets.index_select(1, index).index_select(0, self.targets_of)
        labels = None
        if self.labels is not None:
            labels = self.labels.index_select(0, index).T
        losses = self.objective.losses(
            outputs.to(targets.dtype),
            TrainingTensors(X, targets.mT, labels),
            self._subclass_weight(progress, at),
        )
        if self.row_weights is None:
            losses = losses / len(index)
        else:
            weight = self.row_weights.index_select(1, index)
            total = weight.sum(1, keepdim=True)
            # Of a batch without weight a student learns nothing.
            losses = losses * (weight / total.clamp(min=torch.finfo(weight.dtype).tiny))
        # The students share no weight, so that each has the gradient of its own loss.
        losses.sum().backward()
        self.optimizer.step(progress, at)

    def _subclass_weight(self, progress: float, at: tuple[int, int]) -> float | Tensor:
        """Return λ (n_students, 1); 0.0, which skips a part of the loss, for all 0."""
        schedules = [each.subclass_weight_schedule for each in self.trainers]
        values = [schedule_value(s, "subclass_weight", progress, at) for s in schedules]
        return self.targets.new_tensor(values).unsqueeze(1) if any(values) else 0.0

    def _trainable(self) -> list[Tensor]:
        return [weight for weight in self.weights.values() if weight.requires_grad]


def _stack_objectives(trainers: Sequence[Trainer]) -> Objective:
    """Return the loss of all students at once."""
    rows, objectives = trainers[0].rows, [each.objective for each in trainers]
    names = "temperature", "within_class_temperature", "label_weight"
    columns: dict[str, Any] = {
        name: rows.soft_targets.new_tensor([[getattr(o, name)] for o in objectives])
        for name in names
    }
    return replace(objectives[0], **columns)


class StackedAdamW:
    """torch's AdamW over stacked weights.

    Students with the same learning rate and decay share a call of the fused kernel.
    """

    def __init__(self, trainers: Sequence[Trainer], weights: list[Tensor]) -> None:
        self.weights = weights
        self.max_grad_norm = trainers[0].max_grad_norm
        self.options = trainers[0].optimizer.param_groups[0]
        alike: dict[tuple[float, float, Schedule | None], list[int]] = {}
        for position, trainer in enumerate(trainers):
            (group,) = trainer.optimizer.param_groups
            schedule = trainer.learning_rate_schedule
            key = float(group["lr"]), float(group["weight_decay"]), schedule
            alike.setdefault(key, []).append(position)
        self.parts = [
            _AdamWPart(rate, weight_decay, schedule, positions, weights)
            for (rate, weight_decay, schedule), positions in alike.items()
        ]

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for weight in self.weights:
            weight.grad = None

    @torch.no_grad()
    def step(self, progress: float, at: tuple[int, int]) -> None:
        """Update all weights, at the learning rates of a progress."""
        # As in an optimizer, a weight that the loss does not depend on stays.
        used = [i for i, w in enumerate(self.weights) if w.grad is not None]
        gradients = {i: cast(Tensor, self.weights[i].grad) for i in used}
        if self.max_grad_norm is not None:
            _clip(list(gradients.values()), self.max_grad_norm)
        slices = {i: gradient.unbind(0) for i, gradient in gradients.items()}
        beta1, beta2 = self.options["betas"]
        for part in self.parts:
            chosen = [(i, position) for position in part.positions for i in used]
            adamw(
                [part.weights[key] for key in chosen],
                [slices[i][position] for i, position in chosen],
                [part.means[key] for key in chosen],
                [part.squares[key] for key in chosen],
                [],
                [part.n_steps[key] for key in chosen],
                fused=True,
                lr=part.learning_rate(progress, at),
                weight_decay=part.weight_decay,
                beta1=beta1,
                beta2=beta2,
                eps=self.options["eps"],
                amsgrad=False,
                maximize=False,
            )


class _AdamWPart:
    """Weights with the same learning rate and decay, and their running averages.

    Tensors are known by the number of the weight and the position of the student.
    """

    def __init__(
        self,
        rate: float,
        weight_decay: float,
        schedule: Schedule | None,
        positions: list[int],
        weights: list[Tensor],
    ) -> None:
        self.rate, self.weight_decay, self.schedule = rate, weight_decay, schedule
        self.positions = positions
        slices = [weight.detach().unbind(0) for weight in weights]
        self.weights = {
            (i, position): of_weight[position]
            for i, of_weight in enumerate(slices)
            for position in positions
        }
        self.means = {k: torch.zeros_like(w) for k, w in self.weights.items()}
        self.squares = {k: torch.zeros_like(w) for k, w in self.weights.items()}
        # torch's fused kernels count in single precision.
        self.n_steps = {
            k: w.new_zeros((), dtype=torch.float32) for k, w in self.weights.items()
        }

    def learning_rate(self, progress: float, at: tuple[int, int]) -> float:
        """Return the learning rate at a progress."""
        if self.schedule is None:
            return self.rate
        name = "learning_rate_schedule"
        return self.rate * schedule_value(self.schedule, name, progress, at)


def _clip(gradients: list[Tensor], max_norm: float) -> None:
    """Clip the gradients of each student to a norm, as `clip_grad_norm_` does."""
    norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients])
    factors = (max_norm / (norms.norm(dim=0) + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factors.view(-1, *[1] * (gradient.ndim - 1)))


def stack_weights(modules: Sequence[nn.Module]) -> Weights:
    """Return the weights of modules with equal layers, (n_students, ...) by name."""
    parameters = [dict(module.named_parameters()) for module in modules]
    return {
        name: torch.stack([of_one[name].detach() for of_one in parameters])
        .contiguous()
        .requires_grad_(parameter.requires_grad)
        for name, parameter in parameters[0].items()
    }


def _make_forward(module: nn.Module) -> Forward:
    """Return the function that computes the outputs of all students."""
    layers = _perceptron_layers(module)
    if layers is not None:
        return _PerceptronForward(layers)

    def forward(weights: Weights, X: Tensor) -> Tensor:
        return _call_stacked(module, weights, X).mT

    return forward


def _call_stacked(module: nn.Module, weights: Weights, X: Tensor) -> Tensor:
    """Return the outputs (n_students, n_rows, n_outputs) of any module."""

    def call(of_one: Weights) -> Tensor:
        outputs: Tensor = functional_call(module, of_one, (X,))
        return outputs

    # All students draw the same numbers, as they do one by one.
    outputs: Tensor = vmap(call, randomness="same")(weights)
    return outputs


class _PerceptronForward:
    """Outputs of stacked perceptrons by batched products.

    Between two layers values have the shape (n_students, n_units, n_rows).
    """

    def __init__(self, layers: list[tuple[str, nn.Module]]) -> None:
        self.layers = layers

    def __call__(self, weights: Weights, X: Tensor) -> Tensor:
        """Return outputs (n_students, n_outputs, n_rows)."""
        (name, first), *others = self.layers
        weight, bias = weights[f"{name}weight"], weights.get(f"{name}bias")
        if X.layout == torch.sparse_csr:
            products = [sparse_product(X, of_one) for of_one in weight.unbind(0)]
            hidden = torch.stack(products).mT
        else:
            if isinstance(first, SparseLinear):
                weight = weight.mT
            # The first layers of all students have the same rows: one product.
            product = weight.flatten(0, 1) @ X.flatten(1).T
            hidden = product.unflatten(0, weight.shape[:2])
        if bias is not None:
            hidden = hidden + bias.unsqueeze(2)
        for name, layer in others:
            if isinstance(layer, nn.ReLU):
                hidden = torch.relu(hidden)
                continue
            weight, bias = weights[f"{name}weight"], weights.get(f"{name}bias")
            if bias is None:
                hidden = torch.bmm(weight, hidden)
            else:
                hidden = torch.baddbmm(bias.unsqueeze(2), weight, hidden)
        return hidden


def _perceptron_layers(module: nn.Module) -> list[tuple[str, nn.Module]] | None:
    """Return the layers of a perceptron with ReLU by name; None for other modules."""
    layers = [
        (f"{name}." if name else "", layer)
        for name, layer in module.named_modules(remove_duplicate=False)
        if type(layer) is not nn.Sequential
    ]
    kinds = [type(layer) for _, layer in layers]
    # A flattening of the rows at the beginning is part of the forward pass.
    if kinds[:1] == [nn.Flatten]:
        layers, kinds = layers[1:], kinds[1:]
    weights = module.named_parameters(remove_duplicate=False)
    if (
        kinds[:1] in ([nn.Linear], [SparseLinear])
        and set(kinds[1:]) <= {nn.Linear, nn.ReLU}
        # No weight is of two layers.
        and len(list(weights)) == len(list(module.parameters()))
        and not _has_hooks(module)
    ):
        return layers
    return None


def _can_stack(trainer: Trainer) -> bool:
    """Return whether a module gives the same outputs if it is called on a stack."""
    layers, is_dense = _perceptron_layers(trainer.module), _is_dense(trainer.rows.X)
    if layers is not None:
        return is_dense or isinstance(layers[0][1], SparseLinear)
    if _has_hooks(trainer.module) or not is_dense:
        return False
    module = copied(trainer.module).train()
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    X, seed = trainer.rows.X[:2].clone(), trainer.seed
    try:
        with torch.no_grad():
            with seeded(seed, X.device):
                stacked = _call_stacked(module, stack_weights([module, module]), X)
            with seeded(seed, X.device):
                alone = module(X)
    # Whatever a module does that vmap does not take.
    except Exception:
        return False
    is_unchanged = all(
        torch.equal(before[name], buffer) for name, buffer in module.named_buffers()
    )
    return is_unchanged and torch.allclose(stacked[0], alone, rtol=1e-4, atol=1e-5)


def _is_dense(X: Tensor) -> bool:
    return X.layout == torch.strided


def _has_hooks(module: nn.Module) -> bool:
    """Return whether hooks are set, which a call on a stack would not run."""
    hooks = [getattr(layer, n) for layer in module.modules() for n in MODULE_HOOKS]
    hooks += [getattr(p, n) for p in module.parameters() for n in PARAMETER_HOOKS]
    return any(hooks)


def _key(trainer: Trainer) -> Hashable:
    """Return what students that are trained together have in common."""
    group = trainer.optimizer.param_groups[0]
    module, rows, precision = trainer.module, trainer.rows, trainer.precision
    parameters = [
        (name, tuple(p.shape), str(p.dtype), p.requires_grad)
        for name, p in module.named_parameters()
    ]
    return (
        str(module),
        tuple(parameters),
        (str(rows.X.device), str(rows.X.dtype), rows.soft_targets.shape),
        trainer.train_index.cpu().numpy().tobytes(),
        (trainer.max_epochs, trainer.batch_size, trainer.max_grad_norm, trainer.seed),
        (id(trainer.augment), precision.dtype, trainer.ranks.size),
        (type(trainer.optimizer), group.get("betas"), group.get("eps")),
    )


def _uses_adamw(trainer: Trainer) -> bool:
    """Return whether the steps are those of `StackedAdamW`, in full precision."""
    optimizer, (group, *others) = trainer.optimizer, trainer.optimizer.param_groups
    return (
        type(optimizer) is torch.optim.AdamW
        and not others
        and not group["amsgrad"]
        and not group["maximize"]
        and group["fused"]
        and trainer.precision.dtype is None
        and trainer.ranks.size == 1
    )


def _stack_targets(trainers: Sequence[Trainer]) -> tuple[Tensor, Tensor]:
    """Return the different targets, (n_targets, n, n_outputs), and which has each."""
    different: list[Tensor] = []
    positions = []
    for trainer in trainers:
        targets = trainer.rows.soft_targets
        same = [torch.equal(targets, other) for other in different]
        if not any(same):
            different.append(targets)
            same.append(True)
        positions.append(same.index(True))
    device = different[0].device
    return torch.stack(different), torch.tensor(positions, device=device)


def _stack_row_weights(trainers: Sequence[Trainer]) -> Tensor | None:
    """Return the row weights (n_students, n); None if all are equal."""
    weights = [trainer.rows.weight for trainer in trainers]
    if all(weight is None for weight in weights):
        return None
    ones = trainers[0].rows.soft_targets.new_ones(len(trainers[0].rows.X))
    return torch.stack([ones if each is None else each for each in weights])
