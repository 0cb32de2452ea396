import gzip
import struct

import numpy as np
import pytest

import transformer_dropout as td
from transformer_dropout.tasks.images.idx import read_images, read_labels

IMAGES = np.arange(5 * 3 * 2, dtype=np.uint8).reshape(5, 3, 2)
LABELS = np.array([0, 1, 2, 1, 9], np.uint8)


@pytest.mark.parametrize("packed", [False, True])
def test_what_was_written_is_read(tmp_path, write_idx, packed):
    assert np.array_equal(read_images(write_idx(tmp_path / "a", IMAGES, packed)), IMAGES)
    assert np.array_equal(read_labels(write_idx(tmp_path / "b", LABELS, packed)), LABELS)


def refused(read, path, *words):
    with pytest.raises(td.InputError) as caught:
        read(path)
    message = str(caught.value)
    assert all(word in message for word in (str(path), *words)), message
    assert "\n" not in message


def test_swapped_files_are_named(tmp_path, write_idx):
    refused(read_images, write_idx(tmp_path / "x", LABELS), "holds labels where images belong", "swap")
    refused(read_labels, write_idx(tmp_path / "y", IMAGES, packed=True), "holds images where labels belong")


@pytest.mark.parametrize("cut", [1, 17, 29])
def test_a_truncated_file_is_named(tmp_path, write_idx, cut):
    path = write_idx(tmp_path / "x", IMAGES)
    path.write_bytes(path.read_bytes()[:-cut])
    refused(read_images, path, "cut off", "5 images", "30 bytes", f"{30 - cut} follow")


@pytest.mark.parametrize("size", [4, 9, 15])
def test_a_file_cut_off_in_its_header_is_named(tmp_path, write_idx, size):
    path = write_idx(tmp_path / "x", IMAGES)
    path.write_bytes(path.read_bytes()[:size])
    refused(read_images, path, "cut off in its header")


def test_a_longer_file_than_its_header_says_is_named(tmp_path, write_idx):
    path = write_idx(tmp_path / "x", LABELS)
    path.write_bytes(path.read_bytes() + b"\0\0")
    refused(read_labels, path, "too long", "5 labels")


def test_a_truncated_or_damaged_gzip_file_is_named(tmp_path, write_idx):
    path = write_idx(tmp_path / "x.gz", IMAGES, packed=True)
    packed = path.read_bytes()
    for data in (packed[:-5], packed[:20] + b"\xff\xff\xff" + packed[23:], packed[:-8] + b"12345678"):
        path.write_bytes(data)
        refused(read_images, path, "damaged gzip")


@pytest.mark.parametrize(
    "data",
    [b"", b"ab", b"<html>not found</html>", gzip.compress(b"hello, world", mtime=0)],
    ids=["empty", "short", "html", "packed"],
)
def test_another_file_is_named(tmp_path, data):
    path = tmp_path / "x"
    path.write_bytes(data)
    refused(read_images, path, "no IDX file of images")


def test_an_empty_set_is_named(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(struct.pack(">II", 0x0801, 0))
    refused(read_labels, path, "holds no labels")
