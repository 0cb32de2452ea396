import hashlib

import numpy as np
import pytest
import torch

import transformer_dropout as td
from transformer_dropout.tasks.images.data import ImageData, prepare_images


def as_set(split):
    return {image.numpy().tobytes() for image in split.images}


def refused(data, *words):
    with pytest.raises(td.InputError) as caught:
        prepare_images(data)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


def test_the_digits_are_those_of_the_published_test_set():
    splits = prepare_images(ImageData())
    parts = (splits.train, splits.validation, splits.test)
    assert sum(map(len, parts)) == 1797
    labels = torch.cat([part.labels for part in parts])
    # The counts by class that the data set's page gives.
    assert labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    images = torch.cat([part.images for part in parts])
    assert images.shape == (1797, 8, 8) and images.max() == 255
    # Sixteen steps between black and white.
    assert len(images.unique()) == 17


def test_no_image_lies_in_two_splits():
    splits = prepare_images(ImageData())
    train, validation, test = map(as_set, (splits.train, splits.validation, splits.test))
    assert not train & validation and not train & test and not validation & test


def test_fewer_training_images_are_the_first_of_more():
    few, more = (prepare_images(ImageData(train_images=count)) for count in (50, 120))
    assert torch.equal(few.train.images, more.train.images[:50])
    assert torch.equal(few.validation.images, more.validation.images)
    assert few.train.labels.bincount(minlength=10).min() > 0
    assert few.manifest["train"] != more.manifest["train"]
    assert few.manifest["validation"] == more.manifest["validation"]


def test_the_manifest_holds_digests_of_what_is_there():
    splits = prepare_images(ImageData(train_images=20))
    content = splits.train.images.numpy().tobytes() + splits.train.labels.numpy().tobytes()
    assert splits.manifest["source"] == "digits"
    assert splits.manifest["train"] == {"images": 20, "sha256": hashlib.sha256(content).hexdigest()}
    assert splits.manifest.keys() == {"source", "train", "validation", "test"}


def test_a_folder_of_idx_files_gives_the_same_packed_or_not(idx_folder):
    plain = prepare_images(ImageData(source=str(idx_folder())))
    packed = prepare_images(ImageData(source=str(idx_folder(packed=True, name="packed"))))
    assert {k: v for k, v in plain.manifest.items() if k != "source"} == {
        k: v for k, v in packed.manifest.items() if k != "source"
    }
    assert len(plain.test) == 40 and len(plain.train) + len(plain.validation) == 200
    assert plain.train.classes == 3 and plain.train.images.shape[1:] == (6, 6)


def test_the_files_of_test_are_only_tested_on(idx_folder, write_idx):
    folder = idx_folder()
    write_idx(folder / "t10k-images-idx3-ubyte", np.full((40, 6, 6), 7))
    splits = prepare_images(ImageData(source=str(folder)))
    assert (splits.test.images == 7).all()
    assert not as_set(splits.test) & (as_set(splits.train) | as_set(splits.validation))


def test_a_dot_before_the_ending_is_taken_too(idx_folder):
    folder = idx_folder()
    (folder / "train-images-idx3-ubyte").rename(folder / "train-images.idx3-ubyte")
    assert len(prepare_images(ImageData(source=str(folder))).test) == 40


def test_a_missing_file_or_folder_is_named(idx_folder, tmp_path):
    folder = idx_folder()
    (folder / "t10k-labels-idx1-ubyte").unlink()
    refused(ImageData(source=str(folder)), "t10k-labels-idx1-ubyte", str(folder))
    refused(ImageData(source=str(tmp_path / "nowhere")), "train-images-idx3-ubyte", "nowhere", "'digits'")


def test_labels_and_images_of_different_sets_are_named(idx_folder):
    folder = idx_folder()
    (folder / "train-labels-idx1-ubyte").write_bytes((folder / "t10k-labels-idx1-ubyte").read_bytes())
    refused(ImageData(source=str(folder)), "200 images", "40 labels", "belong together")


def test_images_of_different_sizes_are_named(idx_folder, write_idx):
    folder = idx_folder()
    write_idx(folder / "t10k-images-idx3-ubyte", np.zeros((40, 5, 6)))
    refused(ImageData(source=str(folder)), "6 x 6 and 5 x 6")


def test_more_images_than_there_are_is_refused():
    refused(ImageData(train_images=5000), "5,000", "digits", "data.train_images=null")


@pytest.mark.parametrize("count", [0, -3])
def test_a_limit_below_one_is_refused(count):
    with pytest.raises(td.InputError, match="1 or more"):
        ImageData(train_images=count)
