"""EmbeddingExtractor: rows in, embeddings of a torch teacher out.

The kinds of models are told apart in _extraction/runner.py, and their layers found in
_training/layers.py.
"""

import copy
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
)
from sklearn.utils import _safe_indexing
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted, validate_data

from lelp_sklearn import _validation
from lelp_sklearn._callers import warn_user
from lelp_sklearn._extraction import runner
from lelp_sklearn._extraction.runner import BatchFunction, ModelRunner
from lelp_sklearn._extraction.sklearn_teachers import (
    ClassifierTeacher,
    is_classifier_teacher,
)
from lelp_sklearn._files import ResumableNpy, check_writable, only_writer
from lelp_sklearn._threads import exclusive
from lelp_sklearn._training.device import resolve_device
from lelp_sklearn._training.inputs import is_integer
from lelp_sklearn._typing import FloatArray, IntArray
from lelp_sklearn._validation import check_numbers
from lelp_sklearn.exceptions import NoLinearHeadWarning

_SECONDS_BETWEEN_LINES = 5.0

# What scikit-learn's own clone takes along beside the parameters: `set_output` and the
# metadata that were requested.
_KEPT_BY_CLONES = ("_sklearn_output_config", "_metadata_request")


# scikit-learn has no types.
class EmbeddingExtractor(
    ClassNamePrefixFeaturesOutMixin,  # type: ignore[misc]
    TransformerMixin,  # type: ignore[misc]
    BaseEstimator,  # type: ignore[misc]
):
    """Embeddings of a trained model, and the linear layer that reads them.

    The embedding of a row is the input of the linear layer whose output the model
    returns. This layer is found by running the model on the first rows: its weights
    times its input are compared with the logits that the model returns. If no layer
    makes them, there is no head; the embedding is the input of the layer nearest to the
    output, and `predict_logits` returns the logits of the model. The model is neither
    trained nor changed: its mode, its hooks, its device and which parameters require
    gradients are afterwards as before, also after an error.

    Parameters
    ----------
    model : torch.nn.Module or classifier
        The teacher: a module that is called with a batch of rows, a sequence classifier
        of Hugging Face, which is called with the output of `tokenizer`, or a model of
        sentence-transformers, whose output is the embedding. Or a fitted classifier of
        scikit-learn: a linear one, an :class:`~sklearn.neural_network.MLPClassifier`,
        gradient boosting, a forest, or a Pipeline that ends in one; the other
        parameters are then ignored. Clones share the model.
    layer : str or None, default=None
        The name in ``model.named_modules()`` of the layer whose input is the embedding.
        None is the layer of the head, else the layer nearest to the output. The input
        of an earlier layer may keep more of the groups in a class; `predict_logits`
        then returns the logits. The input of a convolution is averaged over positions.
        If the head runs on every token and the model returns the logits of one token,
        as decoder-only classifiers do, the embedding is that of this token.
    tokenizer : callable or None, default=None
        The tokenizer of a Hugging Face model, required if X is texts. Ignored for a
        model of sentence-transformers.
    max_length : int or None, default=None
        Number of tokens to which texts are truncated. None is the maximum of the
        tokenizer or of the model of sentence-transformers.
    batch_size : int, default=64
        Number of rows in a call of the model. A batch that does not fit into memory is
        halved, with a warning.
    device : str or torch.device, default="auto"
        Device on which the model runs; it is moved there and back. "auto" is the device
        of the model.
    precision : {"float32", "bfloat16", "float16"}, default="float32"
        "float32" runs the model in the dtype of its weights; "bfloat16" and "float16"
        use automatic mixed precision.
    verbose : bool, default=False
        Whether to print the number of rows done, their rate and the time that remains,
        every five seconds; on a terminal every second, in one line.

    Attributes
    ----------
    head_ : tuple of ndarray (n_outputs, n_embedding), (n_outputs,) or None
        Weights and intercepts of the layer, to pass as `head` to
        :class:`LELPProjector`. Applied to the embeddings of the first rows, they give
        the logits of the model, up to a log-softmax or a softmax after the layer. None
        if they do not, as for an earlier layer.
    head_layer_ : str or None
        The name of the linear layer whose output is the logits, also if `layer` names
        another one; None if there is none.
    n_logits_ : int
        Number of logits that the model returns for a row; 0 if it does not return one
        vector per row.
    layer_ : str
        The name of the layer; "sentence_embedding" for a sentence encoder, the name of
        its class for a classifier of scikit-learn.
    n_features_in_ : int
        Number of features seen during :meth:`fit`. Only defined if X is numeric.

    See Also
    --------
    LELPProjector : Project the embeddings to soft labels.

    Notes
    -----
    In a search, every fit of a clone runs the model again. Call :meth:`extract` once
    and pass ``teacher_embeddings`` to the search instead.

    Examples
    --------
    >>> import numpy as np
    >>> import torch
    >>> from torch import nn
    >>> from lelp_sklearn import EmbeddingExtractor, LELPProjector
    >>> _ = torch.manual_seed(0)
    >>> teacher = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    >>> X = np.random.default_rng(0).normal(size=(100, 4))
    >>> extractor = EmbeddingExtractor(teacher)
    >>> embeddings = extractor.fit_transform(X)
    >>> embeddings.shape
    (100, 16)
    >>> projector = LELPProjector(n_subclasses=2, head=extractor.head_)
    >>> W, b = extractor.head_
    >>> most_likely = (embeddings @ W.T + b).argmax(axis=1)
    >>> projector.fit_transform(embeddings, most_likely).shape
    (100, 4)

    Use the input of an earlier layer, and the logits in place of a head:

    >>> extractor = EmbeddingExtractor(teacher, layer="1")
    >>> embeddings = extractor.fit_transform(X)
    >>> logits = extractor.predict_logits(X)
    >>> projector = LELPProjector(n_subclasses=2)
    >>> projector.fit_transform(embeddings, most_likely, teacher_logits=logits).shape
    (100, 4)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "model": [object],
        "layer": [str, None],
        "tokenizer": [callable, None],
        "max_length": [Interval(Integral, 1, None, closed="left"), None],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "device": [str, torch.device],
        "precision": [StrOptions({"float32", "bfloat16", "float16"})],
        "verbose": ["boolean"],
    }

    def __init__(
        self,
        model: Any,
        *,
        layer: str | None = None,
        tokenizer: Any = None,
        max_length: int | None = None,
        batch_size: int = 64,
        device: str | torch.device = "auto",
        precision: str = "float32",
        verbose: bool = False,
    ) -> None:
        self.model = model
        self.layer = layer
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.batch_size = batch_size
        self.device = device
        self.precision = precision
        self.verbose = verbose

    def __sklearn_clone__(self) -> "EmbeddingExtractor":
        # A copy of the model would cost as much as the model, and nothing changes it.
        cloned = type(self)(**self.get_params(deep=False))
        for name in _KEPT_BY_CLONES:
            if hasattr(self, name):
                setattr(cloned, name, copy.deepcopy(getattr(self, name)))
        return cloned

    def __deepcopy__(self, memo: dict[int, Any]) -> "EmbeddingExtractor":
        # While another thread runs the model, it has hooks and another mode.
        with exclusive(self.model):
            twin = memo[id(self)] = type(self).__new__(type(self))
            twin.__dict__.update(copy.deepcopy(vars(self), memo))
        return twin

    def __getstate__(self) -> dict[str, Any]:
        # Of a model that no other thread is running; its weights are not copied.
        model = runner.copy_structure(self.model)
        return {**super().__getstate__(), "model": model}

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.three_d_array = True
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

    def fit(self, X: Any, y: Any = None) -> "EmbeddingExtractor":
        """Find the layer, and compare it with what the model returns.

        Parameters
        ----------
        X : list of str or array-like, torch.Tensor of shape (n_samples, ...)
            Texts, or numeric rows in the shape that the model takes.
        y : None
            Ignored.

        Returns
        -------
        self : EmbeddingExtractor
            The fitted extractor.

        Raises
        ------
        TypeError
            If the model is not a torch module, if a classifier has no embeddings that
            are known, if X is a single text, a generator, a
            dict, a DataLoader or a Dataset, or if X mixes texts with something else.
        ValueError
            If there is no such layer or none with weights, if a layer that is named
            does not run exactly once, if its input is not one vector per row, if texts
            come without a tokenizer or as a table rather than its column, if the model
            cannot cut them to `max_length`, or if it fails on the rows.

        Warns
        -----
        NoLinearHeadWarning
            If no linear layer makes the logits that the model returns, and no `layer`
            is named. It names the layer that is taken, and the linear layer that comes
            closest with the largest difference.
        """
        self._validate_params()
        self._classifier: ClassifierTeacher | None = None
        if is_classifier_teacher(self.model):
            return self._fit_classifier(X)
        if not isinstance(self.model, torch.nn.Module):
            raise TypeError(
                f"model is of type {type(self.model).__name__}; it must be a "
                "torch.nn.Module, such as a model of Hugging Face or of "
                "sentence-transformers."
            )
        rows = self._check_rows(X, reset=True)
        layer = runner.resolve_layer(self.model, self.layer)
        # Integers are token ids, or numbers to a model that does not take them as ids.
        try:
            found, width = self._make_runner(layer, True).with_layers(rows)
        except ValueError:
            if runner.is_texts(rows) or not is_integer(rows):
                raise
            found, width = self._make_runner(layer, False).with_layers(rows)
        self._output, self._run = found.output, found.run
        self._takes_token_ids = found.takes_token_ids
        self.layer_ = found.layer
        self.head_ = found.head()
        head = found.output.head
        self.head_layer_ = None if head is None else head.module
        self.n_logits_ = found.output.n_logits
        self._n_features_out = width
        if layer is None and self.head_ is None:
            self._warn_without_head()
        return self

    def transform(self, X: Any) -> FloatArray:
        """Compute the embeddings of rows.

        Parameters
        ----------
        X : list of str or array-like, torch.Tensor of shape (n_samples, ...)
            As in :meth:`fit`.

        Returns
        -------
        ndarray of shape (n_samples, n_embedding), float32
            The embeddings, in the order of the rows.
        """
        check_is_fitted(self)
        if self._classifier is not None:
            return np.asarray(self._classifier.transform(X))
        rows = self._check_rows(X, reset=False)
        with self._fitted_runner().embedding_fn() as embed:
            return self._compute(embed, rows, self._n_features_out, "embedding")

    def predict_logits(self, X: Any) -> FloatArray:
        """Compute the logits of rows, the `teacher_logits` if `head_` is None.

        The logits are the tensor that the model returns, the entry "logits" of its
        output, or the first tensor in it. If the model returns probabilities, their
        logarithms are returned; for a single sigmoid column, its logit. The model runs
        again, as in :meth:`transform`.

        Parameters
        ----------
        X : list of str or array-like, torch.Tensor of shape (n_samples, ...)
            As in :meth:`fit`.

        Returns
        -------
        ndarray of shape (n_samples, n_outputs), float32
            The logits, in the order of the rows.

        Raises
        ------
        ValueError
            If the model does not return one vector for each row.
        """
        check_is_fitted(self)
        if not self.n_logits_:
            raise ValueError(
                "model has no logits: it does not return one vector for each row. Omit "
                "teacher_logits, or compute them from what the model returns."
            )
        if self._classifier is not None:
            return self._classifier.predict_logits(X)
        rows = self._check_rows(X, reset=False)
        with self._fitted_runner().logits_fn() as compute_logits:
            return self._compute(compute_logits, rows, self.n_logits_, "logits")

    def extract(
        self,
        X: Any,
        path: Any,
        *,
        dtype: Literal["float16", "float32"] = "float16",
    ) -> FloatArray:
        """Write the embeddings of rows to a ``.npy`` file; resume an earlier call.

        A call that ended, by an error or with its process, is resumed by the next one
        with the same arguments: ``<path>.part`` holds the rows that are done and
        ``<path>.journal`` counts them. The file is the same as that of a single call.
        Other rows than those of the journal are refused. `path` itself appears when it
        is complete; if it is complete already, no embeddings are computed. During a
        call, the empty file ``<path>.lock`` prevents other calls, also those of other
        processes, from writing the same file; it is not removed. The extractor is
        fitted first.

        The journal holds hashes of what the file depends on: the weights of the model
        and its layers as they print, every byte of the rows and, if X is texts, the
        tokenizer: its class, vocabulary and settings if it is of Hugging Face, else its
        class and its output for all texts. Nothing else is hashed, such as an attribute
        that ``forward`` reads and that is not printed: after a change of it delete the
        file, or name another.

        Parameters
        ----------
        X : list of str or array-like, torch.Tensor of shape (n_samples, ...)
            As in :meth:`fit`.
        path : str or path-like
            Ends in ``.npy``.
        dtype : {"float16", "float32"}, default="float16"
            Half precision takes half the space, and keeps three digits.

        Returns
        -------
        memmap of shape (n_samples, n_embedding)
            The file, read-only.

        Raises
        ------
        ValueError
            As :meth:`fit` does; if the file or the part of it is of another model or
            tokenizer, other rows, another layer, `max_length`, precision or dtype, or
            is damaged; if another call writes it; if the disk has too little room; or
            if an embedding is not finite (as half precision may be).
        """
        path = Path(path)
        if dtype not in ("float16", "float32"):
            raise ValueError(f"dtype={dtype!r} must be 'float16' or 'float32'.")
        check_writable(path, "path")
        if is_classifier_teacher(self.model):
            raise TypeError(
                "extract is for models of torch: for a classifier of scikit-learn save "
                "the result of transform by numpy.save."
            )
        with only_writer(path):
            self.fit(X)
            rows = self._check_rows(X, reset=False)
            shape = len(rows), self._n_features_out
            identity = self._identity(rows, dtype)
            file = ResumableNpy(path, shape, np.dtype(dtype), identity)
            if not file.is_finished():
                self._fill(file, rows)
                file.finish()
            return file.open()

    def _fit_classifier(self, X: Any) -> "EmbeddingExtractor":
        """Find the embeddings of a fitted classifier of scikit-learn."""
        check_is_fitted(self.model)
        self._classifier = ClassifierTeacher.of(self.model, X)
        self.layer_ = type(self.model).__name__
        self.head_, self.head_layer_ = self._classifier.head_, None
        self.n_logits_ = self._classifier.n_logits_
        first_row = _safe_indexing(X, [0])
        self._n_features_out = self._classifier.transform(first_row).shape[1]
        return self

    def _fill(self, file: ResumableNpy, rows: Any) -> None:
        """Write the embeddings that a file still lacks."""
        size = int(self.batch_size)
        order = np.concatenate(runner.batches_of(rows, size))
        batches = [order[i : i + size] for i in range(file.n_done, len(order), size)]
        with file.filling(order) as write, self._fitted_runner().embedding_fn() as fn:
            for indices, embeddings in self._batches(fn, rows, batches, "embedding"):
                with np.errstate(over="ignore"):
                    cast = embeddings.astype(file.dtype)
                row = _first_nonfinite_row(cast, indices)
                if row is not None:
                    delete = f"delete {file.names()} and " if file.n_done else ""
                    raise ValueError(
                        f"The model's embedding of row {row} is larger than 65504, at "
                        f"which half precision ends: {delete}pass dtype='float32'."
                    )
                write(indices, cast)

    def _compute(
        self, batch_function: BatchFunction, rows: Any, n_columns: int, what: str
    ) -> FloatArray:
        """Apply a function to all rows in batches; return the results in order."""
        result = np.empty((len(rows), n_columns), np.float32)
        batches = runner.batches_of(rows, int(self.batch_size))
        for indices, block in self._batches(batch_function, rows, batches, what):
            result[indices] = block
        return result

    def _batches(
        self,
        batch_function: BatchFunction,
        rows: Any,
        batches: list[IntArray],
        what: str,
    ) -> Iterator[tuple[IntArray, FloatArray]]:
        """Yield the indices and the result of each batch."""
        progress = _Progress(sum(map(len, batches)), self.verbose)
        for indices in batches:
            block = batch_function(rows, indices)
            row = _first_nonfinite_row(block, indices)
            if row is not None:
                fix = "check that row"
                if self.precision != "float32":
                    fix += ", or use precision='float32'"
                raise ValueError(
                    f"model gives NaN or infinity as the {what} of row {row} of X: "
                    f"{fix}."
                )
            yield indices, block
            progress.add(len(indices))

    def _fitted_runner(self) -> ModelRunner:
        """Return a runner with the fitted layer and the current parameters."""
        unfitted = self._make_runner(self.layer_, self._takes_token_ids)
        return replace(unfitted, output=self._output, run=self._run)

    def _make_runner(self, layer: str | None, takes_token_ids: bool) -> ModelRunner:
        """Return a runner of a layer with the current parameters."""
        if self.device == "auto":
            device = runner.module_device(self.model)
        else:
            device = resolve_device(self.device, None)
        return ModelRunner(
            model=self.model,
            layer=layer,
            tokenizer=self.tokenizer,
            max_length=None if self.max_length is None else int(self.max_length),
            device=device,
            precision=getattr(torch, self.precision),
            takes_token_ids=takes_token_ids,
        )

    def _check_rows(self, X: Any, *, reset: bool) -> Any:
        """Return texts as a list, numbers as an array or a tensor."""
        _check_is_rows(X)
        if isinstance(X, torch.Tensor):
            _validation.check_tensor_rows(X)
            validate_data(self, X, reset=reset, skip_check_array=True)
            return X
        texts = _as_texts(X)
        if texts is not None:
            if self.tokenizer is None and not runner.is_sentence_encoder(self.model):
                raise ValueError(
                    "X holds texts and there is no tokenizer: pass tokenizer=, the one "
                    "that the model was trained with."
                )
            return texts
        _check_no_text_columns(X)
        check_numbers(X, "X")
        X = validate_data(self, X, reset=reset, allow_nd=True, ensure_all_finite=False)
        if X.dtype.kind == "f":
            _validation.check_finite_block(X, 0, "X")
        return X

    def _identity(self, rows: Any, dtype: str) -> dict[str, str]:
        """Return hashes of everything that the content of a file depends on."""
        tokenizer = "None"
        if runner.is_texts(rows):
            tokenizer = self._fitted_runner().hash_tokenizer(rows)
        return {
            "model": runner.hash_model(self.model),
            "layer": str(self.layer_),
            "tokenizer": tokenizer,
            "max_length": str(self.max_length),
            "precision": self.precision,
            "dtype": dtype,
            "number of rows": str(len(rows)),
            "X": runner.hash_inputs(rows),
        }

    def _warn_without_head(self) -> None:
        """Warn that no linear layer makes the logits; name the layer that is used."""
        output, logits = self._output, "predict_logits returns its logits"
        if not output.n_logits:
            reason = "model does not return one vector of logits for each row"
            logits = "it has no logits"
        elif output.closest is None:
            reason = "No torch.nn.Linear makes the logits that model returns"
        else:
            reason = (
                "The logits that model returns are not weights times input of a linear "
                f"layer: those of {output.closest!r} come closest, and their "
                f"log-probabilities differ by up to {output.difference:.2g}"
            )
        layer = repr(self.layer_) if self.layer_ else "the model itself"
        warn_user(
            f"{reason}. head_ is None, the embeddings are the input of {layer}, and "
            f"{logits}. To use another layer, pass layer='...'.",
            NoLinearHeadWarning,
        )


class _Progress:
    """Prints how many rows are done, now and then; on a terminal in one line."""

    def __init__(self, n_rows: int, verbose: bool) -> None:
        self._n_rows, self._verbose = n_rows, verbose
        self._n_done = 0
        self._begun = self._printed = time.monotonic()
        self._is_terminal = sys.stdout.isatty()

    def add(self, n_rows: int) -> None:
        self._n_done += n_rows
        now = time.monotonic()
        wait = 1 if self._is_terminal else _SECONDS_BETWEEN_LINES
        is_done = self._n_done == self._n_rows
        if not self._verbose or not (now - self._printed > wait or is_done):
            return
        self._printed = now
        rate = self._n_done / max(now - self._begun, 1e-9)
        remaining = (self._n_rows - self._n_done) / rate
        line = (
            f"{self._n_done:,} of {self._n_rows:,} rows, {rate:,.0f} a second, "
            f"{remaining:,.0f} s left"
        )
        if self._is_terminal:
            # The next line is printed over this one.
            print(f"\r{line:79}", end="\n" if is_done else "", flush=True)
        else:
            print(line)


def _first_nonfinite_row(block: FloatArray, indices: IntArray) -> int | None:
    finite = np.isfinite(block).all(axis=1)
    return None if finite.all() else int(indices[~finite].min())


def _check_is_rows(X: Any) -> None:
    """Raise if X is no table and no list of rows, or an empty one."""
    unordered = torch.utils.data.DataLoader, torch.utils.data.Dataset, Mapping, Set
    # A sparse matrix may be a Mapping, and has an error of its own.
    is_unordered = isinstance(X, unordered) and not hasattr(X, "shape")
    if is_unordered or isinstance(X, str | Iterator):
        raise TypeError(
            f"X is of type {type(X).__name__}: pass an array, a tensor or a list of "
            "texts, with one entry a row."
        )
    if isinstance(X, Sequence) and not len(X):
        raise ValueError("X is empty, []: at least one row is required.")


def _as_texts(X: Any) -> list[str] | None:
    """Return rows with a text or None among them as a list; None for numbers."""
    if getattr(X, "ndim", 1) != 1 or not isinstance(X, Iterable):
        return None
    texts = list(X)
    if not any(text is None or isinstance(text, str) for text in texts):
        return None
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(
                f"X is a list of texts with, in row {row}, a {type(text).__name__} "
                f"({text!r}): pass strings only; an empty one is a text too."
            )
        try:
            text.encode()
        except UnicodeEncodeError as reason:
            raise ValueError(
                f"X is a list of texts with, in row {row}, half a surrogate pair "
                f"({text[reason.start]!r} at {reason.start}), which is not a text: "
                "pass text.encode('utf-16', 'surrogatepass').decode('utf-16', "
                "'replace')."
            ) from reason
    return texts


def _check_no_text_columns(X: Any) -> None:
    """Raise for a table or two-dimensional array with texts in it."""
    if getattr(X, "ndim", 2) != 2 or not hasattr(X, "shape") or 0 in X.shape:
        return
    names = getattr(X, "columns", None)
    kind = getattr(getattr(X, "dtype", None), "kind", "")
    if names is None and kind not in ("O", "T", "U"):
        return
    first = np.asarray(X[:1], dtype=object)[0]
    texts = [i for i, value in enumerate(first) if isinstance(value, str)]
    if texts:
        column = f"X[:, {texts[0]}]" if names is None else f"X[{names[texts[0]]!r}]"
        raise ValueError(
            f"X is of type {type(X).__name__}, shape {X.shape}, and holds texts: pass "
            f"the column by itself, {column}."
        )
