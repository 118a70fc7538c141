"""What a student does to be fitted: from checked rows to a trained module."""

import time
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import numpy as np
import torch
from sklearn.frozen import FrozenEstimator
from sklearn.utils import check_random_state
from torch import nn

from lelp_sklearn import _training_validation, _validation
from lelp_sklearn._callbacks import NO_TASK, begin_fit
from lelp_sklearn._callers import warn_user
from lelp_sklearn._class_predictions import Seeds, Stream, StudentFit
from lelp_sklearn._extraction.content_hash import content_hash
from lelp_sklearn._extraction.sklearn_teachers import OmittedTeacher, check_teacher
from lelp_sklearn._locks import exclusive
from lelp_sklearn._projector import LELPProjector
from lelp_sklearn._targets import (
    check_several_labels,
    encode,
    fitted_source,
    given_source,
    hold_out,
    is_hard,
    loss_weight,
    make_projector,
    noted,
    one_hot,
    read_sample,
    scorable,
    warn_of_class_order,
)
from lelp_sklearn._training import checkpoint_validation, modules, schedules
from lelp_sklearn._training.batches import as_tensor, make_training_tensors
from lelp_sklearn._training.checkpoint import open_checkpoint
from lelp_sklearn._training.device import is_integer, resolve_device, warm_up_backward
from lelp_sklearn._training.loop import (
    EarlyStopping,
    Trainer,
    Validation,
    continue_optimizer,
    make_optimizer,
    try_optimizer,
)
from lelp_sklearn._training.objective import Objective
from lelp_sklearn._training.precision import Precision
from lelp_sklearn._training.process_group import SINGLE_PROCESS
from lelp_sklearn._training.run import Run
from lelp_sklearn.exceptions import NoTeacherWarning

# Parameters that the result of a fit does not hang on.
_FREE_TO_CHANGE = "checkpoint", "checkpoint_interval", "device", "verbose"


class StudentFittingMixin:
    """The work behind `fit` and `partial_fit` of `LELPStudentClassifier`."""

    def _fit_rows(self, ranks, X, y, given, sample_weight, validation_data):
        """Do what `fit` does, as one of several processes if need be."""
        self._check_parameters()
        try_optimizer(self.optimizer, self.learning_rate, self.weight_decay)
        if self.checkpoint is not None:
            ranks.broadcast_from_rank0(
                lambda: checkpoint_validation.check_path(self.checkpoint)
            )
        _training_validation.check_validation_data(
            self.early_stopping, *validation_data
        )
        previous = None
        if self.warm_start and hasattr(self, "_fit"):
            previous = replace(self._fit, stream=None)
        sample = self._read(X, y, given, sample_weight, previous)
        if previous is None and not self._has_head():
            check_several_labels(sample)
        judged = self._read_validation(sample, previous, *validation_data)
        device = resolve_device(self.device, sample.inputs, ranks.device_index)
        how = {"precision": Precision(self.precision, device), "ranks": ranks}
        seeds = ranks.broadcast_from_rank0(lambda: self._seeds(previous))
        used, held_out = self._split(sample, judged, previous, seeds.split)
        task = self._begin(sample, y, sample_weight, previous, ranks)
        if previous is None and not self._has_teacher(sample):
            warn_user(NoTeacherWarning())
        targets = ranks.broadcast_from_rank0(
            lambda: self._make_targets(sample, used, previous, seeds.projector, task)
        )
        rows = sample, used, targets, device
        fit, trainer = self._prepare(*rows, seeds, previous, **how)
        held_out = ranks.on_rank0(
            lambda: self._validation(sample, fit, trainer, judged, held_out)
        )
        with self._kept(sample, judged, fit, ranks) as checkpoint:
            run = self._run(fit, trainer, task, held_out, checkpoint)
            self._train(fit, run)
        task.end({})

    def _fit_block(self, X, y, classes, given, sample_weight):
        """Do what `partial_fit` does."""
        self._check_parameters()
        previous = getattr(self, "_fit", None)
        _training_validation.check_partial_fit(
            self.early_stopping, self.class_weight, classes, previous is None
        )
        try_optimizer(self.optimizer, self.learning_rate, self.weight_decay)
        sample = self._read(X, y, given, sample_weight, previous)
        device = resolve_device(self.device, sample.inputs)
        precision = Precision(self.precision, device)
        used = self._usable(sample, previous)
        seeds = self._seeds(previous)
        if previous is None and not self._has_teacher(sample):
            warn_user(NoTeacherWarning())
        targets = self._make_targets(
            sample, used, previous, seeds.projector, NO_TASK, classes
        )
        rows = sample, used, targets, device
        fit, trainer = self._prepare(
            *rows, seeds, previous, precision=precision, endless=True
        )
        done = len(fit.curves.loss)
        run = Run(trainer, fit.curves, 1, lambda: lambda: False, progressed=done)
        self._train(fit, run, is_stream=True)

    def _check_parameters(self):
        self._validate_params()
        _training_validation.check_frozen(self.projector, LELPProjector)
        if not isinstance(self.teacher, OmittedTeacher | None):
            check_teacher(self.teacher)
        _training_validation.check_class_weight(self.class_weight)
        checkpoint_validation.check_resumable(self.checkpoint, self.random_state)
        is_template = isinstance(self.module, nn.Module)
        built = modules.multilayer_perceptron if self.module is None else self.module
        _training_validation.check_module_arguments(
            built, self.module_params, is_template=is_template
        )
        for name in ("subclass_weight", "learning_rate_schedule"):
            if callable(value := getattr(self, name)):
                schedules.check_schedule(value, name, int(self.max_epochs))

    def _read(self, X, y, given, sample_weight, previous):
        inputs = self._check_inputs(X, previous and previous.expected_rows)
        return read_sample(X, inputs, y, self._marker(), sample_weight, *given)

    def _split(self, sample, judged, previous, seed):
        """Tell which rows to learn from, and which to stop by, None if others."""
        used = self._usable(sample, previous)
        if not self.early_stopping or judged is not None:
            return used, None
        held_out = hold_out(sample, used, float(self.validation_fraction), seed)
        used[held_out] = False
        return used, held_out

    def _seeds(self, previous):
        """Draw seeds, or keep them, so that rows that are held out stay held out."""
        if previous is not None:
            return previous.seeds
        drawn = check_random_state(self.random_state).randint(2**31 - 1, size=3)
        return Seeds(*map(int, drawn))

    def _read_validation(self, sample, previous, X_val, y_val, embeddings):
        if X_val is None:
            return None
        rows = tuple(sample.inputs.shape[1:]), self._may_take_token_ids(sample.inputs)
        rows = rows if previous is None else previous.expected_rows
        with noted("(In X_val, y_val and teacher_embeddings_val.)"):
            inputs = self._check_inputs(X_val, rows)
            return read_sample(
                X_val, inputs, y_val, self._marker(), None, embeddings, suffix="_val"
            )

    def _marker(self):
        own = self.unlabeled
        return getattr(self.projector, "unlabeled", None) if own is None else own

    def _may_take_token_ids(self, X):
        return self.module is not None and is_integer(X)

    def _has_head(self):
        return (
            isinstance(self.projector, FrozenEstimator)
            or getattr(self.projector, "head", None) is not None
        )

    def _has_teacher(self, sample):
        return sample.says_targets or self.teacher is not None or self._has_head()

    def _usable(self, sample, previous):
        """Tell which rows have a target and weigh anything."""
        if self.label_weight:
            _training_validation.check_labels_for("label_weight > 0", sample.labelled)
        if previous is None:
            has_teacher = self._has_teacher(sample)
        else:
            has_teacher = previous.source.has_teacher(sample)
        if has_teacher:
            return sample.weight > 0
        _training_validation.check_labels_for("there is no teacher", sample.labelled)
        return (sample.weight > 0) & sample.labelled

    def _begin(self, sample, y, sample_weight, previous, ranks):
        """Set the callbacks up, in one process."""
        if not ranks.is_rank0:
            return NO_TASK
        fits_projector = previous is None and sample.soft_targets is None
        n_steps = int(self.max_epochs) + fits_projector
        data = scorable(sample, y, sample_weight)
        return begin_fit(self, **data, max_subtasks=n_steps)

    def _make_targets(self, sample, used, previous, seed, task, classes=None):
        """Give what makes the targets, fitted if it is not yet, and the targets."""
        if previous is not None:
            source = previous.source
            sample = source.embed_again(sample, used)
        else:
            if classes is not None:
                classes = _validation.sorted_classes(classes)
            source, sample = self._make_source(sample, used, seed, task, classes)
        codes = encode(sample, source.classes)
        soft = source.soft_targets(sample, codes)
        if previous is None and not source.labels_only:
            warn_of_class_order(soft, codes, source)
        return source, soft

    def _make_source(self, sample, used, seed, task, classes):
        """Fit what makes the targets; also give the rows with their embeddings."""
        given = LELPProjector() if self.projector is None else self.projector
        projector = make_projector(given, seed, self.unlabeled)
        if sample.soft_targets is not None:
            return given_source(sample, projector, classes), sample
        return fitted_source(
            sample,
            projector,
            self.teacher,
            used,
            task,
            labels_only=not self._has_teacher(sample),
            classes=classes,
        )

    def _prepare(
        self,
        sample,
        used,
        targets,
        device,
        seeds,
        previous,
        *,
        precision,
        ranks=SINGLE_PROCESS,
        endless=False,
    ):
        """Make the module, unless it is there, and what trains it on the targets."""
        source, soft = targets
        codes = encode(sample, source.classes)
        if previous is None:
            fit = self._new_fit(sample, source, soft, seeds, device)
        else:
            fit = replace(previous, objective=self._objective(source, soft))
        student = fit.student
        _training_validation.check_same_columns(soft.shape[1], student.n_outputs)
        student.net.to(device)
        warm_up_backward(device)
        ranks.broadcast_module(student.net)
        if self.augment is not None:
            student.check_augmented(self.augment, sample.inputs, device, seeds.training)
        labels = one_hot(codes, len(source.classes)) if self.label_weight else None
        used, weight = loss_weight(
            sample, codes, soft, used, source.classes, self.class_weight
        )
        rows = make_training_tensors(
            sample.inputs, soft, labels, weight, device, student.dtype
        )
        used = as_tensor(np.flatnonzero(used), device)
        if rows.weight is not None:
            # A batch of none but smaller ones would have the weight zero.
            tiny = torch.finfo(rows.weight.dtype).tiny
            used = used[rows.weight[used] >= tiny]
        trainer = Trainer(
            module=student.net,
            optimizer=self._make_optimizer(fit, precision),
            objective=fit.objective,
            rows=rows,
            used=used,
            subclass_weight=schedules.subclass_weight_schedule(self.subclass_weight),
            learning_rate=schedules.learning_rate_schedule(
                self.learning_rate_schedule, endless=endless
            ),
            # torch's and fixed-width NumPy numbers do not mix.
            max_epochs=int(self.max_epochs),
            batch_size=int(self.batch_size),
            max_grad_norm=self.max_grad_norm,
            augment=self.augment,
            precision=precision,
            ranks=ranks,
            seed=seeds.training,
        )
        return fit, trainer

    def _new_fit(self, sample, source, soft, seeds, device):
        init_args = self.module, self.module_params, tuple(sample.inputs.shape[1:])
        codes = self._may_take_token_ids(sample.inputs)
        student = modules.build_student(
            (*init_args, soft.shape[1]),
            sample.inputs,
            device,
            seeds.training,
            may_take_token_ids=codes,
            precision=self.precision,
        )
        return StudentFit(source, student, self._objective(source, soft), seeds)

    def _objective(self, source, soft):
        n_classes, within = len(source.classes), self.within_class_temperature
        if within == "auto":
            within = 1.0 if is_hard(soft, n_classes) else source.temperature
        weight = float(self.label_weight)
        return Objective(n_classes, source.temperature, float(within), weight)

    def _make_optimizer(self, fit, precision):
        """Make an optimizer, which goes on where a stream has had the same."""
        numbers = float(self.learning_rate), float(self.weight_decay)
        optimizer = make_optimizer(self.optimizer, fit.student.net, *numbers)
        stream = fit.stream
        if stream is not None and stream.made_by == self.optimizer:
            continue_optimizer(optimizer, modules.to_tensors(stream.optimizer))
        if stream is not None and None not in (stream.scaler, precision.scaler):
            precision.scaler.load_state_dict(stream.scaler)
        return optimizer

    def _validation(self, sample, fit, trainer, given, held_out):
        """Give the rows of early stopping, None without it."""
        source, device = fit.source, trainer.used.device
        if held_out is not None:
            rows = trainer.rows.select(as_tensor(held_out, device))
            has_teacher = source.has_teacher(sample)
            return Validation(rows, source.temperature if has_teacher else 1.0)
        if given is None:
            return None
        codes = encode(given, source.classes)
        weight, temperature = None, source.temperature
        if source.knows_classes_of(given):
            soft = source.soft_targets(given, codes)
        else:
            _training_validation.check_validation_labels(
                given.labelled, given.teacher_embeddings is not None
            )
            soft, weight = one_hot(codes, len(source.classes)), given.labelled
            temperature = 1.0
        dtype = fit.student.dtype
        rows = make_training_tensors(given.inputs, soft, None, weight, device, dtype)
        return Validation(rows, temperature)

    @contextmanager
    def _kept(self, sample, judged, fit, ranks):
        """Give the checkpoint of this fit, None where none is asked for."""
        if self.checkpoint is None:
            yield None
            return
        identity = self._identity(sample, judged, fit)
        arguments = self.checkpoint, identity, int(self.checkpoint_interval)
        with ExitStack() as stack:
            yield ranks.on_rank0(
                lambda: stack.enter_context(open_checkpoint(*arguments))
            )

    def _identity(self, sample, judged, fit):
        """Digest all that the trained student hangs on, by name."""
        params = self.get_params(deep=False)
        for name in _FREE_TO_CHANGE:
            del params[name]
        for name, value in params.items():
            if isinstance(value, np.generic):
                # NumPy's 8 is the number 8.
                params[name] = value.item()
        # What is built counts, not what builds it.
        params["module"] = fit.student.net.state_dict()
        max_epochs = int(self.max_epochs)
        progress = np.arange(max_epochs + 1) / max_epochs
        for name in ("subclass_weight", "learning_rate_schedule"):
            if callable(schedule := params[name]):
                params[name] = [float(schedule(part)) for part in progress.tolist()]
        rows = _by_argument(sample) | {
            f"{name}_val": None if judged is None else value
            for name, value in _by_argument(judged or sample).items()
        }
        # A teacher that another thread runs has hooks and another mode meanwhile.
        with exclusive(*self.get_params().values()):
            return {
                name: content_hash(value) for name, value in (params | rows).items()
            }

    def _run(self, fit, trainer, task, held_out, checkpoint):
        """Give the epochs that are to be run."""
        stopping, n_epochs = None, trainer.max_epochs
        if self.early_stopping:
            patient_from = schedules.first_final_epoch(
                trainer.subclass_weight, n_epochs
            )
            stopping = EarlyStopping(self.n_iter_no_change, patient_from)
        last = len(fit.curves.loss) + n_epochs
        # A resumed fit measures its own epochs only.
        begun = []

        def begin_epoch():
            step = task.begin("epoch")
            begun.append(time.perf_counter())

            def end():
                if self.verbose:
                    now = time.perf_counter()
                    mean = (now - begun[0]) / len(begun)
                    seconds = now - begun[-1], mean * (last - len(run.curves.loss))
                    print(run.curves.describe_epoch(last, *seconds))
                so_far = replace(fit, curves=run.curves)
                return step.end(lambda: so_far.snapshot().attributes())

            return end

        run = Run(
            trainer,
            fit.curves,
            n_epochs,
            begin_epoch,
            stopping=stopping,
            held_out=held_out,
            checkpoint=checkpoint,
        )
        return run

    def _train(self, fit, run, *, is_stream=False):
        """Run the epochs, and keep those that are complete, whatever ends them."""
        try:
            run.train()
            self._keep(fit, run, is_stream)
        except BaseException as error:
            run.fail(error)
            self._keep(fit, run, is_stream)
            raise

    def _keep(self, fit, run, is_stream):
        module = fit.student.net
        module.zero_grad()
        module.eval()
        if not run.n_done:
            return
        stream = Stream.of(self.optimizer, run.trainer) if is_stream else None
        reason = None if is_stream else run.stop_reason
        fit = replace(fit, curves=run.curves, stream=stream, stop_reason=reason)
        # All at once, so that an interrupt finds the one fit or the other.
        vars(self).update(fit.attributes())


def _by_argument(sample):
    """Give the data of rows by the names under which they are passed."""
    return {
        "X": (sample.X, sample.inputs),
        "y": sample.y,
        "sample_weight": None if (sample.weight == 1).all() else sample.weight,
        "teacher_embeddings": sample.teacher_embeddings,
        "teacher_logits": sample.teacher_logits,
        "soft_targets": sample.soft_targets,
    }
