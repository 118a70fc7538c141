"""How kernels are compiled, and vector instructions that Numba has no word for.

Kernels are compiled at the first call and kept on disk for later processes. Where they
cannot be compiled, their plain twins are used. The instructions are leaves of compiled
code and trust their callers: nothing here checks a shape or an index.
"""

import math
import os
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, cast

import numpy as np
from llvmlite import ir
from numba import config, njit, types
from numba.core import cgutils
from numba.core.codegen import get_host_cpu_features
from numba.core.compiler_lock import global_compiler_lock
from numba.extending import intrinsic, overload

from lelp_sklearn._threads import hold_at_fork

# A child that is forked while another thread compiles would wait for it for ever.
hold_at_fork(global_compiler_lock)

Function = TypeVar("Function", bound=Callable[..., Any])

# NUMBA_CACHE_DIR moves the compiled code, but Numba has no variable that keeps a
# library's code off the disk.
_IS_CACHED = os.environ.get("LELP_SKLEARN_NUMBA_CACHE", "1") != "0"

# The kernels are written for processors that have these. Half precision needs the last
# one: without it Numba ends the process.
_NEEDED_FEATURES = {"avx2", "fma", "f16c"}


def processor_features() -> set[str]:
    """Return what the processor that Numba compiles for has, by LLVM's names."""
    # Type checkers do not see what is configured.
    configured = getattr(config, "CPU_FEATURES", None)
    features = get_host_cpu_features() if configured is None else configured
    return {each[1:] for each in features.split(",") if each.startswith("+")}


def can_compile() -> bool:
    """Return whether the kernels are compiled: Numba may, and the processor fits."""
    is_disabled = getattr(config, "DISABLE_JIT", False)
    return not is_disabled and processor_features() >= _NEEDED_FEATURES


def with_plain_twin(plain: Function) -> Callable[[Function], Function]:
    """Replace a function of compiled loops by its plain twin where that is needed."""

    def choose(function: Function) -> Function:
        return function if can_compile() else plain

    return choose


def compiled(function: Function) -> Function:
    """Compile `function` when it is first called; it releases the interpreter lock."""
    # Division by zero gives infinity, as in NumPy: branches that raise take longer to
    # compile.
    compile_lazily = partial(njit, nogil=True, error_model="numpy")
    try:
        return cast("Function", compile_lazily(cache=_IS_CACHED)(function))
    except RuntimeError:
        # Numba found no folder to write to, as in a read-only installation whose user
        # has no home: each process compiles for itself.
        return cast("Function", compile_lazily()(function))


# Bytes of a vector register.
REGISTER_BYTES = 64 if "avx512f" in processor_features() else 32
# Bytes in a row of the squares of numbers that `transpose` turns.
SQUARE_BYTES = 32
_INDEX = ir.IntType(64)
_INT = ir.IntType(32)
_HALF_BITS = ir.IntType(16)
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


@intrinsic
def transpose(typing_context: Any, rows: Any, centre: Any, out: Any) -> Any:
    """Write (rows - centre).T to `out`, a square of numbers at a time.

    `rows` (n, m) holds numbers or the bits of halves, `centre` (1, m) and `out` (m, n)
    numbers. A square has n rows, which are SQUARE_BYTES of numbers; m is at least n,
    and the last square may overlap the one before. Rows of every array are contiguous.
    """
    return types.void(rows, centre, out), _transpose


def _transpose(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    side = SQUARE_BYTES * 8 // signature.args[2].dtype.bitwidth
    rows, centre, out = _matrices(context, builder, signature, args, side)
    last = builder.sub(rows.shape[1], _INDEX(side))
    with cgutils.for_range_slice(
        builder, _INDEX(0), rows.shape[1], _INDEX(side), inc=True
    ) as (start, _):
        start = builder.select(builder.icmp_signed("<", start, last), start, last)
        less = centre.load_vector(_INDEX(0), start)
        vectors = [
            builder.fsub(rows.load_numbers(_INDEX(r), start), less) for r in range(side)
        ]
        for k, vector in enumerate(_transposed(builder, vectors)):
            out.store_vector(builder.add(start, _INDEX(k)), _INDEX(0), vector)
    return context.get_dummy_value()


def _transposed(builder: Any, vectors: list[Any]) -> list[Any]:
    """Return the columns of the square whose rows are some vectors.

    Of the four quarters of the square two change places, then those of each quarter.
    """
    side = len(vectors)
    half = side // 2
    while half:
        # Places with this bit are in the second half of a square or quarter.
        lower = [p + side - half if p & half else p for p in range(side)]
        upper = [p + side if p & half else p + half for p in range(side)]
        masks = [
            ir.Constant(ir.VectorType(_INT, side), each) for each in (lower, upper)
        ]
        vectors = [
            builder.shuffle_vector(
                vectors[r & ~half], vectors[r | half], masks[bool(r & half)]
            )
            for r in range(side)
        ]
        half //= 2
    return vectors


@intrinsic(prefer_literal=True)
def multiply_add(
    typing_context: Any, rows: Any, columns: Any, sums: Any, n_rows: Any, n_vectors: Any
) -> Any:
    """Add rows @ columns to `sums`, which stay in registers meanwhile.

    Of `rows` (n_rows, m) each number is spread over a vector, of `columns` (m,
    n_vectors * width) a row is n_vectors vectors. `n_rows` and `n_vectors` are
    literals. Rows of `columns` and `sums` are contiguous.
    """
    return types.void(rows, columns, sums, n_rows, n_vectors), _multiply_add


@intrinsic(prefer_literal=True)
def multiply_add_ahead(
    typing_context: Any,
    rows: Any,
    columns: Any,
    sums: Any,
    n_rows: Any,
    n_vectors: Any,
    upcoming: Any,
    step: Any,
) -> Any:
    """Do what `multiply_add` does; ask for further numbers from memory on the way.

    For m numbers of `upcoming` (1, >= 0), `step` apart.
    """
    signature = types.void(rows, columns, sums, n_rows, n_vectors, upcoming, step)
    return signature, _multiply_add


def _multiply_add(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    n_rows, n_vectors = (kind.literal_value for kind in signature.args[3:5])
    rows, columns, sums, *upcoming = _matrices(context, builder, signature, args)
    starts = [_INDEX(v * sums.width) for v in range(n_vectors)]
    places = [(r, v) for r in range(n_rows) for v in range(n_vectors)]
    registers = {
        (r, v): _register(builder, sums.load_vector(_INDEX(r), starts[v]))
        for r, v in places
    }
    with cgutils.for_range(builder, rows.shape[1]) as loop:
        for each in upcoming:
            each.ask_for(_INDEX(0), builder.mul(loop.index, args[-1]))
        own = [columns.load_vector(loop.index, start) for start in starts]
        for r in range(n_rows):
            number = rows.load_spread(_INDEX(r), loop.index)
            for v, column in enumerate(own):
                _add_product(builder, registers[r, v], number, column)
    for r, v in places:
        sums.store_vector(_INDEX(r), starts[v], builder.load(registers[r, v]))
    return context.get_dummy_value()


def _matrices(
    context: Any, builder: Any, signature: Any, args: Any, width: int | None = None
) -> "list[_Matrix]":
    """Give the arrays among the arguments of an intrinsic.

    Their vectors are of `width` numbers, or whole registers.
    """
    return [
        _Matrix(context, builder, kind, value, width)
        for kind, value in zip(signature.args, args, strict=True)
        if isinstance(kind, types.Array)
    ]


def _register(builder: Any, vector: Any) -> Any:
    """Give a variable, which LLVM keeps in a register, with a value."""
    register = cgutils.alloca_once(builder, vector.type)
    builder.store(vector, register)
    return register


def _add_product(builder: Any, register: Any, left: Any, right: Any) -> None:
    """Add a product to a register, as one instruction."""
    product = builder.fmul(left, right, flags=["contract"])
    total = builder.fadd(builder.load(register), product, flags=["contract"])
    builder.store(total, register)


class _Matrix:
    """A two-dimensional array inside an intrinsic; vectors lie along its rows."""

    def __init__(
        self, context: Any, builder: Any, kind: Any, value: Any, width: int | None
    ) -> None:
        array = context.make_array(kind)(context, builder, value)
        self._builder = builder
        self._data = array.data
        self._strides = [builder.extract_value(array.strides, axis) for axis in (0, 1)]
        self.shape = [builder.extract_value(array.shape, axis) for axis in (0, 1)]
        number = context.get_value_type(kind.dtype)
        self._item_bytes = kind.dtype.bitwidth // 8
        self.width = width or REGISTER_BYTES // self._item_bytes
        self.vector = ir.VectorType(number, self.width)

    def load_vector(self, row: Any, column: Any) -> Any:
        loaded = self._builder.load(self._address(row, column, self.vector))
        loaded.align = self._item_bytes
        return loaded

    def load_numbers(self, row: Any, column: Any) -> Any:
        """Load a vector; bits of halves as single precision."""
        vector = self.load_vector(row, column)
        if vector.type.element != _HALF_BITS:
            return vector
        halves = self._builder.bitcast(vector, ir.VectorType(ir.HalfType(), self.width))
        return self._builder.fpext(halves, ir.VectorType(ir.FloatType(), self.width))

    def store_vector(self, row: Any, column: Any, vector: Any) -> None:
        address = self._address(row, column, self.vector)
        self._builder.store(vector, address).align = self._item_bytes

    def load_spread(self, row: Any, column: Any) -> Any:
        """Load one number into all places of a vector."""
        builder = self._builder
        number = builder.load(self._address(row, column, self.vector.element))
        nothing = ir.Constant(self.vector, ir.Undefined)
        first = builder.insert_element(nothing, number, _INT(0))
        everywhere = ir.Constant(ir.VectorType(_INT, self.width), [0] * self.width)
        return builder.shuffle_vector(first, nothing, everywhere)

    def ask_for(self, row: Any, column: Any) -> None:
        """Prefetch the line that holds a number."""
        builder = self._builder
        kind = ir.FunctionType(ir.VoidType(), [_BYTE_POINTER, _INT, _INT, _INT])
        function = builder.module.declare_intrinsic(
            "llvm.prefetch", (_BYTE_POINTER,), kind
        )
        for_reading, to_second_level, data = _INT(0), _INT(2), _INT(1)
        address = self._address(row, column, ir.IntType(8))
        builder.call(function, [address, for_reading, to_second_level, data])

    def _address(self, row: Any, column: Any, kind: Any) -> Any:
        """Where a number lies, as a pointer to what is to be found there."""
        builder = self._builder
        start = builder.bitcast(self._data, _BYTE_POINTER)
        places = zip((row, column), self._strides, strict=True)
        bytes_before = builder.add(*(builder.mul(*place) for place in places))
        return builder.bitcast(builder.gep(start, [bytes_before]), kind.as_pointer())


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


# Products and sums may become one instruction.
@overload(exp, strict=False, jit_options={"fastmath": {"contract"}})
def _exp(x: Any) -> Any:
    if x != types.float32:
        return lambda x: math.exp(x)

    def single(x: Any) -> Any:
        bounded = max(x, _LOWEST)
        shifted = bounded * _LOG2_E + _ROUNDER
        n = shifted - _ROUNDER
        r = (bounded - n * _LOG_2_HIGH) - n * _LOG_2_LOW
        # In pairs, few of which wait for one another.
        square = r * r
        power = _TAYLOR[7] * r + _TAYLOR[6]
        power = power * square + (_TAYLOR[5] * r + _TAYLOR[4])
        power = power * square + (_TAYLOR[3] * r + _TAYLOR[2])
        power = power * square + (_TAYLOR[1] * r + _TAYLOR[0])
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
