"""Run a torch teacher: the input of one of its layers, and the logits it returns.

The kinds of teachers are told apart by their rows and by `is_sentence_encoder`:

=====================  =======  =====================================================
kind                   rows     called with
=====================  =======  =====================================================
torch module           numbers  a tensor; int64 if `takes_token_ids`
Hugging Face           texts    keywords: the output of `tokenizer`
sentence-transformers  texts    a dict: the output of the model's own tokenizer
=====================  =======  =====================================================

A new kind needs a line in `resolve_layer`, `ModelRunner._inputs` and
`ModelRunner._call`.
"""

import copy
import difflib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lelp_sklearn._callers import warn_user
from lelp_sklearn._files import content_hash
from lelp_sklearn._threads import ForkSafeLock, exclusive
from lelp_sklearn._training.batches import as_tensor
from lelp_sklearn._training.layers import (
    Output,
    answer_of,
    find_output,
    first_input,
    nearest_positions,
)
from lelp_sklearn._typing import FloatArray, IntArray

# Stands for a layer: the output of a sentence encoder, which has no head to look for.
SENTENCE_OUTPUT = "sentence_embedding"

# Rows by which the layers are found: enough to notice a model that changes some of its
# logits, such as by cutting them off at zero.
_FIRST_ROWS = 8
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_OUT_OF_MEMORY = (torch.OutOfMemoryError, MemoryError)

# How much of the rows, and how many texts, are hashed at once.
_BLOCK_BYTES = 1 << 20
_BLOCK_TEXTS = 256
# Settings of a Hugging Face tokenizer in its backend that each call replaces, and
# settings outside its backend.
_SET_BY_CALLS = ("truncation", "padding")
_BESIDE_BACKEND = (
    "model_input_names",
    "model_max_length",
    "padding_side",
    "split_special_tokens",
    "truncation_side",
)

# Each call of a tokenizer writes how it cuts and pads into the tokenizer itself.
_tokenizer_lock = ForkSafeLock()

# From rows and indices of some of them to an array with a row for each index.
BatchFunction = Callable[[Any, IntArray], FloatArray]


@dataclass(frozen=True)
class ModelRunner:
    """A model, how it is called, and the layer whose input is the embedding."""

    model: nn.Module
    # `SENTENCE_OUTPUT` or the name of the layer; None until it is found.
    layer: str | None
    # Returns the keyword arguments of the model for a list of texts.
    tokenizer: Callable[..., Any] | None
    # Tokens of a text that are read; None for the maximum of the tokenizer.
    max_length: int | None
    device: torch.device
    # Of products; float32 for the precision of the weights.
    precision: torch.dtype
    # Whether integers are token ids, or numbers.
    takes_token_ids: bool
    output: Output = field(default_factory=Output)
    # Which run of the layer in a call, from the last; None if it must run once.
    run: int | None = None

    def head(self) -> tuple[FloatArray, FloatArray] | None:
        """Return coef (C, d) and intercept (C,) of the layer; None if it is no head."""
        if self.output.head is None or self.output.head.module != self.layer:
            return None
        linear: Any = self.model.get_submodule(self.layer)
        coef = linear.weight.detach().cpu().double().numpy().copy()
        if linear.bias is None:
            return coef, np.zeros(len(coef))
        return coef, linear.bias.detach().cpu().double().numpy().copy()

    def with_layers(self, rows: Any) -> tuple["ModelRunner", int]:
        """Find the layers by the first rows; return the width of embeddings too."""
        indices = np.arange(min(_FIRST_ROWS, len(rows)))
        while True:
            try:
                return self._with_layers(rows, indices)
            except _OUT_OF_MEMORY:
                if len(indices) == 1:
                    raise
                indices = indices[: len(indices) // 2]

    def _with_layers(self, rows: Any, indices: IntArray) -> tuple["ModelRunner", int]:
        layer, run, output = self.layer, None, Output()
        if layer != SENTENCE_OUTPUT:
            with self._running():
                inputs = self._inputs(take(rows, indices))
                # What torch has compiled before ignores new hooks.
                eager = getattr(self.model, "_orig_mod", self.model)
                with _naming_rows(inputs, indices):
                    call = partial(replace(self, model=eager)._call, inputs)
                    output = find_output(self.model, call, len(indices))
        if layer is None:
            if output.layer is None:
                raise ValueError(
                    f"model ({type(self.model).__name__}) runs no torch.nn.Linear and "
                    "no other layer with weights whose input could be the embeddings: "
                    "name a layer, layer='...'."
                )
            layer, run = output.layer
        runner = replace(self, layer=layer, run=run, output=output)
        with runner.embedding_fn() as embed:
            return runner, embed(rows, indices).shape[1]

    @contextmanager
    def embedding_fn(self) -> Iterator[BatchFunction]:
        """Yield a function from rows and indices to embeddings (b, d), float32."""
        layer_inputs: list[Any] = []
        source_outputs: list[Any] = []
        source = self.output.position_source

        def keep_input(layer: nn.Module, args: Any, kwargs: Any) -> None:
            layer_inputs.append(_copy_tensor(first_input(args, kwargs)))

        def keep_output(module: nn.Module, args: Any, returned: Any) -> None:
            source_outputs.append(_copy_tensor(answer_of(returned)))

        def embed(rows: Any, indices: IntArray) -> FloatArray:
            layer_inputs.clear()
            source_outputs.clear()
            n_rows = len(indices)
            return self._compute(
                rows,
                indices,
                lambda returned: self._embeddings(
                    layer_inputs, source_outputs, returned, n_rows
                ),
            )

        with self._running(), ExitStack() as stack:
            if self.layer != SENTENCE_OUTPUT:
                hook = self._layer_module.register_forward_pre_hook(
                    keep_input, with_kwargs=True
                )
                stack.callback(hook.remove)
            if source is not None:
                module = self.model.get_submodule(source.module)
                stack.callback(module.register_forward_hook(keep_output).remove)
            yield RetryOnOOM(embed)

    @contextmanager
    def logits_fn(self) -> Iterator[BatchFunction]:
        """Yield a function from rows and indices to logits (b, C), float32."""

        def compute(rows: Any, indices: IntArray) -> FloatArray:
            logits_of = partial(self.output.logits, n_rows=len(indices))
            return self._compute(rows, indices, logits_of)

        with self._running():
            yield RetryOnOOM(compute)

    @contextmanager
    def _running(self) -> Iterator[None]:
        """Let the model run; afterwards its mode and its device are as before."""
        with ExitStack() as stack:
            stack.enter_context(exclusive(self.model))
            stack.enter_context(_evaluating(self.model))
            stack.enter_context(on_device(self.model, self.device))
            stack.enter_context(torch.no_grad())
            if self.precision != torch.float32:
                kind = self.device.type
                stack.enter_context(torch.autocast(kind, dtype=self.precision))
            yield

    def _compute(
        self, rows: Any, indices: IntArray, result_of: Callable[[Any], Any]
    ) -> FloatArray:
        """Call the model on some rows, and return `result_of` its output."""
        inputs = self._inputs(take(rows, indices))
        with _naming_rows(inputs, indices):
            returned = self._call(inputs)
        result = result_of(returned)
        # What went wrong on an accelerator is known when its results are read.
        with _naming_rows(inputs, indices):
            numbers: FloatArray = result.float().cpu().numpy()
        return numbers

    def _embeddings(
        self,
        layer_inputs: list[Any],
        source_outputs: list[Any],
        returned: Any,
        n_rows: int,
    ) -> Any:
        """Return the input (n, d) of the layer; of several positions, one."""
        if self.layer == SENTENCE_OUTPUT:
            embeddings = returned[SENTENCE_OUTPUT]
        else:
            n_runs, run = len(layer_inputs), self.run
            if n_runs != 1 and (run is None or n_runs < -run):
                ran = "did not run" if not n_runs else f"ran {n_runs} times"
                raise ValueError(
                    f"layer={self.layer!r} {ran} when the model was called once, so "
                    "its input is not one embedding per row: name another layer."
                )
            embeddings = layer_inputs[run or -1]
        if isinstance(embeddings, Tensor) and embeddings.ndim > 2:
            embeddings = self._pooled(embeddings, source_outputs, returned)
        is_tensor = isinstance(embeddings, Tensor)
        shape: Any = tuple(embeddings.shape) if is_tensor else type(embeddings)
        if not is_tensor or len(shape) != 2 or shape[0] != n_rows:
            raise ValueError(
                f"layer={self.layer!r} takes an input of shape {shape} for {n_rows} "
                "rows; embeddings are (n_rows, n_features): name a layer after the "
                "pooling."
            )
        return embeddings

    def _pooled(
        self, embeddings: Tensor, source_outputs: list[Any], returned: Any
    ) -> Tensor:
        """Average the input of a convolution; else take the position of the logits."""
        if isinstance(self._layer_module, _CONVOLUTIONS):
            return embeddings.float().flatten(2).mean(2)
        source = self.output.position_source
        if source is None or embeddings.ndim != 3:
            return embeddings
        outputs = source_outputs[source.from_last]
        if outputs.shape[:2] != embeddings.shape[:2]:
            return embeddings
        n_rows = len(embeddings)
        positions = nearest_positions(outputs, self.output.logits(returned, n_rows))
        return embeddings[torch.arange(n_rows, device=embeddings.device), positions]

    @property
    def _layer_module(self) -> nn.Module:
        assert self.layer is not None
        return self.model.get_submodule(self.layer)

    def _call(self, inputs: Any) -> Any:
        if isinstance(inputs, Tensor) or is_sentence_encoder(self.model):
            return self.model(inputs)
        return self.model(**inputs)

    def _inputs(self, batch: Any) -> Any:
        if not is_texts(batch):
            numbers = as_tensor(batch, self.device)
            if self.takes_token_ids and not numbers.is_floating_point():
                return numbers.to(torch.int64, copy=True)
            parameter = next(self.model.parameters(), numbers)
            # A model may work in place; the batch may be the caller's own memory.
            return numbers.to(dtype=parameter.dtype, copy=True)
        return {
            name: value.to(self.device) if isinstance(value, Tensor) else value
            for name, value in self._tokenized(batch).items()
        }

    def _tokenized(self, texts: list[str]) -> Any:
        with _tokenizer_lock.held():
            if self.tokenizer is None:
                with _reading(self.model, self.max_length):
                    return _preprocess(self.model)(texts)
            return self.tokenizer(
                texts,
                padding=True,
                truncation=True,
                max_length=self.max_length,
                return_tensors="pt",
            )

    def hash_tokenizer(self, texts: list[str]) -> str:
        """Return the class of the tokenizer, and a hash of its settings or output."""
        with exclusive(self.model), _tokenizer_lock.held():
            tokenizer = self.tokenizer or getattr(self.model, "tokenizer", None)
            backend: Any = getattr(tokenizer, "backend_tokenizer", None)
            if hasattr(backend, "to_str"):
                settings = json.loads(backend.to_str())
                for name in _SET_BY_CALLS:
                    settings.pop(name, None)
                beside = [getattr(tokenizer, name, None) for name in _BESIDE_BACKEND]
                longest = getattr(self.model, "max_seq_length", None)
                digest = content_hash([settings, beside, longest])
            else:
                # The state of an object may change from call to call.
                starts = range(0, len(texts), _BLOCK_TEXTS)
                blocks = (texts[start : start + _BLOCK_TEXTS] for start in starts)
                digest = content_hash(
                    [content_hash(dict(self._tokenized(block))) for block in blocks]
                )
        return f"{type(tokenizer).__name__} {digest}"


class RetryOnOOM:
    """Computes a batch in halves, recursively, if memory does not suffice."""

    def __init__(self, compute: BatchFunction) -> None:
        self._compute = compute
        self._has_warned = False

    def __call__(self, rows: Any, indices: IntArray) -> FloatArray:
        try:
            return self._compute(rows, indices)
        except _OUT_OF_MEMORY:
            if len(indices) < 2:
                raise
        if not self._has_warned:
            self._has_warned = True
            warn_user(
                f"A batch of {len(indices)} rows is too large for the memory: such "
                "batches are halved. A smaller batch_size saves the attempts."
            )
        half = len(indices) // 2
        halves = indices[:half], indices[half:]
        return np.concatenate([self(rows, each) for each in halves])


@contextmanager
def _naming_rows(inputs: Any, indices: IntArray) -> Iterator[None]:
    """Name the rows in an error of the model, which may be any."""
    try:
        yield
    except _OUT_OF_MEMORY:
        raise
    # A user's model may fail in any way.
    except Exception as reason:
        first, last = int(indices.min()), int(indices.max())
        rows = f"rows {first} to {last}"
        if last - first >= len(indices):
            rows = f"{len(indices)} of the rows {first} to {last}, of like length"
        if isinstance(inputs, Tensor):
            shapes = f"a tensor of shape {tuple(inputs.shape)} and dtype {inputs.dtype}"
        else:
            shapes = "tokens " + ", ".join(
                f"{name} {tuple(value.shape)}"
                for name, value in inputs.items()
                if isinstance(value, Tensor)
            )
        raise ValueError(
            f"model fails on a batch of X, {rows}, {shapes}: {reason}; X must have the "
            "shape and dtype that it takes."
        ) from reason


def is_texts(rows: Any) -> bool:
    """Return whether rows are a list of texts rather than numbers."""
    return isinstance(rows, list)


def is_sentence_encoder(model: nn.Module) -> bool:
    """Return whether a model is one of sentence-transformers."""
    # Other models may encode and preprocess; reading the property itself may fail.
    return (
        callable(getattr(model, "encode", None))
        and callable(_preprocess(model))
        and hasattr(type(model), "max_seq_length")
    )


def _preprocess(model: nn.Module) -> Any:
    """Return the method that tokenizes texts, which older versions call tokenize."""
    return getattr(model, "preprocess", None) or getattr(model, "tokenize", None)


def resolve_layer(model: nn.Module, layer: str | None) -> str | None:
    """Return the name of the layer to read; None if it has to be found."""
    names = [name for name, _ in model.named_modules() if name]
    if layer is not None and layer not in names:
        close = difflib.get_close_matches(layer, names)
        fixes = [*map(repr, close), "another name in model.named_modules()"]
        raise ValueError(
            f"layer={layer!r} is not a layer of the model: pass {' or '.join(fixes)}."
        )
    return SENTENCE_OUTPUT if layer is None and is_sentence_encoder(model) else layer


def module_device(model: nn.Module) -> torch.device:
    """Return the device of a model, to which every run brings it back."""
    with exclusive(model):
        first = next(model.parameters(), None)
        return torch.device("cpu") if first is None else first.device


def copy_structure(model: Any) -> Any:
    """Return a copy of a model that no thread is running; its tensors are shared."""
    if not isinstance(model, nn.Module):
        return model
    with exclusive(model):
        tensors = [*model.parameters(), *model.buffers()]
        # Some layers keep a tensor that torch refuses to copy as a plain attribute.
        attributes = [
            value for each in model.modules() for value in vars(each).values()
        ]
        tensors += [value for value in attributes if isinstance(value, Tensor)]
        return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def hash_model(model: nn.Module) -> str:
    """Return a hash of the weights and buffers of a model, and of its layers."""
    # Printed layers show activations and pooling too; addresses depend on the process.
    layers = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(model))
    with exclusive(model):
        state = model.state_dict().items()
        weights = {name: value for name, value in state if isinstance(value, Tensor)}
        return content_hash([type(model).__qualname__, layers, weights])


def hash_inputs(rows: Any) -> str:
    """Return a hash of rows, a block at a time; of a tensor that of an equal array."""
    if is_texts(rows):
        return content_hash(rows)
    step = max(1, _BLOCK_BYTES // max(1, as_tensor(rows[:1]).nbytes))
    blocks = (rows[start : start + step] for start in range(0, len(rows), step))
    return content_hash([content_hash(as_tensor(block)) for block in blocks])


def batches_of(rows: Any, batch_size: int) -> list[IntArray]:
    """Return the indices of the rows of each batch: texts by length, longest first."""
    order = np.arange(len(rows))
    if is_texts(rows):
        order = np.argsort([-len(text) for text in rows], kind="stable")
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def take(rows: Any, indices: IntArray) -> Any:
    """Return some of the rows."""
    if is_texts(rows):
        return [rows[index] for index in indices]
    # Numbers are in order: a slice of them copies nothing.
    return rows[int(indices[0]) : int(indices[-1]) + 1]


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and each module back into its own."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def on_device(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Move a model to a device, and back."""
    before = module_device(model)
    if before == device:
        yield
        return
    try:
        model.to(device)
        yield
    finally:
        model.to(before)


@contextmanager
def _reading(model: Any, max_length: int | None) -> Iterator[None]:
    """Let a sentence encoder read `max_length` tokens of a text in the block."""
    if max_length is None:
        yield
        return
    # Each part may have a length of its own; a router sets the lengths of all parts.
    modules = [each for each in model.modules() if hasattr(each, "max_seq_length")]
    lengths = [each.max_seq_length for each in modules]
    refusal = ValueError(
        f"max_length={max_length} has no effect: the {type(model[0]).__name__} of this "
        "model of sentence-transformers does not cut texts. Pass max_length=None, and "
        "texts that are short enough."
    )
    # What has no length takes one, and does nothing with it.
    if not (lengths and isinstance(lengths[0], int)):
        raise refusal
    try:
        model.max_seq_length = max_length
        if model.max_seq_length != max_length:
            raise refusal
        yield
    finally:
        for module, length in zip(modules, lengths, strict=True):
            module.max_seq_length = length


def _copy_tensor(value: Any) -> Any:
    """Return a copy of a tensor, which the model may later change in place."""
    return value.clone() if isinstance(value, Tensor) else value
