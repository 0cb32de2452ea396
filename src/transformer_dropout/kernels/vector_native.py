"""Vector instructions for native loops: rows read and written, squares turned, tiles multiplied.

Loops over few elements are not made into such instructions by the compiler, or not well.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

# Numbers of a vector; processors with shorter vectors use several for one.
VECTOR = 16
FLOAT, INDEX, INT32, INT16 = ir.FloatType(), ir.IntType(64), ir.IntType(32), ir.IntType(16)
WIDE, WORDS, LANES_SEEN = (ir.VectorType(kind, VECTOR) for kind in (FLOAT, INT32, ir.IntType(1)))


def instruction(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function for native loops of one that takes their types and writes its instructions."""
    return intrinsic(function)


def tile(rows: int, vectors: int) -> Callable[..., Any]:
    """Return a function for native loops that multiplies a narrow tile.

    Formula, for ``rows`` values of r and ``vectors * VECTOR`` of l, on flat float32 arrays::

        out[out_at + r out_step + l] (+)= sum_k left[left_at + r row_step + k step]
                                                right[right_at + k right_step + l]

    Its arguments are ``left, left_at, row_step, step, right, right_at, right_step, count, out, out_at,
    out_step, fresh``; ``fresh`` says whether what ``out`` held before is forgotten.
    """

    @instruction
    def product(
        typing,
        left,
        left_at,
        row_step,
        step,
        right,
        right_at,
        right_step,
        count,
        out,
        out_at,
        out_step,
        fresh,
    ):
        flat = types.Array(types.float32, 1, "C")
        at = types.intp
        signature = types.void(flat, at, at, at, flat, at, at, at, flat, at, at, types.boolean)
        return signature, lambda *state: generate(rows, vectors, *state)

    return product


@instruction
def load_vector(typing, source, at, count, factor, target, target_at):
    """Write the next VECTOR numbers of an array times a factor as float32; from ``count`` on they are 0.

    An int16 stands for the bits of a bfloat16.
    """

    def code(context, builder, signature, arguments):
        source, at, count, factor, target, target_at = arguments
        number = INT16 if signature.args[0].dtype == types.int16 else FLOAT
        wide = ir.VectorType(number, VECTOR)
        kind = ir.FunctionType(wide, [wide.as_pointer(), INT32, LANES_SEEN, wide])
        name = "i16" if number is INT16 else "f32"
        masked = cgutils.get_or_insert_function(builder.module, kind, f"llvm.masked.load.v{VECTOR}{name}.p0")
        place = vector_place(context, builder, signature.args[0], source, at, wide)
        line = builder.call(masked, [place, INT32(2), first_lanes(builder, count), wide(None)])
        if number is INT16:
            line = builder.shl(builder.zext(line, WORDS), splat(WORDS, 16))
            line = builder.bitcast(line, WIDE)
        line = builder.fmul(line, broadcast(builder, factor))
        builder.store(
            line, vector_place(context, builder, signature.args[4], target, target_at, WIDE), align=4
        )
        return context.get_dummy_value()

    return types.void(source, types.intp, types.intp, types.float32, target, types.intp), code


@instruction
def store_vector(typing, source, at, factor, target, target_at, count):
    """Write the first ``count`` of the next VECTOR float32 numbers times a factor, rounded where need be."""

    def code(context, builder, signature, arguments):
        source, at, factor, target, target_at, count = arguments
        place = vector_place(context, builder, signature.args[0], source, at, WIDE)
        line = builder.fmul(builder.load(place, align=4), broadcast(builder, factor))
        rounds = signature.args[3].dtype == types.int16
        if rounds:
            line = bfloat16_bits(builder, line)
        wide, name = (ir.VectorType(INT16, VECTOR), "i16") if rounds else (WIDE, "f32")
        kind = ir.FunctionType(ir.VoidType(), [wide, wide.as_pointer(), INT32, LANES_SEEN])
        masked = cgutils.get_or_insert_function(builder.module, kind, f"llvm.masked.store.v{VECTOR}{name}.p0")
        place = vector_place(context, builder, signature.args[3], target, target_at, wide)
        builder.call(masked, [line, place, INT32(2), first_lanes(builder, count)])
        return context.get_dummy_value()

    return types.void(source, types.intp, types.float32, target, types.intp, types.intp), code


def bfloat16_bits(builder: Any, line: Any) -> Any:
    """Round float32 numbers to nearest as the upper halves of their bits; NaN stays NaN."""
    bits = builder.bitcast(line, WORDS)
    odd = builder.and_(builder.lshr(bits, splat(WORDS, 16)), splat(WORDS, 1))
    rounded = builder.add(builder.add(bits, splat(WORDS, 0x7FFF)), odd)
    lost = builder.fcmp_unordered("uno", line, line)
    rounded = builder.select(lost, splat(WORDS, 0x7FC00000), rounded)
    return builder.trunc(builder.lshr(rounded, splat(WORDS, 16)), ir.VectorType(INT16, VECTOR))


def vector_place(context: Any, builder: Any, kind: Any, array: Any, at: Any, wide: Any) -> Any:
    """Return a pointer to the vector that begins at an element of an array."""
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [at]), wide.as_pointer())


def first_lanes(builder: Any, count: Any) -> Any:
    """Return which lanes of a vector are among the first so many."""
    lanes = ir.Constant(ir.VectorType(INDEX, VECTOR), list(range(VECTOR)))
    return builder.icmp_signed("<", lanes, broadcast(builder, count))


def broadcast(builder: Any, number: Any) -> Any:
    """Return a vector of one number."""
    wide = ir.VectorType(number.type, VECTOR)
    first = builder.insert_element(wide(ir.Undefined), number, INT32(0))
    return builder.shuffle_vector(first, wide(ir.Undefined), ir.Constant(WORDS, None))


def splat(kind: Any, number: int) -> Any:
    """Return a constant vector of one number."""
    return ir.Constant(kind, [number] * VECTOR)


@instruction
def pointer_to(typing, address, like):
    """Turn an address into a pointer to numbers such as an array holds."""

    def code(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(like.dtype)(types.int64, like), code


@instruction
def prefetch(typing, array, at, writes):
    """Ask for the memory of an element that is used soon; it may lie outside of the array.

    ``writes``, 0 or 1, says whether it will be written.
    """

    def code(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        bytes_ = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [bytes_] + 3 * [INT32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        place = builder.bitcast(builder.gep(data, [arguments[1]]), bytes_)
        # Kept in all caches; data and not code.
        builder.call(function, [place, INT32(writes.literal_value), INT32(3), INT32(1)])
        return context.get_dummy_value()

    if not isinstance(writes, types.IntegerLiteral):
        return None
    return types.void(array, types.intp, writes), code


@instruction
def transpose(typing, source, source_at, source_step, target, target_at, target_step):
    """Write the columns of a square of VECTOR by VECTOR numbers as rows, between flat float32 arrays."""

    def code(context, builder, signature, arguments):
        make = context.make_array(signature.args[0])
        source, source_at, source_step, target, target_at, target_step = arguments

        def place(array, start, row, step):
            at = builder.add(start, builder.mul(INDEX(row), step))
            return builder.bitcast(builder.gep(make(context, builder, array).data, [at]), WIDE.as_pointer())

        rows = [builder.load(place(source, source_at, row, source_step), align=4) for row in range(VECTOR)]
        distance = 1
        while distance < VECTOR:
            rows = swapped(builder, rows, distance)
            distance *= 2
        for row, line in enumerate(rows):
            builder.store(line, place(target, target_at, row, target_step), align=4)
        return context.get_dummy_value()

    flat, at = types.Array(types.float32, 1, "C"), types.intp
    return types.void(flat, at, at, flat, at, at), code


def swapped(builder: Any, rows: list[Any], distance: int) -> list[Any]:
    """Exchange, in each square of twice the distance, the upper right quarter with the lower left one."""
    found = list(rows)
    upper = [lane if not lane & distance else VECTOR + lane - distance for lane in range(VECTOR)]
    lower = [lane + distance if not lane & distance else VECTOR + lane for lane in range(VECTOR)]
    for row in range(VECTOR):
        if not row & distance:
            pair = rows[row], rows[row + distance]
            found[row], found[row + distance] = (
                builder.shuffle_vector(*pair, ir.Constant(WORDS, lanes)) for lanes in (upper, lower)
            )
    return found


def generate(rows: int, vectors: int, context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """Write the instructions of ``tile``."""
    left, left_at, row_step, step, right, right_at, right_step, *rest = arguments
    count, out, out_at, out_step, fresh = rest
    make = context.make_array(signature.args[0])
    left, right, out = (make(context, builder, array).data for array in (left, right, out))
    fma = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(WIDE, [WIDE] * 3), f"llvm.fma.v{VECTOR}f32"
    )

    def place(base: Any, start: Any, number: Any, step: Any, vector: int | None = None) -> Any:
        at = builder.add(start, builder.mul(number, step))
        if vector is None:
            return builder.gep(base, [at])
        at = builder.add(at, INDEX(vector * VECTOR))
        return builder.bitcast(builder.gep(base, [at]), WIDE.as_pointer())

    cells = [(r, v, cgutils.alloca_once(builder, WIDE)) for r in range(rows) for v in range(vectors)]
    for r, v, total in cells:
        before = builder.load(place(out, out_at, INDEX(r), out_step, v), align=4)
        builder.store(builder.select(fresh, WIDE(None), before), total)
    with cgutils.for_range(builder, count) as loop:
        places = [place(right, right_at, loop.index, right_step, v) for v in range(vectors)]
        line = [builder.load(at, align=4) for at in places]
        for r in range(rows):
            start = builder.add(left_at, builder.mul(INDEX(r), row_step))
            number = broadcast(builder, builder.load(place(left, start, loop.index, step)))
            for _, v, total in cells[r * vectors : (r + 1) * vectors]:
                builder.store(builder.call(fma, [number, line[v], builder.load(total)]), total)
    for r, v, total in cells:
        builder.store(builder.load(total), place(out, out_at, INDEX(r), out_step, v), align=4)
    return context.get_dummy_value()
