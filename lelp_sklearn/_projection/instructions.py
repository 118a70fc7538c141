"""Vector instructions that Numba has no word for, as leaves of compiled code.

They trust their callers wholly: nothing here checks a shape or an index.
"""

import math
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic, overload


def _has_wide_registers() -> bool:
    """Whether Numba compiles for a processor that is known to have AVX-512."""
    # What is configured, type checkers do not see.
    if getattr(config, "CPU_NAME", None) not in (None, "host"):
        return False
    try:
        return bool(binding.get_host_cpu_features().get("avx512f"))
    except RuntimeError:
        # Of some processors LLVM knows no features.
        return False


# Bytes of a vector register. A processor with less splits the vectors by itself.
REGISTER_BYTES = 64 if _has_wide_registers() else 32
_INDEX = ir.IntType(64)
_INT = ir.IntType(32)
_BYTE_POINTER = ir.IntType(8).as_pointer()

# exp(x) = 2^n exp(r) with |r| <= log(2) / 2; log(2) in two parts, of which the first
# has so few digits that its product with n is exact.
_LOG2_E = np.float32(1.4426950408889634)
_LOG_2_HIGH = np.float32(0.693359375)
_LOG_2_LOW = np.float32(-2.12194440e-4)
# exp of less is so small that processors are slow with its products.
_LOWEST = np.float32(-80.0)
# Added to a small number it leaves that number, rounded, in the lowest bits.
_ROUNDER = np.float32(1.5 * 2**23)
_TAYLOR = tuple(np.float32(1 / math.factorial(i)) for i in range(8))
_MANTISSA_BITS = np.int32(23)


def vector_width(dtype: np.dtype[Any]) -> int:
    """Numbers in one vector register."""
    return REGISTER_BYTES // dtype.itemsize


@intrinsic(prefer_literal=True)
def multiply_add(
    typing_context: Any,
    rows: Any,
    columns: Any,
    sums: Any,
    upcoming: Any,
    n_rows: Any,
    n_vectors: Any,
) -> Any:
    """Add rows @ columns to `sums`, which stay in registers meanwhile.

    Of `rows` (n_rows, m) each number is spread over a vector, of `columns` (m,
    n_vectors * width) a row is n_vectors vectors. As many numbers as `rows` has are
    asked for from memory on the way, beginning with `upcoming`. `n_rows` and
    `n_vectors` are literals. Rows of every array are contiguous.
    """
    signature = types.void(rows, columns, sums, upcoming, n_rows, n_vectors)
    shape = n_rows.literal_value, n_vectors.literal_value
    return signature, _MultiplyAdd(*shape, transposed=False)


@intrinsic(prefer_literal=True)
def multiply_add_transposed(
    typing_context: Any,
    rows: Any,
    columns: Any,
    sums: Any,
    n_rows: Any,
    n_vectors: Any,
) -> Any:
    """Add the transpose of `rows` (m, n_rows) times `columns` to `sums`."""
    signature = types.void(rows, columns, sums, n_rows, n_vectors)
    shape = n_rows.literal_value, n_vectors.literal_value
    return signature, _MultiplyAdd(*shape, transposed=True)


class _MultiplyAdd:
    """Writes the instructions of `multiply_add`."""

    def __init__(self, n_rows: int, n_vectors: int, *, transposed: bool) -> None:
        self.n_rows, self.n_vectors = n_rows, n_vectors
        self.transposed = transposed

    def __call__(self, context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kinds = [kind for kind in signature.args if isinstance(kind, types.Array)]
        if len({kind.dtype for kind in kinds[:3]}) > 1:
            raise TypeError("multiply_add needs arrays of one dtype")
        rows, columns, sums, *upcoming = (
            _Matrix(context, builder, kind, value)
            for kind, value in zip(kinds, args, strict=False)
        )
        places = [(r, v) for r in range(self.n_rows) for v in range(self.n_vectors)]
        registers = {}
        for r, v in places:
            registers[r, v] = cgutils.alloca_once(builder, sums.vector)
            builder.store(sums.load_vector(_INDEX(r), v), registers[r, v])
        with cgutils.for_range(
            builder, rows.shape[0 if self.transposed else 1]
        ) as loop:
            for each in upcoming:
                each.ask_for(builder.mul(loop.index, _INDEX(self.n_rows)))
            vectors = [
                columns.load_vector(loop.index, v) for v in range(self.n_vectors)
            ]
            for r in range(self.n_rows):
                place = _INDEX(r), loop.index
                number = rows.load_spread(*(place[::-1] if self.transposed else place))
                for v in range(self.n_vectors):
                    product = builder.fmul(number, vectors[v], flags=["contract"])
                    held = builder.load(registers[r, v])
                    total = builder.fadd(held, product, flags=["contract"])
                    builder.store(total, registers[r, v])
        for r, v in places:
            sums.store_vector(_INDEX(r), v, builder.load(registers[r, v]))
        return context.get_dummy_value()


class _Matrix:
    """A two-dimensional array with contiguous rows, inside an intrinsic."""

    def __init__(self, context: Any, builder: Any, kind: Any, value: Any) -> None:
        array = context.make_array(kind)(context, builder, value)
        self._builder = builder
        self._data = array.data
        self._row_bytes = builder.extract_value(array.strides, 0)
        self.shape = [builder.extract_value(array.shape, axis) for axis in (0, 1)]
        number = context.get_value_type(kind.dtype)
        self._item_bytes = kind.dtype.bitwidth // 8
        self._width = REGISTER_BYTES // self._item_bytes
        self.vector = ir.VectorType(number, self._width)

    def load_vector(self, row: Any, v: int) -> Any:
        loaded = self._builder.load(self._vector_address(row, v))
        loaded.align = self._item_bytes
        return loaded

    def store_vector(self, row: Any, v: int, vector: Any) -> None:
        stored = self._builder.store(vector, self._vector_address(row, v))
        stored.align = self._item_bytes

    def load_spread(self, row: Any, column: Any) -> Any:
        """Load one number into all places of a vector."""
        builder = self._builder
        number = builder.load(self._address(row, column))
        nothing = ir.Constant(self.vector, ir.Undefined)
        first = builder.insert_element(nothing, number, _INT(0))
        everywhere = ir.Constant(ir.VectorType(_INT, self._width), [0] * self._width)
        return builder.shuffle_vector(first, nothing, everywhere)

    def ask_for(self, number: Any) -> None:
        """Prefetch the line that holds a number, counted from the first."""
        builder = self._builder
        kind = ir.FunctionType(ir.VoidType(), [_BYTE_POINTER, _INT, _INT, _INT])
        function = builder.module.declare_intrinsic(
            "llvm.prefetch", (_BYTE_POINTER,), kind
        )
        for_reading, to_second_level, data = _INT(0), _INT(2), _INT(1)
        address = builder.bitcast(builder.gep(self._data, [number]), _BYTE_POINTER)
        builder.call(function, [address, for_reading, to_second_level, data])

    def _address(self, row: Any, column: Any) -> Any:
        builder = self._builder
        start = builder.bitcast(self._data, _BYTE_POINTER)
        row_start = builder.gep(start, [builder.mul(row, self._row_bytes)])
        row_start = builder.bitcast(row_start, self._data.type)
        return builder.gep(row_start, [column])

    def _vector_address(self, row: Any, v: int) -> Any:
        start = self._address(row, _INDEX(v * self._width))
        return self._builder.bitcast(start, self.vector.as_pointer())


def as_number(value: Any) -> Any:
    """Give a number as it is, and the bits of a half as single precision."""
    # Numba wants a Python function by whose name compiled code calls the overload.
    raise NotImplementedError("only in compiled code")


@overload(as_number, strict=False)
def _as_number(value: Any) -> Any:
    if value == types.uint16:
        return lambda value: _half_to_single(value)
    return lambda value: value


def exp(x: Any) -> Any:
    """exp(x) of x <= 0, in single precision to 2e-7 relative; below -80 that of -80.

    Unlike `math.exp`, in single precision a loop over it becomes vector instructions.
    """
    # Numba wants a Python function by whose name compiled code calls the overload.
    raise NotImplementedError("only in compiled code")


@overload(exp, strict=False)
def _exp(x: Any) -> Any:
    if x != types.float32:
        return lambda x: math.exp(x)

    def single(x: Any) -> Any:
        bounded = max(x, _LOWEST)
        shifted = bounded * _LOG2_E + _ROUNDER
        n = shifted - _ROUNDER
        r = (bounded - n * _LOG_2_HIGH) - n * _LOG_2_LOW
        power = _TAYLOR[7]
        power = power * r + _TAYLOR[6]
        power = power * r + _TAYLOR[5]
        power = power * r + _TAYLOR[4]
        power = power * r + _TAYLOR[3]
        power = power * r + _TAYLOR[2]
        power = power * r + _TAYLOR[1]
        power = power * r + _TAYLOR[0]
        return _single_of(_bits_of(power) + (_bits_of(shifted) << _MANTISSA_BITS))

    return single


@intrinsic
def _half_to_single(typing_context: Any, bits: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fpext(builder.bitcast(args[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), codegen


@intrinsic
def bits_of(typing_context: Any, number: Any) -> Any:
    """Bits of a number of single or double precision, as an integer of 64 bits."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bits = builder.bitcast(args[0], ir.IntType(number.bitwidth))
        return bits if number.bitwidth == 64 else builder.zext(bits, ir.IntType(64))

    return types.uint64(number), codegen


@intrinsic
def _bits_of(typing_context: Any, number: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(32))

    return types.int32(types.float32), codegen


@intrinsic
def _single_of(typing_context: Any, bits: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), codegen
