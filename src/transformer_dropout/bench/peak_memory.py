"""How much the memory of a process grows in one training step, at 16 windows of 200 tokens.

Each side runs in a process of its own, which reads its high-water mark of resident memory from
``/proc/self/status`` after two steps, and the mark before the first; before that the mark is set back to what is
resident, through ``/proc/self/clear_refs``. Linux alone has these files. The growth so holds gradients and
optimizer state, activations and logits. The other side is built as the published code is.
"""

import subprocess
import sys
from functools import partial
from pathlib import Path as File

from ..kernels._native import PURE, pure_pytorch
from .row import Budget, Measurement, Path, Row
