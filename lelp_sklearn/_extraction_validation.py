"""Checks of what a user passes to the extractor, and their messages."""

from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def check_is_model(is_module: bool, model: object) -> None:
    """Raise unless the teacher is a torch module."""
    if not is_module:
        raise TypeError(
            f"model is of type {type(model).__name__}; it must be a torch.nn.Module, "
            "such as a model of Hugging Face or of sentence-transformers."
        )


def unknown_layer(layer: str, names: Sequence[str]) -> ValueError:
    """There is no such layer."""
    return ValueError(
        f"layer={layer!r} is not a layer of the model; it has {', '.join(names)}."
    )


def no_layer(model: object) -> ValueError:
    """There is no layer whose input could be the embedding."""
    return ValueError(
        f"model ({type(model).__name__}) runs no torch.nn.Linear and no other layer "
        "with weights whose input could be the embeddings: name a layer, layer='...'."
    )


def check_ran(n_runs: int, run: int | None, layer: str | None) -> None:
    """Raise unless the layer has run, and only once where no run is named."""
    if n_runs == 1 or (run is not None and n_runs >= -run):
        return
    ran = "did not run" if not n_runs else f"ran {n_runs} times"
    raise ValueError(
        f"layer={layer!r} {ran} when the model was called once, so its input is not "
        "one embedding a row: name another layer."
    )


def without_head(
    layer: str, closest: str | None, difference: float, n_logits: int
) -> str:
    """No linear layer makes what the model returns: what is taken instead."""
    logits = "predict_logits returns its logits"
    if not n_logits:
        reason = "model does not return one vector of logits for each row"
        logits = "it has no logits"
    elif closest is None:
        reason = "No torch.nn.Linear makes the logits that model returns"
    else:
        reason = (
            "The logits that model returns are not weights times input of a linear "
            f"layer: those of {closest!r} come closest, and their log-probabilities "
            f"differ by up to {difference:.2g}"
        )
    return (
        f"{reason}. head_ is None, the embeddings are the input of "
        f"{repr(layer) if layer else 'the model itself'}, and "
        f"{logits}; layer= names another layer."
    )


def check_embedding_shape(found: object, n_rows: int, layer: str | None) -> None:
    """Raise unless the layer's input is a vector for each row."""
    if not (isinstance(found, tuple) and len(found) == 2 and found[0] == n_rows):
        raise ValueError(
            f"layer={layer!r} takes an input of shape {found} for {n_rows} rows; "
            "embeddings are (n_rows, n_features): name a layer after the pooling."
        )


def failing_model(shapes: object, rows: NDArray[Any], reason: object) -> ValueError:
    """The model does not take the rows; these are their places in X."""
    first, last = int(rows.min()), int(rows.max())
    named = f"rows {first} to {last}"
    if last - first >= len(rows):
        named = f"{len(rows)} of the rows {first} to {last}, of like length"
    return ValueError(f"model fails on a batch of X, {named}, {shapes}: {reason}")


def check_tokenizer(has_tokenizer: bool) -> None:
    """Raise where texts come to a model that takes numbers."""
    if not has_tokenizer:
        raise ValueError(
            "X holds texts and there is no tokenizer: pass tokenizer=, the one that "
            "the model was trained with."
        )


def reads_texts_whole(max_length: int, kind: str) -> ValueError:
    """A sentence encoder has no length to which it cuts texts."""
    return ValueError(
        f"max_length={max_length} cannot be kept: the {kind} of this model of "
        "sentence-transformers does not cut texts. Pass max_length=None, and texts "
        "that are short enough."
    )


def check_is_listed(X: Any) -> None:
    """Raise for what is no table and no list of rows, or an empty one."""
    kind = type(X).__name__
    if isinstance(X, str):
        raise TypeError(f"X is one text, {X[:30]!r}: pass a list of texts.")
    # A sparse matrix may be a Mapping, and has an error of its own.
    if isinstance(X, (Mapping, Set)) and not hasattr(X, "shape"):
        raise TypeError(
            f"X is of type {kind}: pass a list of texts, whose rows are in order, or "
            "an array."
        )
    if isinstance(X, Iterator):
        raise TypeError(
            f"X is of type {kind}, which can be read once only: pass list(X)."
        )
    if isinstance(X, Sequence) and not len(X):
        raise ValueError("X is empty, []: at least one row is required.")


def check_texts(texts: Sequence[Any]) -> None:
    """Raise unless there is nothing but texts, of whole characters."""
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
                f"({text[reason.start]!r} at {reason.start}), which is no text: "
                "pass text.encode('utf-16', 'surrogatepass').decode('utf-16', "
                "'replace')."
            ) from reason


def check_is_rows(is_loader: bool, is_dataset: bool, X: object) -> None:
    """Raise for a DataLoader or a Dataset of torch, which are not rows."""
    if is_loader:
        mend = "torch.cat([batch[0] for batch in loader])"
    elif is_dataset:
        mend = "torch.stack([X[i][0] for i in range(len(X))])"
    else:
        return
    raise TypeError(
        f"X is of type {type(X).__name__}: pass the rows, a list of texts, an array or "
        f"a tensor, for instance {mend}; batch_size says how many the model sees at "
        "once."
    )


def check_no_text_columns(X: Any) -> None:
    """Raise for a table or two-dimensional array with texts in it."""
    if getattr(X, "ndim", 2) != 2 or not hasattr(X, "shape") or 0 in X.shape:
        return
    names = getattr(X, "columns", None)
    if names is None and getattr(getattr(X, "dtype", None), "kind", "") not in (
        "O",
        "T",
        "U",
    ):
        return
    first = np.asarray(X[:1], dtype=object)[0]
    texts = [i for i, value in enumerate(first) if isinstance(value, str)]
    if texts:
        column = f"X[:, {texts[0]}]" if names is None else f"X[{names[texts[0]]!r}]"
        raise ValueError(
            f"X is of type {type(X).__name__}, shape {X.shape}, and holds texts: pass "
            f"the column by itself, {column}."
        )


def check_finite_rows(block: NDArray[Any], rows: NDArray[Any], what: str) -> None:
    """Raise where what the model makes of rows, at these places in X, is not finite."""
    row = _first_not_finite(block, rows)
    if row is not None:
        raise ValueError(f"The model's {what} of row {row} holds NaN or infinity.")


def check_has_logits(n_logits: int) -> None:
    """Raise where the model returns no logits."""
    if not n_logits:
        raise ValueError(
            "model has no logits: it does not return one vector for each row. Omit "
            "teacher_logits, or compute them from what the model returns."
        )


def check_half(
    block: NDArray[Any], rows: NDArray[Any], leftovers: Sequence[object]
) -> None:
    """Raise where an embedding is too large for half precision.

    `leftovers` are the files that hold what came before it.
    """
    row = _first_not_finite(block, rows)
    if row is not None:
        delete = f"delete {_listed(leftovers)} and " if leftovers else ""
        raise ValueError(
            f"The model's embedding of row {row} is larger than 65504, at which half "
            f"precision ends: {delete}pass dtype='float32'."
        )


def _first_not_finite(block: NDArray[Any], rows: NDArray[Any]) -> int | None:
    finite = np.isfinite(block).all(axis=1)
    return None if finite.all() else int(rows[~finite].min())


def _listed(files: Sequence[object]) -> str:
    return " and ".join(repr(str(file)) for file in files)


def check_dtype(dtype: object) -> None:
    """Raise unless a file may have this dtype."""
    if dtype not in ("float16", "float32"):
        raise ValueError(f"dtype={dtype!r} must be 'float16' or 'float32'.")


def check_unused(path: object, is_ours: bool) -> None:
    """Raise where another call that is running writes to the file."""
    if not is_ours:
        raise ValueError(
            f"path={str(path)!r} is in use by another call of extract: give each a "
            "file of its own, or wait until that one is done and call again to read it."
        )


def check_no_link(path: Path) -> None:
    """Raise where a link lies in the place of a file that is to be written."""
    if path.is_symlink():
        raise ValueError(
            f"path: {str(path)!r} is a symbolic link, and is not written to: delete it "
            "or choose another path."
        )


def other_file(
    path: object, key: str, found: object, wanted: object, files: Sequence[object]
) -> ValueError:
    """A file holds other embeddings than those that are asked for."""
    return ValueError(
        f"path={str(path)!r} holds embeddings with another {key} ({found}, now "
        f"{wanted}): delete {_listed(files)}, or choose another path."
    )


def foreign_file(path: object) -> ValueError:
    """A file was there already, and nothing is known of it."""
    return ValueError(
        f"path={str(path)!r} exists and has no '.journal' that says how it was made: "
        "delete it or choose another path."
    )


def damaged_file(path: object, files: Sequence[object], reason: object) -> ValueError:
    """A file is not what its journal says."""
    return ValueError(
        f"path: {str(path)!r} is not as it was written ({reason}): delete "
        f"{_listed(files)}, and extract again."
    )
