from pathlib import Path

import pytest

from deit.errors import DataError
from tests.conftest import encoded, photograph
from training.images import decode, open_images


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


def test_parquet_gives_names_labels_and_images(colours_data: Path) -> None:
    images = open_images(colours_data, "train")
    assert images.label_names == ("red", "green", "blue")
    assert len(images) == 192
    assert images.label(4) == 1
    red, green, blue = decode(images, 4).resize((1, 1), 4).getpixel((0, 0))  # box filter: the mean colour
    assert green > red
    assert green > blue


def test_cifar10_opens(shared_data: Path) -> None:
    images = open_images(shared_data / "cifar10", "test")
    assert (len(images), images.label_names[0]) == (10_000, "airplane")


@pytest.mark.parametrize(
    ("prepare", "finding"),
    [
        (lambda root: None, "has no split train"),
        (lambda root: (root / "train").mkdir(), "no image in it"),
        (lambda root: (root / "train.parquet").write_bytes(b"PAR1 and then nothing"), "is not parquet"),
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
