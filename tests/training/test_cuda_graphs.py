"""Recorded steps: which are, and that a replay is the step with other rows."""

import gc
import random
import threading
import warnings
from contextlib import nullcontext
from types import ModuleType

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch.optim.optimizer import register_optimizer_step_pre_hook

from lelp_sklearn import LELPStudentClassifier
from lelp_sklearn._training import cuda_graphs, loop
from tests.student_problems import MyNet, make_soft_targets, weights_of


class Stream:
    """Stands in for a CUDA stream."""

    def __init__(self, device=None):
        pass

    def wait_stream(self, other):
        pass


class Replays(cuda_graphs.CapturedStep):
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
    monkeypatch.setattr(cuda_graphs, "CapturedStep", Replays)
    monkeypatch.setattr(cuda_graphs, "RECORDING_DEVICE", "cpu")
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
    (group,) = kept[-1].param_groups
    assert isinstance(group["lr"], float)
    assert group["capturable"] is False


def test_recordings_find_the_learning_rates_where_they_were(
    problem, recording, monkeypatch
):
    X, y, targets = problem
    places = set()

    def step(optimizer, step=torch.optim.AdamW.step):
        places.add(optimizer.param_groups[0]["lr"].data_ptr())
        return step(optimizer)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    quick().fit(X, y, soft_targets=targets)
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


class HasAGradientHook(MyNet):
    def __init__(self, n_features, n_outputs):
        super().__init__(n_features, n_outputs)
        self.top.weight.register_hook(print_nothing)


def print_nothing(*of):
    return None


LOCK = threading.Lock()


class CannotBeKnown(MyNet):
    def forward(self, X):
        with LOCK:
            return super().forward(X)


COUNTER = ModuleType("counter")
COUNTER.calls = 0
TOTALS = {"calls": 0}


def count():
    TOTALS["calls"] += 1


class Helper:
    calls = 0

    def count(self):
        Helper.calls += 1


class CountsInBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, X):
        return X.clone()

    @staticmethod
    def backward(ctx, gradient):
        count()
        return gradient


class CallsAFunction(MyNet):
    def forward(self, X):
        count()
        return super().forward(X)


class CallsAMethodOfItsOwn(MyNet):
    def forward(self, X):
        return super().forward(self.counted(X))

    def counted(self, X):
        count()
        return X


class HasAFunction(MyNet):
    def __init__(self, n_features, n_outputs):
        super().__init__(n_features, n_outputs)
        self.hooks = [lambda X: (count(), X)[1]]

    def forward(self, X):
        return super().forward(self.hooks[0](X))


class HasAHelper(MyNet):
    def __init__(self, n_features, n_outputs):
        super().__init__(n_features, n_outputs)
        self.helper = Helper()

    def forward(self, X):
        self.helper.count()
        return super().forward(X)


class CountsInItsClass(MyNet):
    calls = 0

    def forward(self, X):
        type(self).calls += 1
        return super().forward(X)


class CountsInAModule(MyNet):
    def forward(self, X):
        COUNTER.calls += 1
        return super().forward(X)


class CountsByName(MyNet):
    calls = 0

    def forward(self, X):
        setattr(type(self), "calls", getattr(self, "calls") + 1)  # noqa: B009, B010
        return super().forward(X)


class CountsGradients(MyNet):
    def forward(self, X):
        return CountsInBackward.apply(super().forward(X))


class CountsInATensor(MyNet):
    size = 1

    def __init__(self, n_features, n_outputs):
        super().__init__(n_features, n_outputs)
        self.calls = torch.zeros(self.size)

    def forward(self, X):
        self.calls += 1
        return super().forward(X)


class CountsInALargeTensor(CountsInATensor):
    size = 10**6


class CountsInMemoryOfATensor(CountsInATensor):
    def forward(self, X):
        self.calls.numpy()[0] += 1
        return MyNet.forward(self, X)


class HasAnActivation(MyNet):
    """Nothing that it calls changes anything."""

    def __init__(self, n_features, n_outputs):
        super().__init__(n_features, n_outputs)
        self.activation = lambda X: torch.relu(X) + TOTALS["calls"]

    def forward(self, X):
        return super().forward(self.activation(X))


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


def test_what_is_told_once_is_told_once(problem, recording):
    X, y, targets = problem
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        before = list(warnings.filters), warnings.showwarning
        quick(module=Warns).fit(X, y, soft_targets=targets)
        assert (warnings.filters, warnings.showwarning) == before
    assert recording.made
    assert [str(each.message) for each in told] == ["of something else"]


@pytest.mark.parametrize("module", [Steadfast, HasAnActivation])
def test_what_stays_the_same_on_the_host_is_recorded(problem, recording, module):
    X, y, targets = problem
    quick(module=module).fit(X, y, soft_targets=targets)
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
        HasAGradientHook,
        CannotBeKnown,
        CallsAFunction,
        CallsAMethodOfItsOwn,
        HasAFunction,
        HasAHelper,
        CountsInItsClass,
        CountsInAModule,
        CountsByName,
        CountsGradients,
        CountsInATensor,
        CountsInALargeTensor,
        CountsInMemoryOfATensor,
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


class Counting(torch.optim.AdamW):
    """Does on the host what a recording would not."""

    calls = 0

    def step(self):
        Counting.calls += 1
        return super().step()


def with_hook(optimizer):
    optimizer.register_step_post_hook(print_nothing)
    return optimizer


def with_own_step(optimizer):
    step = optimizer.step
    optimizer.step = lambda: step()
    return optimizer


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p, lr, weight_decay: Counting(p, lr, fused=True),
        lambda p, lr, weight_decay: with_hook(torch.optim.AdamW(p, lr, fused=True)),
        lambda p, lr, weight_decay: with_own_step(torch.optim.AdamW(p, lr, fused=True)),
    ],
    ids=["subclass", "hook", "own step"],
)
def test_an_optimizer_with_python_of_a_user_is_not_recorded(
    problem, recording, optimizer
):
    X, y, targets = problem
    quick(optimizer=optimizer).fit(X, y, soft_targets=targets)
    assert not recording.made


@pytest.mark.parametrize(
    "register",
    [
        torch.nn.modules.module.register_module_forward_hook,
        torch.nn.modules.module.register_module_forward_pre_hook,
        register_optimizer_step_pre_hook,
    ],
)
def test_nothing_is_recorded_where_hooks_are_called_everywhere(
    problem, recording, register
):
    X, y, targets = problem
    handle = register(print_nothing)
    try:
        quick().fit(X, y, soft_targets=targets)
    finally:
        handle.remove()
    assert not recording.made


@pytest.mark.parametrize("kind", [RuntimeError, TypeError])
def test_a_recording_that_fails_leaves_the_steps_as_they_are_written(
    problem, recording, monkeypatch, kind
):
    X, y, targets = problem
    tries = []

    def fail(*of):
        tries.append(of)
        raise kind("operation not permitted when stream is capturing")

    renewed = []
    monkeypatch.setattr(cuda_graphs, "renew_generator", renewed.append)
    monkeypatch.setattr(cuda_graphs, "CapturedStep", fail)
    plain = quick().fit(X, y, soft_targets=targets)
    assert len(tries) == len(renewed) == 1
    monkeypatch.setattr(loop, "can_be_recorded", lambda *of: False)
    again = quick().fit(X, y, soft_targets=targets)
    # The learning rates were tensors in single precision.
    assert_allclose(weights_of(plain), weights_of(again), rtol=1e-4, atol=1e-6)


def test_what_is_wrong_with_a_step_itself_is_told(problem, recording, monkeypatch):
    X, y, targets = problem

    def fails(self, X):
        raise ValueError("of its own")

    def record(step, index, weight, pool):
        monkeypatch.setattr(MyNet, "forward", fails)
        raise TypeError("of the recording")

    monkeypatch.setattr(cuda_graphs, "renew_generator", lambda device: None)
    monkeypatch.setattr(cuda_graphs, "CapturedStep", record)
    with pytest.raises(ValueError, match="of its own"):
        quick(module=MyNet).fit(X, y, soft_targets=targets)


def test_an_interruption_while_a_step_is_recorded_ends_the_fit(
    problem, recording, monkeypatch
):
    X, y, targets = problem

    def interrupt(*of):
        raise KeyboardInterrupt

    renewed = []
    monkeypatch.setattr(cuda_graphs, "renew_generator", renewed.append)
    monkeypatch.setattr(cuda_graphs, "CapturedStep", interrupt)
    student = quick()
    with pytest.raises(KeyboardInterrupt):
        student.fit(X, y, soft_targets=targets)
    assert student.stop_reason_ == "interrupted"
    assert renewed


def test_an_error_while_a_step_is_recorded_is_the_one_that_is_raised(monkeypatch):
    """Of the recording that is then broken torch tells another."""

    class Broken:
        def capture_begin(self, **options):
            pass

        def capture_end(self):
            raise RuntimeError("capture failed")

    def step(index, weight):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Broken)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    with pytest.raises(KeyboardInterrupt):
        cuda_graphs.CapturedStep(step, torch.arange(3), 1.0, None)


@pytest.mark.parametrize("is_enabled", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_no_garbage_is_collected_while_a_step_is_recorded(
    monkeypatch, is_enabled, fails
):
    """An old recording would be freed amid the new one, which CUDA forbids."""

    class Graph:
        def capture_begin(self, **options):
            pass

        def capture_end(self):
            pass

    seen = []

    def step(index, weight):
        seen.append(gc.isenabled())
        if fails:
            raise RuntimeError("of the step")
        return index, weight

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    before = gc.isenabled()
    try:
        (gc.enable if is_enabled else gc.disable)()
        with pytest.raises(RuntimeError) if fails else nullcontext():
            cuda_graphs.CapturedStep(step, torch.arange(3), 1.0, None)
        assert seen == [False]
        assert gc.isenabled() is is_enabled
    finally:
        (gc.enable if before else gc.disable)()


def test_threads_pause_the_collection_one_after_the_other(monkeypatch):
    waiting, entered, seen = threading.Event(), threading.Event(), []

    class Lock:
        """Says when somebody has to wait for it."""

        held = threading.Lock()

        def __enter__(self):
            if self.held.locked():
                waiting.set()
            self.held.acquire()

        def __exit__(self, *of):
            self.held.release()

    def first():
        with cuda_graphs.collection_paused():
            entered.set()
            seen.append(waiting.wait(20))

    def other():
        with cuda_graphs.collection_paused():
            seen.append(gc.isenabled())

    monkeypatch.setattr(cuda_graphs, "_pause", Lock())
    threads = [threading.Thread(target=target) for target in (first, other)]
    threads[0].start()
    assert entered.wait(20)
    threads[1].start()
    for thread in threads:
        thread.join()
    assert seen == [True, False]
    assert gc.isenabled()
