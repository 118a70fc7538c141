"""Hash values by content: equal values have equal hashes, in every process."""

import hashlib
import struct
from collections.abc import Iterable
from copyreg import dispatch_table
from types import (
    BuiltinFunctionType,
    FunctionType,
    MethodDescriptorType,
    MethodType,
    MethodWrapperType,
    ModuleType,
    WrapperDescriptorType,
)
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse

_N_BYTES = 16
_BLOCK_BYTES = 1 << 20

_NAMED = (
    type,
    BuiltinFunctionType,
    FunctionType,
    MethodDescriptorType,
    MethodType,
    MethodWrapperType,
    WrapperDescriptorType,
)


def content_hash(value: Any) -> str:
    """Digest a value by its content, in 32 hexadecimal digits.

    Numbers, strings, arrays, sparse matrices, tensors and containers count by type and
    content, in any memory layout and on any device. Functions and classes count by
    module and qualified name. Any other object counts by its type and its pickled
    state. Dicts and sets have no order, lists have one.

    Raises
    ------
    TypeError
        If a value is of a kind that cannot be pickled, such as an open file.
    """
    return _Digester().digest(value).hex()


class _Digester:
    """One pass over a value; a container is hashed by the digests of its parts.

    Digests are kept, so that weights shared by several objects are read once, and a
    value inside itself does not recurse forever.
    """

    def __init__(self) -> None:
        # The values are kept, because the `id` of a deleted value is used again.
        self._known: dict[int, tuple[Any, bytes]] = {}

    def digest(self, value: Any) -> bytes:
        if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
            plain = _plain(value)
            if plain is not None:
                return plain
        if id(value) not in self._known:
            self._known[id(value)] = value, _join("inside itself", [])
            self._known[id(value)] = value, self._of_content(value)
        return self._known[id(value)][1]

    def _of_content(self, value: Any) -> bytes:
        if isinstance(value, (np.ndarray, np.generic)):
            return self._of_array(np.asarray(value))
        if _is_torch(value, "Tensor") and not _is_torch(
            value, "UninitializedTensorMixin"
        ):
            return _of_tensor(value)
        if issparse(value):
            return self._of_sparse(value)
        if isinstance(value, ModuleType):
            return self._join("module", [value.__name__])
        if isinstance(value, _NAMED):
            return self._of_name(value)
        kind = type(value)
        if kind in (list, tuple):
            return self._join(kind.__name__, value)
        if kind in (set, frozenset):
            return _join(kind.__name__, sorted(map(self.digest, value)))
        if kind is dict:
            pairs = [self._join("item", pair) for pair in value.items()]
            return _join("dict", sorted(pairs))
        if kind is np.random.RandomState:
            return self._join("generator", [kind, value.get_state(legacy=False)])
        if kind is np.random.Generator:
            return self._join("generator", [kind, value.bit_generator.state])
        return self._of_object(value)

    def _of_array(self, array: NDArray[Any]) -> bytes:
        dtype = array.dtype
        if dtype.hasobject:
            about = [dtype.name, repr(dtype.descr), array.shape]
            return self._join("array", [*about, array.ravel().tolist()])
        # A pickled array may come back in the byte order of the machine.
        dtype = dtype.newbyteorder("<")
        about = [dtype.name, repr(dtype.descr), array.shape]
        return self._join("array", [*about, _of_buffer(array, dtype)])

    def _of_sparse(self, matrix: Any) -> bytes:
        rows = matrix.tocsr(copy=True)
        rows.sum_duplicates()
        # SciPy chooses the width of the indices by the size of the matrix.
        wide = np.dtype("<i8")
        indices = _of_buffer(rows.indices, wide), _of_buffer(rows.indptr, wide)
        return self._join("sparse", [type(matrix), rows.shape, rows.data, *indices])

    def _of_name(self, value: Any) -> bytes:
        owner = getattr(value, "__self__", None)
        method_of = None if owner is None or isinstance(owner, ModuleType) else owner
        name = [getattr(value, "__module__", None), value.__qualname__, method_of]
        return self._join("name", name)

    def _of_object(self, value: Any) -> bytes:
        reducer = dispatch_table.get(type(value))
        reduced = reducer(value) if reducer else value.__reduce_ex__(4)
        if isinstance(reduced, str):
            return self._join("global", [type(value), reduced])
        function, arguments, state, items, pairs = (*reduced, None, None, None)[:5]
        if isinstance(state, dict):
            # scikit-learn writes its version into the state of an estimator.
            state = {k: v for k, v in state.items() if k != "_sklearn_version"}
            if _is_torch(value, "Module"):
                state = _module_state(state)
        # A subclass of dict or list, such as OrderedDict, gives its content here.
        held = [list(items or ()), dict(pairs or ())]
        return self._join("object", [type(value), function, arguments, state, *held])

    def _join(self, kind: str, parts: Iterable[Any]) -> bytes:
        return _join(kind, map(self.digest, parts))


def _join(kind: str, digests: Iterable[bytes]) -> bytes:
    joined = hashlib.blake2b(kind.encode() + b":", digest_size=_N_BYTES)
    for part in digests:
        joined.update(part)
    return joined.digest()


def _plain(value: Any) -> bytes | None:
    """Digest a value of a plain type; return None for a subclass of one."""
    kind = type(value)
    if kind is str:
        # A string may hold half a surrogate pair.
        content = value.encode("utf-8", "surrogatepass")
    elif kind is bytes:
        content = value
    elif kind is float:
        content = b"nan" if value != value else struct.pack("<d", value)
    elif value is None or kind in (bool, int, complex):
        content = repr(value).encode()
    else:
        return None
    return _join(kind.__name__, [content])


def _of_buffer(array: NDArray[Any], dtype: np.dtype[Any]) -> bytes:
    """Digest the values of an array as C-ordered `dtype`, without a copy of it all."""
    content = hashlib.blake2b(digest_size=_N_BYTES)
    if array.size and array.itemsize:
        rows = array.reshape(1) if array.ndim == 0 else array
        step = max(1, _BLOCK_BYTES * len(rows) // rows.nbytes)
        for start in range(0, len(rows), step):
            block = np.ascontiguousarray(rows[start : start + step], dtype)
            content.update(block.reshape(-1).view(np.uint8).data)
    return content.digest()


def _is_torch(value: Any, name: str) -> bool:
    """Return whether a value is a Tensor or Module of torch, without its import."""
    return any(
        base.__name__ == name and base.__module__.partition(".")[0] == "torch"
        for base in type(value).__mro__
    )


def _of_tensor(tensor: Any) -> bytes:
    # There is a tensor, so torch has been imported.
    from torch import strided, uint8

    dense = tensor.detach()
    dense = dense if dense.layout == strided else dense.to_dense()
    flat = dense.resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    # NumPy has no bfloat16, and needs no other name for bytes.
    content = _of_buffer(flat.view(uint8).numpy(), np.dtype(np.uint8))
    about = str(tensor.dtype), repr(tuple(tensor.shape))
    return _join("tensor", [*map(str.encode, about), content])


def _module_state(state: dict[str, Any]) -> dict[str, Any]:
    """Return the state of a module without what depends on the version and process.

    Versions of torch differ in the tables that may be empty. A process numbers hooks in
    the order in which it made them; their handles repeat the numbers.
    """
    kept = {}
    for name, value in state.items():
        if _is_torch(value, "RemovableHandle"):
            continue
        if name.startswith("_") and isinstance(value, (bool, dict, set, type(None))):
            if not value:
                continue
            if isinstance(value, dict) and all(isinstance(key, int) for key in value):
                value = list(value.values())
        kept[name] = value
    return kept
