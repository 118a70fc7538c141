"""EmbeddingExtractor: rows in, embeddings of a torch teacher out."""

import copy
import time
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
)
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import (
    _check_feature_names,
    _check_n_features,
    check_is_fitted,
    validate_data,
)

from lelp_sklearn import _extraction_validation, _validation
from lelp_sklearn._callers import warn_user
from lelp_sklearn._extraction import runner
from lelp_sklearn._extraction.resumable import ResumableNpy, held
from lelp_sklearn._files import check_writable
from lelp_sklearn._locks import exclusive
from lelp_sklearn._training.device import resolve_device
from lelp_sklearn._training.inputs import is_integer
from lelp_sklearn._validation import check_numbers
from lelp_sklearn.exceptions import NoLinearHeadWarning

# Seconds between two lines of progress.
_BETWEEN_LINES = 5.0

# What scikit-learn's own clone takes along beside the parameters: `set_output` and the
# metadata that were requested.
_KEPT_BY_CLONES = ("_sklearn_output_config", "_metadata_request")


class EmbeddingExtractor(
    ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator
):
    """Embeddings of a trained torch model, and the linear layer that reads them.

    The embedding of a row is the input of the linear layer whose output the model
    returns. This layer is found by running the model on the first rows: its weights
    times its input are compared with the logits that the model returns. Where no layer
    makes them, there is no head; the embedding is the input of the layer nearest to the
    output, and `predict_logits` returns the logits of the model. The model is neither
    trained nor changed: its mode, its hooks, where it lies and which parameters require
    gradients are afterwards as before, also after an error.

    Parameters
    ----------
    model : torch.nn.Module
        The teacher: called with a batch of rows; a sequence classifier of Hugging Face,
        called with what `tokenizer` makes of a list of texts; or a model of
        sentence-transformers, whose output is the embedding. Clones share it.
    layer : str or None, default=None
        The layer whose input is the embedding, by its name in
        ``model.named_modules()``. None: the layer of the head, else the layer nearest
        to the output. The input of an earlier one may keep more of the groups in a
        class; then `predict_logits` has the logits. The input of a convolution is
        averaged over positions. Where the head runs on every token and the model then
        takes one token, as decoder-only classifiers do, that token is taken.
    tokenizer : callable or None, default=None
        That of a Hugging Face model. Texts are cut to `max_length` tokens.
    max_length : int or None, default=None
        Tokens of a text that are read, also by a model of sentence-transformers. None:
        as many as the tokenizer, or that model, takes.
    batch_size : int, default=64
        Rows that the model sees at once. A batch for which memory does not suffice is
        halved, with a warning.
    device : str or torch.device, default="auto"
        Where the model runs; it is moved there and back. "auto": where it lies.
    precision : {"float32", "bfloat16", "float16"}, default="float32"
        Other than "float32": automatic mixed precision.
    verbose : bool, default=False
        Whether to print how many rows are done, at what rate, and the time that
        remains, every five seconds.

    Attributes
    ----------
    head_ : tuple of ndarray (n_outputs, n_embedding), (n_outputs,) or None
        Weights and intercepts of the layer, a `head` for :class:`LELPProjector`: with
        the embeddings they make the logits that the model returns for the first rows,
        up to a log-softmax or a softmax after the layer. None where they do not, as for
        an earlier layer.
    head_layer_ : str or None
        The name of the linear layer that makes the logits, whichever layer is taken;
        None where there is none.
    n_logits_ : int
        Number of logits that the model returns for a row; 0 where it returns no vector
        for each row.
    layer_ : str
        The name of the layer; "sentence_embedding" for a sentence encoder.
    n_features_in_ : int
        Only where X is numbers.

    See Also
    --------
    LELPProjector : Turns the embeddings into soft labels.

    Notes
    -----
    In a search each fit of a clone extracts again. Extract once and search on
    ``teacher_embeddings`` instead.

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
    >>> likeliest = (embeddings @ W.T + b).argmax(axis=1)
    >>> projector.fit_transform(embeddings, likeliest).shape
    (100, 4)

    Of an earlier layer, with the logits in place of a head:

    >>> extractor = EmbeddingExtractor(teacher, layer="1")
    >>> embeddings = extractor.fit_transform(X)
    >>> logits = extractor.predict_logits(X)
    >>> projector = LELPProjector(n_subclasses=2)
    >>> projector.fit_transform(embeddings, likeliest, teacher_logits=logits).shape
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
        model,
        *,
        layer=None,
        tokenizer=None,
        max_length=None,
        batch_size=64,
        device="auto",
        precision="float32",
        verbose=False,
    ):
        self.model = model
        self.layer = layer
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.batch_size = batch_size
        self.device = device
        self.precision = precision
        self.verbose = verbose

    def __sklearn_clone__(self):
        # A copy of the model would cost as much as the model, and nothing changes it.
        cloned = type(self)(**self.get_params(deep=False))
        for name in _KEPT_BY_CLONES:
            if hasattr(self, name):
                setattr(cloned, name, copy.deepcopy(getattr(self, name)))
        return cloned

    def __deepcopy__(self, memo):
        # While another thread runs the model, it has hooks and another mode.
        with exclusive(self.model):
            twin = memo[id(self)] = type(self).__new__(type(self))
            vars(twin).update(copy.deepcopy(vars(self), memo))
        return twin

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.three_d_array = True
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

    def fit(self, X, y=None):
        """Find the layer, and compare it with what the model returns.

        Parameters
        ----------
        X : list of str or array-like, torch.Tensor of shape (n_samples, ...)
            Texts, or rows of numbers as the model takes them.
        y : None
            Ignored.

        Returns
        -------
        self : EmbeddingExtractor
            The fitted extractor.

        Raises
        ------
        TypeError
            If the model is no torch module, X one text, a generator, a dict, a
            DataLoader or a Dataset, or if X holds texts and something else.
        ValueError
            If there is no such layer or none with weights, if a layer that is named
            does not run exactly once, if its input is not a vector a row, if texts come
            without a tokenizer or as a table rather than its column, if the model
            cannot cut them to `max_length`, or if it fails on the rows.

        Warns
        -----
        NoLinearHeadWarning
            If no linear layer makes the logits that the model returns, and no `layer`
            is named. It names the layer that is taken, and the linear layer that comes
            closest with the largest difference.
        """
        self._validate_params()
        is_module = isinstance(self.model, torch.nn.Module)
        _extraction_validation.check_is_model(is_module, self.model)
        rows = self._check_rows(X, reset=True)
        layer = runner.named_layer(self.model, self.layer)
        # Integers are codes, such as those of tokens, or to a model that does not take
        # them numbers.
        try:
            teacher, width = self._unfitted_teacher(layer, True).examined(rows)
        except ValueError:
            if runner.is_texts(rows) or not is_integer(rows):
                raise
            teacher, width = self._unfitted_teacher(layer, False).examined(rows)
        output = self._output = teacher.output
        self._run, self._takes_token_ids = teacher.run, teacher.takes_token_ids
        self.layer_ = teacher.layer
        self.head_ = teacher.head()
        self.head_layer_ = None if output.head is None else output.head.module
        self.n_logits_ = output.n_logits
        self._n_features_out = width
        if layer is None and self.head_ is None:
            warn_user(
                _extraction_validation.without_head(
                    self.layer_, output.closest, output.difference, self.n_logits_
                ),
                NoLinearHeadWarning,
            )
        return self

    def transform(self, X):
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
        rows = self._check_rows(X, reset=False)
        batches = runner.batches_of(rows, int(self.batch_size))
        with self._teacher().ready() as embed:
            computed = self._computed(embed, rows, batches, "embedding")
            return _in_order(computed, len(rows), self._n_features_out)

    def predict_logits(self, X):
        """Compute the logits of rows, the `teacher_logits` where `head_` is None.

        These are what the model returns, or the entry "logits" of it, else the first
        tensor in it. Of probabilities, rows that sum to one, they are the logarithm.
        The model is called anew, as often as by :meth:`transform`.

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
        _extraction_validation.check_has_logits(self.n_logits_)
        rows = self._check_rows(X, reset=False)
        batches = runner.batches_of(rows, int(self.batch_size))
        with self._teacher().answering() as answer:
            computed = self._computed(answer, rows, batches, "logits")
            return _in_order(computed, len(rows), self.n_logits_)

    def extract(self, X, path, *, dtype="float16"):
        """Write the embeddings of rows to a ``.npy`` file; go on where a call ended.

        However a call ends, by an error or by the death of the process, the next one
        with the same arguments goes on from what is in ``<path>.part``, by the notes in
        ``<path>.journal``, and the file is as if there had been one call. Rows that are
        not those that the journal counts are refused. `path` itself appears when it is
        complete; if it is there already nothing is computed again.
        While it is written, ``<path>.lock`` keeps other calls from it, also those of
        other processes; the empty file stays. Fits first.

        The journal holds digests of what the file hangs on: the weights of the model
        and its layers as they print, all rows, each of their bytes, and where X is
        texts the tokenizer. Of one of Hugging Face these are its class, vocabulary and
        settings; of any other its class and what it makes of all texts. What else
        steers the model, such as an attribute that its ``forward`` reads and that is
        not printed, is in no digest: after a change of it delete the file, or name
        another.

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
            As :meth:`fit` does; if the file or what there is of it is of another model
            or tokenizer, other rows, another layer, `max_length`, precision or dtype,
            or is damaged; if another call writes it; if a symbolic link is in its
            place; if the disk has too little room; or if an embedding is not finite (as
            half precision may be).
        """
        path = Path(path)
        _extraction_validation.check_dtype(dtype)
        check_writable(path, 0, "path")
        with held(path):
            self.fit(X)
            return self._extract(self._check_rows(X, reset=False), path, dtype)

    def _extract(self, rows, path, dtype):
        dtype = np.dtype(dtype)
        batches = runner.batches_of(rows, int(self.batch_size))
        shape = len(rows), self._n_features_out
        file = ResumableNpy(path, shape, dtype, self._identity(rows, dtype))
        if not file.is_finished():
            order = np.concatenate(batches)
            with file.filling(order) as write, self._teacher().ready() as embed:
                size = int(self.batch_size)
                left = [
                    order[i : i + size] for i in range(file.n_done, len(order), size)
                ]
                for places, found in self._computed(embed, rows, left, "embedding"):
                    leftovers = file.files() if file.n_done else []
                    write(places, _cast(found, dtype, places, leftovers))
            file.finish()
        return file.open()

    def _computed(self, compute, rows, batches, what):
        """Yield the places of each batch and what is computed of their rows."""
        progress = _Progress(sum(map(len, batches)), self.verbose)
        for places in batches:
            found = compute(rows, places)
            _extraction_validation.check_finite_rows(found, places, what)
            yield places, found
            progress.add(len(places))

    def _teacher(self):
        """Give the model with what fit found, to run as the parameters say now."""
        teacher = self._unfitted_teacher(self.layer_, self._takes_token_ids)
        return replace(teacher, output=self._output, run=self._run)

    def _unfitted_teacher(self, layer, takes_token_ids):
        if self.device == "auto":
            device = runner.module_device(self.model)
        else:
            device = resolve_device(self.device, None)
        return runner.Teacher(
            self.model,
            layer,
            self.tokenizer,
            None if self.max_length is None else int(self.max_length),
            device,
            getattr(torch, self.precision),
            takes_token_ids,
        )

    def _check_rows(self, X, *, reset):
        """Give texts as a list, numbers as an array or a tensor."""
        is_loader = isinstance(X, torch.utils.data.DataLoader)
        is_dataset = isinstance(X, torch.utils.data.Dataset)
        _extraction_validation.check_is_rows(is_loader, is_dataset, X)
        if isinstance(X, torch.Tensor):
            _validation.check_tensor_rows(X)
            _check_feature_names(self, X, reset=reset)
            _check_n_features(self, X, reset=reset)
            return X
        _extraction_validation.check_is_listed(X)
        texts = _as_texts(X)
        if texts is not None:
            _extraction_validation.check_texts(texts)
            readable = self.tokenizer is not None
            readable |= runner.is_sentence_encoder(self.model)
            _extraction_validation.check_tokenizer(readable)
            return texts
        _extraction_validation.check_no_text_columns(X)
        check_numbers(X, "X")
        X = validate_data(self, X, reset=reset, allow_nd=True, ensure_all_finite=False)
        if X.dtype.kind == "f":
            _validation.check_finite_block(X, 0, "X")
        return X

    def _identity(self, rows, dtype):
        """What the content of a file hangs on; cheap beside a run of the teacher."""
        tokenizer = "None"
        if runner.is_texts(rows):
            tokenizer = self._teacher().digest_of_tokenizer(rows)
        return {
            "model": runner.digest_of_model(self.model),
            "layer": self.layer_,
            "tokenizer": tokenizer,
            "max_length": str(self.max_length),
            "precision": self.precision,
            "dtype": str(dtype),
            "number of rows": str(len(rows)),
            "X": runner.digest_of_rows(rows),
        }


class _Progress:
    """Prints how far the work is, now and then."""

    def __init__(self, n_rows, verbose):
        self._n_rows, self._verbose = n_rows, verbose
        self._n_done = 0
        self._begun = self._printed = time.monotonic()

    def add(self, n_rows):
        self._n_done += n_rows
        now = time.monotonic()
        is_last = self._n_done == self._n_rows
        if not self._verbose or not (is_last or now - self._printed > _BETWEEN_LINES):
            return
        self._printed = now
        rate = self._n_done / max(now - self._begun, 1e-9)
        left = (self._n_rows - self._n_done) / rate
        print(
            f"{self._n_done:,} of {self._n_rows:,} rows, {rate:,.0f} a second, "
            f"{left:,.0f} s left"
        )


def _in_order(computed, n_rows, n_columns):
    """Give what is computed of batches as one array, by the places of the rows."""
    found = np.empty((n_rows, n_columns), np.float32)
    for places, of_batch in computed:
        found[places] = of_batch
    return found


def _as_texts(X):
    """Give rows of which one is a text, or nothing, as a list; None for others."""
    if getattr(X, "ndim", 1) != 1 or not hasattr(X, "__iter__"):
        return None
    texts = list(X)
    return (
        texts if any(text is None or isinstance(text, str) for text in texts) else None
    )


def _cast(found, dtype, places, leftovers):
    """Give embeddings in the dtype of the file, which may hold less."""
    with np.errstate(over="ignore"):
        cast = found.astype(dtype)
    _extraction_validation.check_half(cast, places, leftovers)
    return cast
