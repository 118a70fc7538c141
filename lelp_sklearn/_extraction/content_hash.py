"""Hash values by content: equal values have equal hashes, in every process."""

import hashlib
import re
from operator import itemgetter
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
from joblib.hashing import Hasher, NumpyHasher
from numpy.typing import NDArray
from scipy.sparse import issparse

_BLOCK_BYTES = 1 << 20

# scikit-learn writes its version into the state of an estimator, and a process numbers
# the hooks of torch in the order in which it made them.
_IGNORED = re.compile(r"_sklearn_version$|_\w*hook")


def content_hash(value: Any) -> str:
    """Return the hash of a value by its content, 32 hexadecimal digits.

    Numbers, strings, arrays, sparse matrices, tensors and containers count by type and
    content, in any memory layout and on any device; functions and classes by module and
    qualified name; other objects by their pickled state. Dicts and sets have no order.

    Raises
    ------
    TypeError
        If a value is of a kind that cannot be pickled, such as an open file.
    """
    return str(_ContentHasher().hash(value))


# joblib has no types.
class _ContentHasher(NumpyHasher):  # type: ignore[misc]
    """The hash of joblib, extended to tensors and independent of memory layout."""

    def save(self, obj: Any) -> None:
        """Hash a part of the value, or what stands for it."""
        if isinstance(obj, np.ndarray | np.generic) and not obj.dtype.hasobject:
            array = np.asarray(obj)
            # A pickled array may come back in the byte order of the machine.
            obj = _describe_array(array, array.dtype.newbyteorder("<"))
        elif isinstance(obj, type | FunctionType):
            obj = "name", obj.__module__, obj.__qualname__
        elif isinstance(obj, ModuleType):
            obj = "module", obj.__name__
        elif isinstance(obj, set | frozenset):
            obj = type(obj).__name__, sorted(map(content_hash, obj))
        elif _is_torch(obj, "Tensor") and not _is_torch(
            obj, "UninitializedTensorMixin"
        ):
            obj = _describe_tensor(obj)
        elif issparse(obj):
            obj = _describe_sparse(obj)
        super().save(obj)

    def _batch_setitems(self, items: Any, *args: Any) -> None:
        pairs = [(content_hash(key), key, value) for key, value in items]
        pairs.sort(key=itemgetter(0))
        counted = iter([pair[1:] for pair in pairs if not _IGNORED.match(str(pair[1]))])
        # joblib's own order of keys of several types depends on the process.
        super(Hasher, self)._batch_setitems(counted, *args)


def _describe_array(array: NDArray[Any], dtype: np.dtype[Any]) -> tuple[Any, ...]:
    """Return shape and content of an array as C-ordered `dtype`, read in blocks."""
    content = hashlib.blake2b(digest_size=16)
    if array.size and array.itemsize:
        rows = np.atleast_1d(array)
        step = max(1, _BLOCK_BYTES * len(rows) // rows.nbytes)
        for start in range(0, len(rows), step):
            block = np.ascontiguousarray(rows[start : start + step], dtype)
            content.update(block.reshape(-1).view(np.uint8).data)
    return "array", repr(dtype.descr), array.shape, content.digest()


def _describe_sparse(matrix: Any) -> tuple[Any, ...]:
    rows = matrix.tocsr(copy=True)
    rows.sum_duplicates()
    # SciPy chooses the width of the indices by the size of the matrix.
    wide = np.dtype("<i8")
    indices = [_describe_array(each, wide) for each in (rows.indices, rows.indptr)]
    return type(matrix).__name__, rows.shape, rows.data, indices


def _describe_tensor(tensor: Any) -> tuple[Any, ...]:
    # There is a tensor, so torch has been imported.
    from torch import strided, uint8

    dense = tensor.detach()
    dense = dense if dense.layout == strided else dense.to_dense()
    flat = dense.resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    # NumPy has no bfloat16, and needs no other name for bytes.
    content = _describe_array(flat.view(uint8).numpy(), np.dtype(np.uint8))
    return "tensor", str(tensor.dtype), tuple(tensor.shape), content


def _is_torch(value: Any, name: str) -> bool:
    """Return whether a value is of a class of torch, without its import."""
    return any(
        base.__name__ == name and base.__module__.partition(".")[0] == "torch"
        for base in type(value).__mro__
    )
