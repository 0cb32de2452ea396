"""IDX files of a data set that is made here."""

import gzip
import struct

import numpy as np
import pytest


def idx(array, kind):
    """Return an IDX file's bytes."""
    return struct.pack(f">{1 + array.ndim}I", kind, *array.shape) + array.astype(np.uint8).tobytes()


@pytest.fixture
def write_idx():
    def write(path, array, packed=False):
        data = idx(array, 0x0803 if array.ndim == 3 else 0x0801)
        path.write_bytes(gzip.compress(data) if packed else data)
        return path

    return write


@pytest.fixture
def idx_folder(tmp_path, write_idx):
    """Return a folder of four files as MNIST has them: 200 and 40 images of 6 x 6 in three classes."""

    def make(packed=False, name="data"):
        folder = tmp_path / name
        folder.mkdir()
        random = np.random.default_rng(0)
        for use, count in (("train", 200), ("t10k", 40)):
            labels = random.integers(0, 3, count)
            images = random.integers(0, 200, (count, 6, 6)) + 20 * labels[:, None, None]
            ending = ".gz" if packed else ""
            write_idx(folder / f"{use}-images-idx3-ubyte{ending}", images, packed)
            write_idx(folder / f"{use}-labels-idx1-ubyte{ending}", labels, packed)
        return folder

    return make
