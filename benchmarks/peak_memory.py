"""How much the memory of a process grows in one training step, at 16 windows of 200 tokens.

Each side runs in a fresh process. After a first step, with the weights and the optimizer's moments in
memory, the high-water mark of resident memory, ``VmHWM`` in ``/proc/self/status``, is set back to what is
resident, by writing 5 to ``/proc/self/clear_refs``, and read after the second; Linux alone has these files.
The growth is activations, logits and gradients. The other side is built as the published code is, as in
`training_step`.
"""

import ctypes
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path as File

import torch

from transformer_dropout.kernels._native import PURE, pure_pytorch
from transformer_dropout.layers import LearnedDropout
from transformer_dropout.tasks.language.decoder import DecoderConfig

from .row import Budget, Measurement, Path, each_path
from .training_sides import check_same, learned_rule, our_side, published_side
from .training_step import LEARNED, VOCABULARY, blocks

BATCH = 16
ROOT = File(__file__).parents[1]
CODE = "from benchmarks.peak_memory import report; report({arguments})"


def report(name: str, n_blocks: int, pure: bool) -> None:
    """Build one side in this process, make two steps, and write the bytes of growth in the second."""
    torch.set_num_threads(1)
    shape = DecoderConfig(**LEARNED, blocks=n_blocks)
    if name == "reference":
        side = published_side(VOCABULARY, shape, BATCH, learned=True)
    else:
        side = our_side(VOCABULARY, shape, BATCH, [learned_rule(LearnedDropout, shape)])
    with pure_pytorch() if pure else nullcontext():
        side.step()
        # What the first step freed goes back to the system, or it would hide growth of the second.
        ctypes.CDLL(None).malloc_trim(0)
        File("/proc/self/clear_refs").write_text("5")
        before = high_water_mark()
        side.step()
    sys.stdout.write(str(high_water_mark() - before))


def high_water_mark() -> int:
    """Return the most bytes of resident memory since the mark was set back."""
    for line in File("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM")


def growth(name: str, n_blocks: int, pure: bool) -> int:
    """Return the bytes of growth of one side, in a process of its own."""
    code = CODE.format(arguments=f"{name!r}, {n_blocks}, {pure}")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return int(done.stdout)


def memory_ratio(budget: Budget) -> Measurement:
    """Measure the growth the published way and ours."""
    small = DecoderConfig(**LEARNED, blocks=2)
    ours = our_side(VOCABULARY, small, 1, [learned_rule(LearnedDropout, small)])
    reference = published_side(VOCABULARY, small, 1, learned=True)
    gate = check_same(ours, reference, loss=1e-5, gradient=1e-4)
    n_blocks = blocks(budget)
    grown = {name: growth(name, n_blocks, PURE.get()) for name in ("reference", "ours")}
    return Measurement(
        value=grown["reference"] / grown["ours"],
        gate=f"with 2 blocks {gate}",
        about={
            "shape": {"batch": BATCH, **LEARNED, "blocks": n_blocks, "vocabulary": VOCABULARY},
            "dtype": "float32",
            "growth_bytes": grown,
            "measured": "VmHWM over the second step, in fresh processes",
        },
    )


TARGETS: dict[Path, float] = {"pure": 3.5, "native": 4.0}
ROWS = each_path(
    TARGETS, name="peak memory growth of a step, 16 x 200 tokens: reference / ours", measure=memory_ratio
)
