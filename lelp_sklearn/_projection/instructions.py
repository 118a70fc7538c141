"""Vector instructions that Numba has no word for, as leaves of compiled code.

They trust their callers wholly: nothing here checks a shape or an index.
"""

import math
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

# Bytes of a vector register. A processor with less splits the vectors by itself.
_REGISTER = 64 if binding.get_host_cpu_features().get("avx512f") else 32
_INDEX = ir.IntType(64)
_INT = ir.IntType(32)
_BYTE_POINTER = ir.IntType(8).as_pointer()

# exp(x) = 2^n exp(r) with |r| <= log(2) / 2; log(2) in two parts, of which the first
# has so few digits that its product with n is exact.
_LOWEST = np.float32(-87.0)
_LOG2_E = np.float32(1.4426950408889634)
_LOG_2_HIGH = np.float32(0.693359375)
_LOG_2_LOW = np.float32(-2.12194440e-4)
# Added to a small number it leaves that number, rounded, in the lowest bits.
_ROUNDER = np.float32(1.5 * 2**23)
_TAYLOR = tuple(np.float32(1 / math.factorial(i)) for i in range(8))
_MANTISSA_BITS = np.int32(23)


def vector_width(dtype: np.dtype[Any]) -> int:
    """Numbers in one vector register."""
    return _REGISTER // dtype.itemsize


def width_of(array: Any) -> Any:
    """Give the numbers in one vector register, in compiled code."""
    raise NotImplementedError("only in compiled code")


@overload(width_of, strict=False)
def _width_of(array: Any) -> Any:
    width = _REGISTER * 8 // array.dtype.bitwidth
    return lambda array: width


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
    n_vectors * width) a row is n_vectors vectors. Memory that holds the rows `upcoming`
    is asked for on the way. `n_rows`, a power of two, and `n_vectors` are literals.
    Rows of `columns` and of `sums` are contiguous; more rows are left alone.
    """
    shape = n_rows.literal_value, n_vectors.literal_value
    if not rows.dtype == columns.dtype == sums.dtype:
        raise TypeError("multiply_add works in one precision")
    signature = types.void(rows, columns, sums, upcoming, n_rows, n_vectors)
    return signature, _MultiplyAdd(*shape)


class _MultiplyAdd:
    """Writes the instructions of `multiply_add`."""

    def __init__(self, n_rows: int, n_vectors: int) -> None:
        self.n_rows, self.n_vectors = n_rows, n_vectors

    def __call__(self, context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows, columns, sums, upcoming = (
            _Matrix(context, builder, kind, value)
            for kind, value in zip(signature.args[:4], args[:4], strict=True)
        )
        places = [(r, v) for r in range(self.n_rows) for v in range(self.n_vectors)]
        registers = {}
        for r, v in places:
            registers[r, v] = cgutils.alloca_once(builder, sums.vector)
            builder.store(sums.load_vector(_INDEX(r), v), registers[r, v])
        with cgutils.for_range(builder, rows.n_columns) as loop:
            self._ask_for(upcoming, builder, loop.index)
            vectors = [
                columns.load_vector(loop.index, v) for v in range(self.n_vectors)
            ]
            for r in range(self.n_rows):
                number = rows.load_spread(_INDEX(r), loop.index)
                for v in range(self.n_vectors):
                    product = builder.fmul(number, vectors[v], flags=["contract"])
                    held = builder.load(registers[r, v])
                    total = builder.fadd(held, product, flags=["contract"])
                    builder.store(total, registers[r, v])
        for r, v in places:
            sums.store_vector(_INDEX(r), v, builder.load(registers[r, v]))
        return context.get_dummy_value()

    def _ask_for(self, upcoming: "_Matrix", builder: Any, step: Any) -> None:
        """Prefetch, a line at each step: the first of each row, then the next."""
        row = builder.and_(step, _INDEX(self.n_rows - 1))
        address = upcoming.address(row, builder.sub(step, row))
        function = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.VoidType(), [_BYTE_POINTER, _INT, _INT, _INT]),
            "llvm.prefetch.p0",
        )
        for_reading, to_second_level, data = _INT(0), _INT(2), _INT(1)
        address = builder.bitcast(address, _BYTE_POINTER)
        builder.call(function, [address, for_reading, to_second_level, data])


class _Matrix:
    """A two-dimensional array inside an intrinsic; vectors lie along its rows."""

    def __init__(self, context: Any, builder: Any, kind: Any, value: Any) -> None:
        array = context.make_array(kind)(context, builder, value)
        self._builder = builder
        self._data = array.data
        self._strides = [builder.extract_value(array.strides, axis) for axis in (0, 1)]
        self.n_columns = builder.extract_value(array.shape, 1)
        number = context.get_value_type(kind.dtype)
        self._item_bytes = kind.dtype.bitwidth // 8
        self._width = _REGISTER // self._item_bytes
        self.vector = ir.VectorType(number, self._width)

    def address(self, row: Any, column: Any) -> Any:
        builder = self._builder
        start = builder.bitcast(self._data, _BYTE_POINTER)
        down, along = map(builder.mul, (row, column), self._strides)
        place = builder.gep(start, [builder.add(down, along)])
        return builder.bitcast(place, self._data.type)

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
        number = builder.load(self.address(row, column))
        nothing = ir.Constant(self.vector, ir.Undefined)
        first = builder.insert_element(nothing, number, _INT(0))
        everywhere = ir.Constant(ir.VectorType(_INT, self._width), [0] * self._width)
        return builder.shuffle_vector(first, nothing, everywhere)

    def _vector_address(self, row: Any, v: int) -> Any:
        row_start = self.address(row, _INDEX(0))
        start = self._builder.gep(row_start, [_INDEX(v * self._width)])
        return self._builder.bitcast(start, self.vector.as_pointer())


def as_number(value: Any) -> Any:
    """Give a number as it is, and the bits of a half as single precision."""
    raise NotImplementedError("only in compiled code")


@overload(as_number, strict=False)
def _as_number(value: Any) -> Any:
    if value == types.uint16:
        return lambda value: _half_to_single(value)
    return lambda value: value


def exp(x: Any) -> Any:
    """exp(x) of x <= 0, in single precision to 2e-7 relative; below -87 that of -87.

    Unlike `math.exp`, in single precision a loop over it becomes vector instructions.
    """
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
def _bits_of(typing_context: Any, number: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(32))

    return types.int32(types.float32), codegen


@intrinsic
def _single_of(typing_context: Any, bits: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), codegen
