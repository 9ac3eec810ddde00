import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from deit.errors import DataError
from tests.conftest import encoded, photograph
from training.class_names import class_indices
from training.images import SomeImages, decode, open_images, spread_indices


def image_folder(root: Path) -> Path:
    for split in ("train", "val"):
        for label, name in enumerate(("cat", "dog")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(3):
                (folder / f"{index}.jpeg").write_bytes(encoded(photograph(40, 30, seed=label * 10 + index)))
            (folder / "notes.txt").write_text("not an image")
    return root


def test_an_image_folder_gives_its_classes_in_the_order_of_their_names(tmp_path: Path) -> None:
    images = open_images(image_folder(tmp_path), "test")  # ImageNet's layout calls it val
    assert images.label_names == ("cat", "dog")
    assert [images.label(index) for index in range(len(images))] == [0, 0, 0, 1, 1, 1]
    assert decode(images, 0).size == (40, 30)


def test_some_of_the_images_are_spread_over_the_classes_of_a_sorted_data_set(tmp_path: Path) -> None:
    images = open_images(image_folder(tmp_path), "train")
    some = SomeImages(images, spread_indices(images, 4))
    assert [(some.label(index), some.file_name(index)) for index in range(len(some))] == [
        *((0, "0.jpeg"), (0, "1.jpeg"), (1, "0.jpeg"), (1, "1.jpeg"))
    ]
    assert some.encoded(3) == images.encoded(4)


def test_some_of_the_images_are_spread_over_classes_that_take_turns(colours_data: Path) -> None:
    images = open_images(colours_data, "train")
    labels = [images.label(index) for index in spread_indices(images, 64)]
    assert [labels.count(label) for label in range(3)] == [22, 21, 21]


def test_classes_of_one_name_stay_apart_and_are_not_matched_by_name(tmp_path: Path) -> None:
    write_pairs(tmp_path, "crane\nfox\ncrane\n")
    images = open_images(tmp_path, "train")
    some = SomeImages(images, np.array([0, 1, 2], np.int32))
    assert [some.label(index) for index in range(3)] == [0, 1, 2]
    with pytest.raises(DataError, match="2 classes are called 'crane'"):
        SomeImages(images, np.array([0], np.int32), ("crane", "fox"))


def test_a_file_that_two_splits_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "my-dev-train-0.parquet").touch()
    with pytest.raises(DataError, match="my-dev-train-0.parquet is named after the splits train and val"):
        open_images(tmp_path, "train")


def test_the_names_of_files_below_a_data_set_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "train_val.csv").touch()
    assert len(open_images(image_folder(tmp_path), "train")) > 0


def test_the_list_that_is_called_by_the_split_alone_is_read(tmp_path: Path) -> None:
    (tmp_path / "image.jpg").write_bytes(encoded(photograph(8, 8)))
    for name, label in (("train", "cat"), ("old_train", "dog"), ("old-train", "fox")):
        (tmp_path / f"{name}.csv").write_text(f"path,label\nimage.jpg,{label}\n")
    assert open_images(tmp_path, "train").label_names == ("cat",)
    (tmp_path / "train.csv").unlink()
    with pytest.raises(DataError, match="several lists of a split train, such as old-train.csv and old_train.csv"):
        open_images(tmp_path, "train")


def test_a_tars_numbered_folders_are_names_and_a_lists_numbers_count_from_0(tmp_path: Path) -> None:
    numbers = ("1", "2", "10", "9" * 20)
    pack(tmp_path / "train.tar", {f"{name}/0.jpg": encoded(photograph(8, 8)) for name in numbers})
    assert open_images(tmp_path, "train").label_names == numbers
    assert class_indices(["1_2", "7"], None, "list.csv")[1] == ("1_2", "7")
    assert len(class_indices(["0", "7"], None, "list.csv")[1]) == 8  # a sample lacks some
    for labels in (["1", "2"], ["0", "9" * 20]):
        with pytest.raises(DataError, match=f"has 2 classes, numbered from {labels[0]} to {labels[1]}: name all"):
            class_indices(labels, None, "list.csv")


def write_pairs(folder: Path, names: str) -> None:
    """Images of the classes 0, 1 and 2 in a tar file, and the classes' names."""
    pairs = {f"{label}.jpg": encoded(photograph(8, 8)) for label in range(3)}
    pack(folder / "train.tar", pairs | {f"{label}.cls": str(label).encode() for label in range(3)})
    (folder / "labels.txt").write_text(names)


def test_parquet_gives_names_labels_and_images(colours_data: Path) -> None:
    images = open_images(colours_data, "train")
    assert images.label_names == ("red", "green", "blue")
    assert len(images) == 192
    assert images.label(4) == 1
    red, green, blue = decode(images, 4).resize((1, 1), 4).getpixel((0, 0))  # box filter: the mean colour
    assert green > red
    assert green > blue


def pack(tar: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(tar, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def test_tar_shards_hold_folders_named_after_the_classes(tmp_path: Path) -> None:
    for shard in range(2):
        pack(
            tmp_path / f"train-{shard}.tar",
            {
                f"{name}/{shard}.jpeg": encoded(photograph(40, 30, seed=10 * shard + label))
                for label, name in enumerate(("dog", "cat"))
            },
        )
    images = open_images(tmp_path, "train")
    assert images.label_names == ("cat", "dog")
    assert [images.label(index) for index in range(len(images))] == [1, 0, 1, 0]
    assert images.encoded(3) == encoded(photograph(40, 30, seed=11))
    assert images.source(3) == f"cat/1.jpeg in {tmp_path / 'train-1.tar'}"


def test_tar_shards_hold_webdatasets_pairs(tmp_path: Path) -> None:
    pairs = {"0001.jpg": encoded(photograph(8, 8)), "0001.cls": b"1", "0002.cls": b"0", "0002.jpg": b"broken"}
    pack(tmp_path / "test-000.tar", pairs)
    assert open_images(tmp_path, "test").label_names == ("0", "1")
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    images = open_images(tmp_path, "test")
    assert [images.label_names[images.label(index)] for index in range(len(images))] == ["dog", "cat"]
    assert decode(images, 0).size == (8, 8)
    (tmp_path / "labels.txt").write_text("cat\n")
    with pytest.raises(DataError, match="has labels from 0 to 1, but names 1 classes"):
        open_images(tmp_path, "test")


def test_imagenet_v2s_numbered_folders_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for label in (0, 2, 10, 1):
        (tmp_path / str(label)).mkdir()
        (tmp_path / str(label) / "image.jpeg").write_bytes(encoded(photograph(8, 8)))
    images = open_images(tmp_path, "test")
    assert images.label_names == ("0", "1", "2", "10")
    assert [images.label(index) for index in range(4)] == [0, 1, 2, 3]


def test_one_file_is_enough_to_test_on(colours_data: Path) -> None:
    assert len(open_images(colours_data / "test.parquet", "test")) == 48


def test_cifar10_opens(shared_data: Path) -> None:
    images = open_images(shared_data / "cifar10", "test")
    assert (len(images), images.label_names[0]) == (10_000, "airplane")


@pytest.mark.parametrize(
    ("prepare", "finding"),
    [
        (lambda root: root.rmdir(), "is not a folder"),
        (lambda root: None, "has no split train"),
        (lambda root: (root / "train").mkdir(), "no images in it"),
        (lambda root: (root / "train.tar").write_bytes(b"no tar at all" * 100), "is not an uncompressed tar file"),
        (lambda root: (root / "train.parquet").write_bytes(b"PAR1 and then nothing"), "train.parquet is not parquet"),
    ],
)
def test_an_unusable_folder_is_named(tmp_path: Path, prepare: object, finding: str) -> None:
    prepare(tmp_path)
    with pytest.raises(DataError, match=finding):
        open_images(tmp_path, "train")


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    image_folder(tmp_path)
    broken = tmp_path / "train" / "cat" / "1.jpeg"
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(DataError, match=r"train/cat/1\.jpeg cannot be decoded"):
        decode(open_images(tmp_path, "train"), 1)
