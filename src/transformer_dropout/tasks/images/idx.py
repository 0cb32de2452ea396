"""IDX files, the format of MNIST and of Fashion-MNIST, gzipped or not."""

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np

from ...errors import InputError

LABELS, IMAGES = 0x0801, 0x0803
WHAT = {LABELS: "labels", IMAGES: "images"}
GZIP = b"\x1f\x8b"


def read_images(path: Path) -> np.ndarray:
    """Return the images of an IDX file.

    Shape:
        (images, rows, columns) uint8.

    Raises:
        InputError: for a file that holds anything else, or not all of what its header promises.
    """
    return read_idx(path, IMAGES)


def read_labels(path: Path) -> np.ndarray:
    """Return the labels of an IDX file, (labels,) uint8; raises as `read_images`."""
    return read_idx(path, LABELS)


def read_idx(path: Path, kind: int) -> np.ndarray:
    """Return what an IDX file holds, which is to be of this kind."""
    data = unpacked(path)
    found = struct.unpack(">I", data[:4])[0] if len(data) >= 4 else 0
    if found not in WHAT:
        raise InputError(f"{path} is no IDX file of {WHAT[kind]}; give the files as MNIST's page has them.")
    if found != kind:
        raise InputError(f"{path} holds {WHAT[found]} where {WHAT[kind]} belong; swap the two files.")
    dimensions = kind & 0xFF
    start = 4 + 4 * dimensions
    if len(data) < start:
        raise InputError(f"{path} is cut off in its header; copy it again.")
    shape = struct.unpack(f">{dimensions}I", data[4:start])
    size = int(np.prod(shape, dtype=np.int64))
    if len(data) - start != size:
        few = "is cut off" if len(data) - start < size else "is too long"
        raise InputError(
            f"{path} {few}: its header promises {shape[0]:,} {WHAT[kind]}, which are {size:,} bytes, and "
            f"{len(data) - start:,} follow; copy it again."
        )
    if size == 0:
        raise InputError(f"{path} holds no {WHAT[kind]}.")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def unpacked(path: Path) -> bytes:
    """Return a file's bytes, unpacked where they are gzipped, whatever the file is called."""
    data = path.read_bytes()
    if not data.startswith(GZIP):
        return data
    try:
        return gzip.decompress(data)
    except (EOFError, OSError, zlib.error):
        raise InputError(f"{path} is a damaged gzip file; copy it again.") from None
