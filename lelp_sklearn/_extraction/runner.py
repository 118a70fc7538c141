"""Embeddings of a torch teacher: what goes into one of its layers."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lelp_sklearn import _extraction_validation as validation
from lelp_sklearn._callers import warn_user
from lelp_sklearn._extraction.content_hash import content_hash
from lelp_sklearn._locks import ForkSafeLock, exclusive
from lelp_sklearn._training.batches import as_tensor
from lelp_sklearn._training.layers import (
    Output,
    answer_of,
    find_output,
    first_input,
    nearest_positions,
)

# The output of a sentence encoder, which has no head to look for.
SENTENCE_OUTPUT = "sentence_embedding"

# How much of the rows is digested at once.
_BLOCK_BYTES = 1 << 20
# Texts that a tokenizer of one's own encodes at once for its digest.
_BLOCK_TEXTS = 256
# What a tokenizer of Hugging Face holds beside its backend. How a text is cut and
# padded, each call writes anew into the backend.
_OF_CALLS = ("truncation", "padding")
_BESIDE_BACKEND = (
    "model_input_names",
    "model_max_length",
    "padding_side",
    "split_special_tokens",
    "truncation_side",
)

# Rows by which the layers are found: enough that nothing which a model does to its
# logits, such as cutting them off at zero, is likely to change none of them.
_FIRST_ROWS = 8

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

# Each call of a tokenizer writes how it cuts and pads into the tokenizer itself.
_tokenizing = ForkSafeLock()

Embed = Callable[[Any, NDArray[np.intp]], NDArray[Any]]


@dataclass(frozen=True)
class Teacher:
    """A model and how it is called.

    Parameters
    ----------
    model : torch.nn.Module
    layer : str or None
        Its input is the embedding; `SENTENCE_OUTPUT` stands for the output of a
        sentence encoder. None until it is found.
    tokenizer : callable or None
        Gives what the model takes of a list of texts.
    max_length : int or None
        Tokens of a text that are read; None for as many as the tokenizer takes.
    device : torch.device
    precision : torch.dtype
        That of products; float32 for the model's own.
    takes_token_ids : bool
        Whether integers stand for something, or are numbers.
    output : Output
        What the model returns, and the layers that make it.
    run : int or None
        Which run of the layer in a call, from the last; None where it must run once.
    """

    model: nn.Module
    layer: str | None
    tokenizer: Callable[..., Any] | None
    max_length: int | None
    device: torch.device
    precision: torch.dtype
    takes_token_ids: bool
    output: Output = field(default_factory=Output)
    run: int | None = None

    def head(self) -> tuple[NDArray[Any], NDArray[Any]] | None:
        """Weights (C, d) and intercepts (C,) of the layer; None if it is no head."""
        if self.output.head is None or self.output.head.module != self.layer:
            return None
        linear: Any = self.model.get_submodule(self.layer)
        coef = linear.weight.detach().cpu().double().numpy().copy()
        if linear.bias is None:
            return coef, np.zeros(len(coef))
        return coef, linear.bias.detach().cpu().double().numpy().copy()

    def examined(self, rows: Any) -> tuple["Teacher", int]:
        """Find the layers by the first rows; give the width of the embeddings too."""
        places = np.arange(min(_FIRST_ROWS, len(rows)))
        while True:
            try:
                return self._examined(rows, places)
            except _OUT_OF_MEMORY:
                if len(places) == 1:
                    raise
                places = places[: len(places) // 2]

    def _examined(self, rows: Any, places: NDArray[np.intp]) -> tuple["Teacher", int]:
        output = Output()
        if self.layer != SENTENCE_OUTPUT:
            with self._running():
                inputs = self._inputs(take(rows, places))
                # What torch has compiled before ignores new hooks.
                eager = replace(
                    self, model=getattr(self.model, "_orig_mod", self.model)
                )
                with _naming(inputs, places):
                    call = partial(eager._call, inputs)
                    output = find_output(self.model, call, len(places))
        layer, run = self.layer, None
        if layer is None:
            if output.layer is None:
                raise validation.no_layer(self.model)
            layer, run = output.layer
        teacher = replace(self, layer=layer, run=run, output=output)
        with teacher.ready() as embed:
            return teacher, embed(rows, places).shape[1]

    @contextmanager
    def ready(self) -> Iterator[Embed]:
        """Give a function from rows and places in them to embeddings (b, d), float32.

        Afterwards the model is as it was: its mode, its hooks and where it lies.
        """
        given: list[Any] = []
        made: list[Any] = []
        source = self.output.position_source
        with ExitStack() as stack:
            stack.enter_context(self._running())
            if self.layer != SENTENCE_OUTPUT:
                hook = self._module.register_forward_pre_hook(
                    lambda _, args, kwargs: given.append(
                        _kept(first_input(args, kwargs))
                    ),
                    with_kwargs=True,
                )
                stack.callback(hook.remove)
            if source is not None:
                hook = self.model.get_submodule(source.module).register_forward_hook(
                    lambda _, args, returned: made.append(_kept(answer_of(returned)))
                )
                stack.callback(hook.remove)

            def embed(rows: Any, places: NDArray[np.intp]) -> NDArray[Any]:
                given.clear()
                made.clear()
                find = partial(self._embedding, given, made, len(places))
                return self._see(rows, places, find)

            yield RetryOnOOM(embed)

    @contextmanager
    def answering(self) -> Iterator[Embed]:
        """Give a function from rows and places in them to logits (b, C), float32.

        Afterwards the model is as it was.
        """

        def answer(rows: Any, places: NDArray[np.intp]) -> NDArray[Any]:
            find = partial(self.output.logits, n_rows=len(places))
            return self._see(rows, places, find)

        with self._running():
            yield RetryOnOOM(answer)

    @contextmanager
    def _running(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(exclusive(self.model))
            stack.enter_context(_evaluating(self.model))
            stack.enter_context(on_device(self.model, self.device))
            stack.enter_context(torch.no_grad())
            if self.precision != torch.float32:
                kind = self.device.type
                stack.enter_context(torch.autocast(kind, dtype=self.precision))
            yield

    def _see(
        self,
        rows: Any,
        places: NDArray[np.intp],
        find: Callable[[Any], Any],
    ) -> NDArray[Any]:
        """Call the model, and give what is found of each row."""
        inputs = self._inputs(take(rows, places))
        with _naming(inputs, places):
            returned = self._call(inputs)
        found = find(returned)
        # What went wrong on an accelerator is known when its results are read.
        with _naming(inputs, places):
            numbers: NDArray[Any] = found.float().cpu().numpy()
        return numbers

    def _embedding(
        self, given: list[Any], made: list[Any], n_rows: int, returned: Any
    ) -> Any:
        """Give the input of the layer, of several positions that of the logits."""
        if self.layer == SENTENCE_OUTPUT:
            found = returned[SENTENCE_OUTPUT]
        else:
            validation.check_ran(len(given), self.run, self.layer)
            found = given[self.run or -1]
        if isinstance(found, Tensor) and found.ndim > 2:
            found = self._pooled(found, made, returned)
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found)
        validation.check_embedding_shape(shape, n_rows, self.layer)
        return found

    def _pooled(self, found: Tensor, made: list[Any], returned: Any) -> Tensor:
        """Average what a convolution takes; else take the position of the logits."""
        if isinstance(self._module, _CONVOLUTIONS):
            return found.float().flatten(2).mean(2)
        source = self.output.position_source
        if source is None or found.ndim != 3:
            return found
        outputs = made[source.from_last]
        if outputs.shape[:2] != found.shape[:2]:
            return found
        logits = self.output.logits(returned, len(found))
        positions = nearest_positions(outputs, logits)
        return found[torch.arange(len(found), device=found.device), positions]

    @property
    def _module(self) -> nn.Module:
        """The layer."""
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
            for name, value in self._encoded(list(batch)).items()
        }

    def _encoded(self, texts: list[str]) -> Any:
        with _tokenizing.held():
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

    def digest_of_tokenizer(self, texts: list[str]) -> str:
        """Name the kind of the tokenizer, and digest what it does.

        That is its vocabulary and settings where these can be read; else what it makes
        of all the texts, since the state of an object may change from call to call.
        """
        with exclusive(self.model), _tokenizing.held():
            return self._digest_of_tokenizer(texts)

    def _digest_of_tokenizer(self, texts: list[str]) -> str:
        inner = getattr(self.model, "tokenizer", None)
        tokenizer = inner if self.tokenizer is None else self.tokenizer
        backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        if hasattr(backend, "to_str"):
            settings = json.loads(backend.to_str())
            for name in _OF_CALLS:
                settings.pop(name, None)
            beside = [getattr(tokenizer, name, None) for name in _BESIDE_BACKEND]
            longest = getattr(self.model, "max_seq_length", None)
            found = content_hash(
                [json.dumps(settings, sort_keys=True), beside, longest]
            )
        else:
            starts = range(0, len(texts), _BLOCK_TEXTS)
            blocks = (texts[start : start + _BLOCK_TEXTS] for start in starts)
            found = content_hash([content_hash(dict(self._encoded(b))) for b in blocks])
        return f"{type(tokenizer).__name__} {found}"


_OUT_OF_MEMORY = (torch.OutOfMemoryError, MemoryError)


class RetryOnOOM:
    """Embeds a batch in halves, and these again, where memory does not suffice."""

    def __init__(self, embed: Embed) -> None:
        self._embed = embed
        self._said = False

    def __call__(self, rows: Any, places: NDArray[np.intp]) -> NDArray[Any]:
        try:
            return self._embed(rows, places)
        except _OUT_OF_MEMORY:
            if len(places) < 2:
                raise
        if not self._said:
            self._said = True
            warn_user(
                f"A batch of {len(places)} rows is too large for the memory: such "
                "batches are halved. A smaller batch_size saves the attempts."
            )
        half = len(places) // 2
        parts = places[:half], places[half:]
        return np.concatenate([self(rows, part) for part in parts])


@contextmanager
def _naming(inputs: Any, places: NDArray[np.intp]) -> Iterator[None]:
    """Have an error of the model, which may be any, say on which rows it came."""
    try:
        yield
    except _OUT_OF_MEMORY:
        raise
    except Exception as reason:
        raise validation.failing_model(_shapes(inputs), places, reason) from reason


def is_texts(rows: Any) -> bool:
    """Whether rows are a list of texts rather than numbers."""
    return isinstance(rows, list)


def is_sentence_encoder(model: nn.Module) -> bool:
    """Whether a model is one of sentence-transformers."""
    # Other models may encode and preprocess; the property may fail, where nothing cuts.
    return (
        callable(getattr(model, "encode", None))
        and callable(_preprocess(model))
        and hasattr(type(model), "max_seq_length")
    )


def _preprocess(model: nn.Module) -> Any:
    """Give what makes tokens of texts, by its newer name where it has that."""
    return getattr(model, "preprocess", None) or getattr(model, "tokenize", None)


def named_layer(model: nn.Module, layer: str | None) -> str | None:
    """Name the layer whose input is taken; None where it is to be found."""
    names: list[str] = [name for name, _ in model.named_modules() if name]
    if layer is not None:
        if layer not in names:
            raise validation.unknown_layer(layer, names)
        return layer
    return SENTENCE_OUTPUT if is_sentence_encoder(model) else None


def module_device(model: nn.Module) -> torch.device:
    """Give the device of a model, to which every run brings it back."""
    with exclusive(model):
        first = next(model.parameters(), None)
        return torch.device("cpu") if first is None else first.device


def digest_of_model(model: nn.Module) -> str:
    """Give a digest of the weights and buffers of a model, and of its layers.

    Layers count as they print, which tells an activation or a pooling from another
    where the weights do not.
    """
    # An object that prints its place in memory has another in each process.
    layers = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(model))
    digest = hashlib.sha256(f"{type(model).__qualname__} {layers}".encode())
    with exclusive(model):
        for name, tensor in model.state_dict().items():
            if isinstance(tensor, Tensor):
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(_bytes_of(tensor))
    return digest.hexdigest()


def digest_of_rows(rows: Any) -> str:
    """Give a digest of all that rows hold, read a block at a time.

    An array and a tensor of the same numbers and dtype have the same.
    """
    digest = hashlib.sha256()
    if is_texts(rows):
        for text in rows:
            digest.update(f"{len(text)}:{text}".encode("utf-8", "surrogatepass"))
        return digest.hexdigest()
    first = as_tensor(rows[:1])
    digest.update(f"{first.dtype} {tuple(rows.shape)}".encode())
    step = max(1, _BLOCK_BYTES // max(1, first.nbytes))
    for start in range(0, len(rows), step):
        digest.update(_bytes_of(as_tensor(rows[start : start + step])))
    return digest.hexdigest()


def _bytes_of(tensor: Tensor) -> memoryview:
    content = tensor.detach().resolve_neg().cpu().contiguous().reshape(-1)
    content_bytes: memoryview = content.view(torch.uint8).numpy().data
    return content_bytes


def batches_of(rows: Any, batch_size: int) -> list[NDArray[np.intp]]:
    """Places of the rows of each batch: texts by length, the longest first."""
    order = np.arange(len(rows))
    if is_texts(rows):
        order = np.argsort([-len(text) for text in rows], kind="stable")
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def take(rows: Any, places: NDArray[np.intp]) -> Any:
    """Give some of the rows."""
    if is_texts(rows):
        return [rows[place] for place in places]
    # Numbers are in order: a slice of them copies nothing.
    return rows[int(places[0]) : int(places[-1]) + 1]


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
    """Have a sentence encoder read so many tokens of a text, and then as before."""
    if max_length is None:
        yield
        return
    # Each may have a length of its own, and what routes texts sets those of all.
    modules = [m for m in model.modules() if hasattr(m, "max_seq_length")]
    before = [module.max_seq_length for module in modules]
    # What has none takes one and does nothing with it.
    if not (before and isinstance(before[0], int)):
        raise validation.reads_texts_whole(max_length, type(model[0]).__name__)
    try:
        model.max_seq_length = max_length
        if model.max_seq_length != max_length:
            raise validation.reads_texts_whole(max_length, type(model[0]).__name__)
        yield
    finally:
        for module, length in zip(modules, before, strict=True):
            module.max_seq_length = length


def _kept(found: Any) -> Any:
    """Give a copy of a tensor, which the model may go on to work on in place."""
    return found.clone() if isinstance(found, Tensor) else found


def _shapes(inputs: Any) -> str:
    if isinstance(inputs, Tensor):
        return f"a tensor of shape {tuple(inputs.shape)} and dtype {inputs.dtype}"
    return "tokens " + ", ".join(
        f"{name} {tuple(value.shape)}"
        for name, value in inputs.items()
        if isinstance(value, Tensor)
    )
