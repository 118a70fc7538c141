"""Recorded steps: which are, and that a replay is the step with other rows."""

import random
import warnings
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from lelp_sklearn import LELPStudentClassifier
from lelp_sklearn._training import graphs, loop
from tests.student_problems import MyNet, make_soft_targets, weights_of


class Stream:
    """Stands in for a CUDA stream."""

    def __init__(self, device=None):
        pass

    def wait_stream(self, other):
        pass


class Replays(graphs.Recording):
    """Replays a step on the CPU, by taking it anew on the tensors it was made with."""

    made = 0

    def __init__(self, step, index, weight, pool):
        Replays.made += 1
        self._index, self._weight = index, weight
        self._graph = self
        self.step = step

    def replay(self, *arguments):
        if arguments:
            return super().replay(*arguments)
        self._made = self.step(self._index, self._weight)


@pytest.fixture
def recording(monkeypatch):
    """Let the CPU pass for a GPU."""
    monkeypatch.setattr(Replays, "made", 0)
    monkeypatch.setattr(graphs, "Recording", Replays)
    monkeypatch.setattr(graphs, "RECORDING_DEVICE", "cpu")
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: None)
    return Replays


def quick(**options):
    defaults = {"max_epochs": 10, "batch_size": 64, "random_state": 0, "device": "cpu"}
    return LELPStudentClassifier(**{**defaults, **options})


@pytest.fixture(scope="module")
def problem():
    return make_soft_targets()


def both(problem, monkeypatch, *, sample_weight=None, **options):
    """Fit with recorded steps and with plain ones."""
    X, y, targets = problem
    given = {"soft_targets": targets, "sample_weight": sample_weight}
    recorded = quick(**options).fit(X, y, **given)
    monkeypatch.setattr(loop, "can_be_recorded", lambda *of: False)
    return recorded, quick(**options).fit(X, y, **given)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"learning_rate_schedule": "constant", "subclass_weight": 0.5},
        {"learning_rate_schedule": "one_cycle", "max_grad_norm": 0.1},
        {"within_class_temperature": 2.0, "label_weight": 0.3},
        {"precision": "bfloat16", "subclass_weight": 0.0},
    ],
)
def test_replayed_steps_learn_what_plain_ones_do(
    problem, recording, monkeypatch, options
):
    recorded, plain = both(problem, monkeypatch, **options)
    assert recording.made
    assert_allclose(weights_of(recorded), weights_of(plain), rtol=1e-4, atol=1e-5)
    assert_allclose(recorded.loss_curve_, plain.loss_curve_, rtol=1e-5)


def test_weighted_rows_are_weighed_in_each_replay(problem, recording, monkeypatch):
    weight = torch.linspace(0.1, 2, 240).numpy()
    recorded, plain = both(problem, monkeypatch, sample_weight=weight)
    assert recording.made
    assert_allclose(weights_of(recorded), weights_of(plain), rtol=1e-4, atol=1e-5)
    assert_allclose(recorded.loss_curve_, plain.loss_curve_, rtol=1e-5)


def test_each_kind_of_step_is_recorded_once(problem, recording):
    X, y, targets = problem
    quick(max_epochs=20).fit(X, y, soft_targets=targets)
    # 64 or 48 rows, with the subclasses and without.
    assert recording.made == 4


def test_few_steps_are_not_recorded(problem, recording):
    X, y, targets = problem
    quick(max_epochs=1).fit(X, y, soft_targets=targets)
    assert not recording.made


def test_optimizer_keeps_its_own_kind_of_learning_rate(problem, recording):
    X, y, targets = problem
    kept = []

    def optimizer(parameters, lr, weight_decay):
        made = torch.optim.Adam(parameters, lr=lr, fused=True)
        kept.append(made)
        return made

    quick(optimizer=optimizer).fit(X, y, soft_targets=targets)
    assert recording.made
    (group,) = kept[0].param_groups
    assert isinstance(group["lr"], float)
    assert group["capturable"] is False


def test_recordings_find_the_learning_rates_where_they_were(problem, recording):
    X, y, targets = problem
    places = set()

    class Optimizer(torch.optim.AdamW):
        def step(self):
            places.add(self.param_groups[0]["lr"].data_ptr())
            return super().step()

    student = quick(optimizer=lambda p, lr, weight_decay: Optimizer(p, lr, fused=True))
    student.fit(X, y, soft_targets=targets)
    assert recording.made
    assert len(places) == 1


def test_a_module_of_a_user_is_recorded(problem, recording, monkeypatch):
    recorded, plain = both(problem, monkeypatch, module=MyNet)
    assert recording.made
    assert_allclose(weights_of(recorded), weights_of(plain), rtol=1e-4, atol=1e-5)


DRAWS = np.random.default_rng(0)


class Steadfast(MyNet):
    """Does on the host what is the same in every step."""

    widths = (1, 2)

    def forward(self, X):
        self.seen = len(self.widths)
        return super().forward(torch.relu(X) if self.training else X)


class Counts(MyNet):
    calls = 0

    def forward(self, X):
        self.calls += 1
        return super().forward(X)


class Draws(MyNet):
    def forward(self, X):
        return super().forward(X if random.random() < 2 else -X)


class DrawsOfNumpy(MyNet):
    def forward(self, X):
        return super().forward(X if np.random.uniform() < 2 else -X)


class DrawsOfTorch(MyNet):
    def forward(self, X):
        return super().forward(X if torch.rand(1) < 2 else -X)


class DrawsOfItsOwn(MyNet):
    def __init__(self, n_features, n_outputs):
        super().__init__(n_features, n_outputs)
        self.rng = np.random.default_rng(0)

    def forward(self, X):
        return super().forward(X if self.rng.uniform() < 2 else -X)


class DrawsOfTheModule(MyNet):
    def forward(self, X):
        return super().forward(X if DRAWS.uniform() < 2 else -X)


class ReplacesItsBuffer(MyNet):
    def __init__(self, n_features, n_outputs):
        super().__init__(n_features, n_outputs)
        self.register_buffer("mean", torch.zeros(n_features))

    def forward(self, X):
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * X.detach().mean(dim=0)
        return super().forward(X - self.mean)


class IsHooked(MyNet):
    def __init__(self, n_features, n_outputs):
        super().__init__(n_features, n_outputs)
        self.top.register_forward_hook(print_nothing)


def print_nothing(*of):
    return None


class CannotBeKnown(MyNet):
    def __init__(self, n_features, n_outputs):
        super().__init__(n_features, n_outputs)
        self.activation = lambda X: X


class AsksTheDevice(MyNet):
    """Torch says so where the device is a GPU."""

    def forward(self, X):
        if self.training:
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        return super().forward(X)


class Warns(MyNet):
    def forward(self, X):
        if self.training:
            warnings.warn("of something else", stacklevel=1)
        return super().forward(X)


def test_a_step_in_which_the_host_waits_is_not_recorded(problem, recording):
    X, y, targets = problem
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "called a synchronizing")
        quick(module=AsksTheDevice).fit(X, y, soft_targets=targets)
    assert not recording.made


def test_other_warnings_of_a_step_are_heard(problem, recording):
    X, y, targets = problem
    with pytest.warns(UserWarning, match="of something else"):
        quick(module=Warns, max_epochs=1).fit(X, y, soft_targets=targets)


def test_what_stays_the_same_on_the_host_is_recorded(problem, recording):
    X, y, targets = problem
    quick(module=Steadfast).fit(X, y, soft_targets=targets)
    assert recording.made


@pytest.mark.parametrize(
    "module",
    [
        Counts,
        Draws,
        DrawsOfNumpy,
        DrawsOfTorch,
        DrawsOfItsOwn,
        DrawsOfTheModule,
        ReplacesItsBuffer,
        IsHooked,
        CannotBeKnown,
    ],
)
def test_what_changes_on_the_host_is_never_recorded(problem, recording, module):
    """A recording would not change it again."""
    X, y, targets = problem
    quick(module=module).fit(X, y, soft_targets=targets)
    assert not recording.made


@pytest.mark.parametrize(
    "options",
    [
        {"augment": lambda X: X},
        {"optimizer": lambda p, lr, weight_decay: torch.optim.SGD(p, lr=lr)},
        {"precision": "float16"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_the_host_has_a_part_in_is_not_recorded(problem, recording, options):
    X, y, targets = problem
    quick(**options).fit(X, y, soft_targets=targets)
    assert not recording.made


def test_a_recording_that_fails_leaves_the_steps_as_they_are_written(
    problem, recording, monkeypatch
):
    X, y, targets = problem
    tries = []

    def fail(*of):
        tries.append(of)
        raise RuntimeError("operation not permitted when stream is capturing")

    renewed = []
    monkeypatch.setattr(graphs, "renew_generator", renewed.append)
    monkeypatch.setattr(graphs, "Recording", fail)
    plain = quick().fit(X, y, soft_targets=targets)
    assert len(tries) == len(renewed) == 1
    monkeypatch.setattr(loop, "can_be_recorded", lambda *of: False)
    again = quick().fit(X, y, soft_targets=targets)
    # The learning rates were tensors in single precision.
    assert_allclose(weights_of(plain), weights_of(again), rtol=1e-4, atol=1e-6)
