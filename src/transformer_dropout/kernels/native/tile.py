"""A product of a narrow tile whose sums stay in the processor's registers.

Written as loops, numba's compiler stores each sum and loads it again at every step.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

# Numbers of a vector; processors with shorter vectors use several for one.
VECTOR = 16
INDEX, INT32 = ir.IntType(64), ir.IntType(32)
WIDE, WORDS = ir.VectorType(ir.FloatType(), VECTOR), ir.VectorType(INT32, VECTOR)


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


def broadcast(builder: Any, number: Any) -> Any:
    """Return a vector of one number."""
    wide = ir.VectorType(number.type, VECTOR)
    first = builder.insert_element(wide(ir.Undefined), number, INT32(0))
    return builder.shuffle_vector(first, wide(ir.Undefined), ir.Constant(WORDS, None))
