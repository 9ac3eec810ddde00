"""Data sets in the layouts that people use."""

import json
import logging
import shutil
import subprocess
import sys
import unicodedata
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deit.errors import DataError, TrainingError
from tests.conftest import COLOURS, encoded, photograph
from tests.training.conftest import TINY, tiny_student
from tests.training.test_images import image_folder, pack
from tests.training.test_loop import config, metrics_of
from training import parquet_images
from training.checkpoint import save_checkpoint
from training.class_names import UnlabelledError
from training.columns import Columns
from training.evaluate_checkpoint import evaluate_checkpoint
from training.evaluate_config import EvaluateConfig
from training.images import LabelledImages, open_images
from training.loop import train
from training.splits import open_splits

PICTURE = encoded(photograph(8, 8))


def labels_of(images: LabelledImages) -> list[str]:
    return [images.label_names[images.label(index)] for index in range(len(images))]


def write_parquet(
    file: Path, columns: dict[str, list[object]], features: dict[str, object] | None = None, **options: object
) -> None:
    kinds = {"img": pa.struct([("bytes", pa.binary()), ("path", pa.string())])}
    kinds["image"] = kinds["img"]
    fields = [pa.field(name, kinds.get(name) or pa.array(values).type) for name, values in columns.items()]
    metadata = None if features is None else {"huggingface": json.dumps({"info": {"features": features}})}
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns, schema=pa.schema(fields, metadata=metadata)), file, **options)


def rows(count: int) -> list[object]:
    return [{"bytes": PICTURE, "path": f"{index}.png"} for index in range(count)]


def named(*names: str) -> dict[str, object]:
    return {"_type": "ClassLabel", "names": list(names)}


IMAGE = {"_type": "Image"}


# ------------------------------------------------------------------------------------------------------------- parquet
def test_the_hubs_cifar10_opens_by_the_types_of_its_columns(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_parquet(
            tmp_path / "plain_text" / f"{split}-00000-of-00001.parquet",
            {"img": rows(2), "label": [1, 0]},
            {"img": IMAGE, "label": named("cat", "dog")},
        )
    (tmp_path / "README.md").write_text("card")
    assert labels_of(open_images(tmp_path, "train")) == ["dog", "cat"]
    assert open_images(tmp_path, "test").encoded(1) == PICTURE


def test_the_hubs_cifar100_asks_which_of_its_classes_are_meant(tmp_path: Path) -> None:
    features = {"img": IMAGE, "fine_label": named("apple", "bee"), "coarse_label": named("fruit")}
    write_parquet(tmp_path / "train.parquet", {"img": rows(2), "fine_label": [1, 0], "coarse_label": [0, 0]}, features)
    with pytest.raises(DataError, match=r"several columns for --label-column: .* one of fine_label, coarse_label"):
        open_images(tmp_path, "train")
    assert labels_of(open_images(tmp_path, "train", Columns(label="fine_label"))) == ["bee", "apple"]
    with pytest.raises(DataError, match=r"--label-column fein: .*has img .*; candidates: fine_label, coarse_label"):
        open_images(tmp_path, "train", Columns(label="fein"))


def test_the_hubs_imagenet_is_judged_by_its_validation_images(tmp_path: Path) -> None:
    features = {"image": IMAGE, "label": named("tench", "goldfish")}
    for split, labels in (("train", [0, 1]), ("validation", [1]), ("test", [-1, -1])):
        for shard in range(2):
            file = tmp_path / "data" / f"{split}-{shard:05}-of-00002.parquet"
            write_parquet(file, {"image": rows(len(labels)), "label": labels}, features)
    assert labels_of(open_images(tmp_path, "train")) == ["tench", "goldfish"] * 2
    assert labels_of(open_images(tmp_path, "test")) == ["goldfish"] * 2
    shutil.rmtree(tmp_path / "data" / "validation", ignore_errors=True)
    for file in (tmp_path / "data").glob("validation*"):
        file.unlink()
    with pytest.raises(UnlabelledError, match=r"column label of .*test-00000.* has no labels \(-1 or nothing"):
        open_images(tmp_path, "test")


def test_a_repository_of_several_configurations_is_not_guessed_at(tmp_path: Path) -> None:
    for name in ("plain", "augmented"):
        write_parquet(tmp_path / name / "train.parquet", {"image": rows(1), "label": ["a"]})
    with pytest.raises(DataError, match=r"several data sets with a split train: .* such as .*augmented, or .*plain"):
        open_images(tmp_path, "train")


def test_parquet_without_a_description_opens_by_its_types(tmp_path: Path) -> None:
    columns = {"photo": [PICTURE, PICTURE], "kind": ["pear", "fig"], "width_px": [8.0, 8.0]}
    write_parquet(tmp_path / "train" / "0000.parquet", columns)  # as the hub converts a data set
    images = open_images(tmp_path, "train")
    assert (images.label_names, labels_of(images)) == (("fig", "pear"), ["pear", "fig"])
    write_parquet(tmp_path / "test.parquet", {"photo": [PICTURE], "width_px": [8.0]})
    with pytest.raises(DataError, match=r"has no column of classes as numbers or text; it has photo \(binary\), width"):
        open_images(tmp_path, "test")


def test_rows_that_only_name_a_file_read_it(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(PICTURE)
    write_parquet(tmp_path / "train.parquet", {"image": [{"bytes": None, "path": "0.png"}], "label": ["a"]})
    assert open_images(tmp_path, "train").encoded(0) == PICTURE


@pytest.mark.parametrize("kept_bytes", [2**30, 0])
def test_rows_are_found_in_any_file_and_row_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept_bytes: int
) -> None:
    monkeypatch.setattr(parquet_images, "KEPT_BYTES", kept_bytes)
    contents = [f"image {index}".encode() for index in range(11)]
    for number, part in enumerate((contents[:7], contents[7:])):
        images = [{"bytes": content, "path": "x.png"} for content in part]
        columns = {"image": images, "label": ["a"] * len(images)}
        write_parquet(tmp_path / f"train-{number}.parquet", columns, row_group_size=3)
    opened = open_images(tmp_path, "train")
    assert [opened.encoded(index) for index in reversed(range(11))] == contents[::-1]
    assert opened.source(8) == f"row 1 of {tmp_path}/train-1.parquet"


def test_parquet_beyond_the_offsets_of_arrow_opens_in_half_the_memory(tmp_path: Path) -> None:
    """Images of 2.2 GB in all, which are all the same, so that the file's dictionary holds them in 1 MB."""
    values = pa.DictionaryArray.from_arrays(pa.array([0] * 2200, pa.int32()), pa.array([bytes(2**20)]))
    file = tmp_path / "train.parquet"
    pq.write_table(pa.table({"image": values, "label": [0] * 2200}), file, row_group_size=50, store_schema=False)
    script = (
        "import resource, sys; from pathlib import Path; from training.parquet_images import ParquetImages\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "images = ParquetImages([Path(sys.argv[1])])\n"
        "assert len(images) == 2200 and images.encoded(2199) == bytes(2**20)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10)"
    )
    command = [sys.executable, "-c", script, str(file)]
    assert float(subprocess.run(command, check=True, capture_output=True, text=True).stdout) < 1300  # MiB


# --------------------------------------------------------------------------------------------------------- tar shards
CAT, DOG = encoded(photograph(8, 8, seed=1)), encoded(photograph(8, 8, seed=2))


def test_a_tars_leading_dot_is_not_part_of_a_samples_key(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    pack(tmp_path / "train-0.tar", {"./set.v1/a.jpg": DOG, "./set.v1/a.cls": b"1", "./b.CLS": b"0", "./b.JPG": CAT})
    assert labels_of(open_images(tmp_path, "train")) == ["dog", "cat"]


def test_a_tar_of_nameless_images_is_refused(tmp_path: Path) -> None:
    pack(tmp_path / "train.tar", {"./0001.jpg": CAT, "./0002.jpg": DOG})
    with pytest.raises(DataError, match=r"\./0001\.jpg in .*train\.tar is in no class folder and has no \.cls or"):
        open_images(tmp_path, "train")


def test_webdatasets_json_gives_the_class_and_names_may_stand_in_it(tmp_path: Path) -> None:
    cat, dog = (json.dumps({"label": name, "width": 8, "breed": 0}).encode() for name in ("cat", "dog"))
    pack(
        tmp_path / "pets-train-0000.tar",
        {
            "0.json": dog,
            "0.jpg": DOG,
            "0.mask.png": b"no photograph",
            "1.json": cat,
            "1.jpg": CAT,
            "__MACOSX/._1.jpg": b"",
        },
    )
    with pytest.raises(DataError, match=r"0\.mask\.png in .* second image of one sample: .* with --image-column"):
        open_images(tmp_path, "train")
    assert labels_of(open_images(tmp_path, "train", Columns(image="jpg"))) == ["dog", "cat"]
    assert labels_of(open_images(tmp_path, "train", Columns("jpg", "breed"))) == ["0", "0"]


def test_an_image_without_its_class_is_named(tmp_path: Path) -> None:
    pack(tmp_path / "train.tar", {"a/0.jpg": CAT, "a/0.cls": b"0", "a/1.jpg": DOG})
    with pytest.raises(DataError, match=r"a/1\.jpg in .*train\.tar has no 1\.cls or \.json"):
        open_images(tmp_path, "train")


# ------------------------------------------------------------------------------------------------------- class folders
def test_leftovers_are_no_classes_and_what_is_skipped_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cat = image_folder(tmp_path) / "train" / "cat"
    for leftover in (".ipynb_checkpoints", "__MACOSX"):
        shutil.copytree(cat, tmp_path / "train" / leftover)
    (cat / "._0.jpeg").write_bytes(b"resource fork")
    (cat / "0.HEIC").write_bytes(b"not read")
    (cat / "1.JFIF").write_bytes(PICTURE)
    (cat / "gone.jpg").symlink_to(tmp_path / "nowhere")
    with caplog.at_level(logging.INFO):
        images = open_images(tmp_path, "train")
    assert images.label_names == ("cat", "dog")
    assert labels_of(images) == ["cat"] * 4 + ["dog"] * 3
    assert "train: 5 files are not read as images: 2 .txt, 1 hidden, 1 .heic, 1 broken links" in caplog.text


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    data = image_folder(tmp_path / "data")
    (data / "train" / "bird").symlink_to(data / "val" / "dog")
    (data / "train" / "cat" / "more").symlink_to(data / "val" / "cat")
    (data / "train" / "cat" / "loop").symlink_to(data / "train" / "cat")
    assert labels_of(open_images(data, "train")) == ["bird"] * 3 + ["cat"] * 6 + ["dog"] * 3


def test_classes_are_equal_in_both_forms_of_unicode(tmp_path: Path) -> None:
    for split, form in (("train", "NFC"), ("test", "NFD")):
        folder = tmp_path / split / unicodedata.normalize(form, "Bär")
        folder.mkdir(parents=True)
        (folder / "0.jpg").write_bytes(PICTURE)
    assert open_images(tmp_path, "train").label_names == open_images(tmp_path, "test").label_names == ("Bär",)
    (tmp_path / "train" / unicodedata.normalize("NFD", "Bär")).mkdir()
    with pytest.raises(DataError, match="two folders 'Bär' that differ in Unicode form alone"):
        open_images(tmp_path, "train")


# ----------------------------------------------------------------------------------------------------------- CSV lists
def test_a_list_names_images_and_classes(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for name in ("a.png", "b.jpg"):
        (tmp_path / "photos" / name).write_bytes(PICTURE)
    (tmp_path / "train.csv").write_text("\ufeffImage,Species,seen\nphotos/a.png,wolf,1\nphotos/b,fox,0\n", "utf-8")
    images = open_images(tmp_path, "train")
    assert (images.label_names, labels_of(images)) == (("fox", "wolf"), ["wolf", "fox"])
    assert images.encoded(1) == PICTURE
    assert labels_of(open_images(tmp_path, "train", Columns(label="seen"))) == ["1", "0"]
    with pytest.raises(DataError, match=r"has the columns Image, Species, seen: name the right one with --label-col"):
        open_images(tmp_path, "train", Columns(label="kind"))
    (tmp_path / "test.csv").write_text("path;label\nphotos/a.png;wolf\nphotos/c.png;wolf\n")
    with pytest.raises(DataError, match=r"test\.csv line 3 names 'photos/c\.png', which is not in"):
        open_images(tmp_path, "test")


# ------------------------------------------------------------------------------ validation images without folders
WORDNET = ("n01440764", "n01443537", "n02119789")  # in the order of their folders; the devkit begins with the last


def flat_imagenet(root: Path) -> Path:
    for name in WORDNET:
        (root / "train" / name).mkdir(parents=True)
        (root / "train" / name / "0.JPEG").write_bytes(PICTURE)
    (root / "val").mkdir()
    for number in (1, 2, 3):
        (root / "val" / f"ILSVRC2012_val_{number:08}.JPEG").write_bytes(PICTURE)
    return root


def test_flat_validation_images_take_their_classes_from_the_devkit(tmp_path: Path) -> None:
    data = flat_imagenet(tmp_path)
    with pytest.raises(UnlabelledError, match=r"val has no folder for each class\. .*put the devkit's ILSVRC2012_val"):
        open_images(data, "test")
    kit = data / "ILSVRC2012_devkit_t12" / "data"
    kit.mkdir(parents=True)
    (kit / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n3\n2\n")
    with pytest.raises(DataError, match=r"meta\.mat must name the classes"):
        open_images(data, "test")
    (kit / "meta.mat").write_bytes(mat_file([WORDNET[2], WORDNET[0], WORDNET[1], "n00001740"]))
    images = open_images(data, "test")
    assert labels_of(images) == [WORDNET[2], WORDNET[1], WORDNET[0]]
    assert images.file_name(2) == "ILSVRC2012_val_00000003.JPEG"
    (kit / "meta.mat").write_bytes(mat_file(["n00001740", *WORDNET]))
    with pytest.raises(DataError, match="begins with other classes than the 3 of the training folders"):
        open_images(data, "test")


def mat_file(names: list[str]) -> bytes:
    """A MATLAB 5 file as scipy.io.savemat(do_compression=True) lays it out, with the names of a struct array alone."""
    text = b"".join(b"\x10\0\0\0\x09\0\0\0" + name.encode() for name in names)
    element = zlib.compress(text)
    return bytes(124) + b"\0\x01IM" + (15).to_bytes(4, "little") + len(element).to_bytes(4, "little") + element


# ------------------------------------------------------------------------------------------ one data set in all layouts
def test_a_model_is_judged_the_same_on_every_layout(colours_data: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    save_checkpoint(checkpoint, tiny_student(), label_names=tuple(COLOURS), preprocessing=TINY, deit={})
    images = open_images(colours_data, "test")
    contents = [images.encoded(index) for index in range(48)]
    indices = [images.label(index) for index in range(48)]
    names = labels_of(images)

    (tmp_path / "hub").mkdir()
    write_parquet(
        tmp_path / "hub" / "data" / "test-00000-of-00001.parquet",
        {"img": [{"bytes": content, "path": None} for content in contents], "colour": indices},
        {"img": IMAGE, "colour": named(*COLOURS)},
        row_group_size=10,
    )
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "labels.txt").write_text("".join(f"{name}\n" for name in COLOURS))
    pairs = {}
    for number, (content, index) in enumerate(zip(contents, indices, strict=True)):
        pairs |= {f"./{number:03}.png": content, f"./{number:03}.cls": str(index).encode()}
    pack(tmp_path / "pairs" / "colours-test-0.tar", pairs)
    for number, (content, name) in enumerate(zip(contents, names, strict=True)):
        folder = tmp_path / "folders" / "test" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.PNG").write_bytes(content)
    rows = [f"../folders/test/{name}/{number}.PNG,{name}" for number, name in enumerate(names)]
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "labels.txt").write_text("".join(f"{name}\n" for name in COLOURS))
    (tmp_path / "list" / "test.csv").write_text("file_name,label\n" + "\n".join(rows) + "\n")

    losses = {}
    for data in (colours_data, *(tmp_path / layout for layout in ("hub", "pairs", "list", "folders"))):
        report = evaluate_checkpoint(EvaluateConfig(data=data, checkpoint=str(checkpoint), workers=0, device="cpu"))
        assert report is not None
        losses[data.name] = report.evaluation.loss["joint"]
    # the folders' classes are in another order: blue, green, red
    assert list(losses.values()) == pytest.approx([losses[colours_data.name]] * 5, abs=1e-6)


# --------------------------------------------------------------------------------------------------------------- splits
def test_val_judges_the_epochs_and_test_the_result(colours_data: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(colours_data, data)
    shutil.copyfile(data / "test.parquet", data / "validation.parquet")
    plain = {"model": "deit_tiny_patch16_224", "epochs": 2, "warmup_epochs": 0, "ema_decay": 0.9, "report": True}
    train(config(data, tmp_path, name="run", **plain))
    first, last = metrics_of(tmp_path / "run")
    assert "val_class_top1" in first
    assert "test_class_top1" not in first
    assert last["test_ema_class_top1"] == last["val_ema_class_top1"]  # they are the same images
    origin = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert sorted(origin["data"]) == ["test", "train", "val"]
    description = json.loads((tmp_path / "run" / "checkpoint" / "config.json").read_text())
    assert description["deit"]["metrics_of"] == "test"
    assert "| class head, val |" in (tmp_path / "run" / "report.md").read_text()


def test_a_share_of_each_class_is_held_out(colours_data: Path, tmp_path: Path) -> None:
    splits = open_splits(config(colours_data, tmp_path, name="run", val_share=0.25))
    assert (len(splits.train), len(splits.judged)) == (144, 48)
    assert sorted(labels_of(splits.judged)) == sorted(list(COLOURS) * 16)
    names = [{images.file_name(index) for index in range(len(images))} for images in (splits.train, splits.judged)]
    assert names[0].isdisjoint(names[1])
    assert splits.reported is not None
    assert len(splits.reported) == 48


def test_class_folders_and_lists_without_splits_are_split_here(tmp_path: Path) -> None:
    folders = image_folder(tmp_path / "data") / "train"
    settings = {"batch_size": 2}
    with pytest.raises(TrainingError, match=r"has neither a split val .*: hold images out with --val-share 0\.15"):
        open_splits(config(folders, tmp_path, name="run", **settings))
    table = tmp_path / "list.csv"
    paths = sorted(folders.glob("*/*.jpeg"))
    table.write_text("path,label\n" + "".join(f"{path.relative_to(tmp_path)},{path.parent.name}\n" for path in paths))
    for data in (folders, table):
        splits = open_splits(config(data, tmp_path, name="run", val_share=0.4, **settings))
        assert splits.label_names == ("cat", "dog")
        assert (len(splits.train), sorted(labels_of(splits.judged))) == (4, ["cat", "dog"])


def test_deit_evaluate_takes_the_images_that_a_run_held_out(tmp_path: Path) -> None:
    folders = image_folder(tmp_path / "data") / "train"
    plain = {"model": "deit_tiny_patch16_224", "batch_size": 2, "epochs": 1, "warmup_epochs": 0}
    run = config(folders, tmp_path, name="run", val_share=0.4, **plain)
    train(run)
    checkpoint = str(run.folder / "checkpoint")
    report = evaluate_checkpoint(
        EvaluateConfig(data=folders, checkpoint=checkpoint, val_share=0.4, workers=0, device="cpu")
    )
    assert report is not None
    assert report.evaluation.images == 2
    assert report.evaluation.loss["class"] == pytest.approx(metrics_of(run.folder)[-1]["val_class_loss"], abs=1e-5)
    with pytest.raises(TrainingError, match=r"--val-share 0\.4: .*data already has val: leave it out"):
        evaluate_checkpoint(EvaluateConfig(data=tmp_path / "data", checkpoint=checkpoint, val_share=0.4))
    with pytest.raises(ValueError, match="--val-share evaluates training images and --split others"):
        EvaluateConfig(data=folders, checkpoint=checkpoint, val_share=0.4, split="test")


def test_a_split_without_some_classes_is_matched_by_name_and_one_with_others_is_refused(tmp_path: Path) -> None:
    data = image_folder(tmp_path / "data")
    shutil.rmtree(data / "val" / "cat")
    settings = {"batch_size": 2}
    splits = open_splits(config(data, tmp_path, name="run", **settings))
    assert (splits.judged.label_names, labels_of(splits.judged)) == (("cat", "dog"), ["dog"] * 3)
    (data / "val" / "dog").rename(data / "val" / "wolf")
    with pytest.raises(TrainingError, match="only val or test has wolf, only train has cat, dog"):
        open_splits(config(data, tmp_path, name="run", **settings))
