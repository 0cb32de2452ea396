"""A product of a small tile for native loops, its sums held in vector registers throughout."""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

# Numbers of a vector; processors with shorter vectors use several for one.
VECTOR = 16
FLOAT, INDEX = ir.FloatType(), ir.IntType(64)
WIDE = ir.VectorType(FLOAT, VECTOR)


def tile(rows: int, vectors: int) -> Callable[..., Any]:
    """Return a function for native loops that multiplies a narrow tile.

    Formula, for ``rows`` values of r and ``vectors * VECTOR`` of l, on flat float32 arrays::

        out[out_at + r out_step + l] (+)= sum_k left[left_at + r row_step + k step]
                                                right[right_at + k right_step + l]

    Its arguments are ``left, left_at, row_step, step, right, right_at, right_step, count, out, out_at,
    out_step, fresh``; ``fresh`` says whether what ``out`` held before is forgotten.
    """

    @intrinsic
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


@intrinsic
def prefetch(typing, array, at, writes):
    """Ask for the memory of an element that is used soon; it may lie outside of the array.

    ``writes``, 0 or 1, says whether it will be written.
    """

    def code(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        bytes_, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [bytes_] + 3 * [number])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        place = builder.bitcast(builder.gep(data, [arguments[1]]), bytes_)
        # Kept in all caches; data and not code.
        builder.call(function, [place, number(writes.literal_value), number(3), number(1)])
        return context.get_dummy_value()

    if not isinstance(writes, types.IntegerLiteral):
        return None
    return types.void(array, types.intp, writes), code


@intrinsic
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
                builder.shuffle_vector(*pair, ir.Constant(ir.VectorType(ir.IntType(32), VECTOR), lanes))
                for lanes in (upper, lower)
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
    lanes = ir.Constant(ir.VectorType(ir.IntType(32), VECTOR), None)

    def place(base: Any, start: Any, number: Any, step: Any, vector: int | None = None) -> Any:
        at = builder.add(start, builder.mul(number, step))
        if vector is None:
            return builder.gep(base, [at])
        at = builder.add(at, INDEX(vector * VECTOR))
        return builder.bitcast(builder.gep(base, [at]), WIDE.as_pointer())

    def broadcast(number: Any) -> Any:
        first = builder.insert_element(WIDE(ir.Undefined), number, ir.IntType(32)(0))
        return builder.shuffle_vector(first, WIDE(ir.Undefined), lanes)

    cells = [(r, v, cgutils.alloca_once(builder, WIDE)) for r in range(rows) for v in range(vectors)]
    for r, v, total in cells:
        before = builder.load(place(out, out_at, INDEX(r), out_step, v), align=4)
        builder.store(builder.select(fresh, WIDE(None), before), total)
    with cgutils.for_range(builder, count) as loop:
        places = [place(right, right_at, loop.index, right_step, v) for v in range(vectors)]
        line = [builder.load(at, align=4) for at in places]
        for r in range(rows):
            start = builder.add(left_at, builder.mul(INDEX(r), row_step))
            number = broadcast(builder.load(place(left, start, loop.index, step)))
            for _, v, total in cells[r * vectors : (r + 1) * vectors]:
                builder.store(builder.call(fma, [number, line[v], builder.load(total)]), total)
    for r, v, total in cells:
        builder.store(builder.load(total), place(out, out_at, INDEX(r), out_step, v), align=4)
    return context.get_dummy_value()
