"""`deit classify-dataset` with its real processes, on this machine and on a Ray cluster of it."""

import contextlib
import json
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bulk.model import Session, read_model
from bulk.results import Job, begin, write_part
from bulk.sources import digest_of, find_parts, read_images
from bulk.steps import Work, decode
from deit.errors import DataError, RepositoryError
from deit.model_input import model_input
from deit.pictures import PictureLimits
from tests.conftest import REPOSITORY_ROOT, encoded, photograph
from tests.serving.conftest import eventually, is_alive

REPOSITORY = REPOSITORY_ROOT / "model_repository"


def command(*arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "deit", "classify-dataset", *map(str, arguments)],
        cwd=REPOSITORY_ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def descendants(pid: int) -> list[psutil.Process]:
    """Everything that the command started."""
    return psutil.Process(pid).children(recursive=True)


def workers(pid: int) -> list[psutil.Process]:
    """Those that classify: the command starts the fork server, which starts them."""
    started = psutil.Process(pid).children()
    return [each for server in started if "forkserver" in title(server) for each in server.children()]


def actors(pid: int, name: str) -> list[psutil.Process]:
    return [each for each in descendants(pid) if re.match(rf"ray::.*{name}", title(each))]


def title(process: psutil.Process) -> str:
    """Ray names its actors; "" of a process that has ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline())
    return ""


def wait_for_parts(process: subprocess.Popen[str], output: Path, count: int, timeout_s: float = 120) -> None:
    """Until the command has written so many; one that ends before says why."""

    def are_there() -> bool:
        assert process.poll() is None, process.communicate()[0]
        return len(parts_of(output)) >= count

    eventually(are_there, timeout_s)


def parts_of(output: Path) -> set[Path]:
    return set(output.glob("part-*.parquet"))


def answers(folder: Path) -> pa.Table:
    return pq.read_table(folder)


@pytest.fixture
def pictures(tmp_path) -> Path:
    folder = tmp_path / "pictures"
    for number in range(7):
        path = folder / f"day {number % 2}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(photograph(60 + number, 50, seed=number)))
    (folder / "torn.jpg").write_bytes(encoded(photograph(60, 50))[:500])
    (folder / "notes.txt").write_text("no image")
    (folder / "._0.jpg").write_text("what macOS writes next to a picture")
    (folder / ".thumbnails").mkdir()
    (folder / ".thumbnails" / "0.jpg").write_bytes(encoded(photograph(8, 8)))
    return folder


@pytest.fixture
def table(tmp_path) -> Path:
    path = tmp_path / "pictures.parquet"
    rows = [{"bytes": encoded(photograph(40, 40, seed=number)), "path": f"{number}.jpg"} for number in range(10)]
    pq.write_table(pa.table({"image": rows}), path, row_group_size=4)
    return path


WHERE = pytest.mark.parametrize("where", [(), pytest.param(("--ray-address=local",), marks=pytest.mark.soak)])


@WHERE
def test_a_folder_is_classified_and_little_is_said(pictures, tmp_path, where):
    arguments = ["--images", pictures, "--output", tmp_path / "answers", "--part-images=3", "--top-k=2"]
    process = command(*arguments, "--model=deit_cifar10", *where)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert "8 images are classified" in said
    assert "1 of 8 images could not be classified" in said
    assert len(said.splitlines()) <= 4 + len(where), said  # Ray's core has a line that nothing turns off
    check_answers(pictures, tmp_path / "answers")


def test_a_process_and_then_the_job_are_killed_and_nothing_is_missing_or_double(table, tmp_path):
    """The same command goes on. No process of a killed job stays."""
    rows = pq.read_table(table)["image"].to_pylist() * 60
    images, output = tmp_path / "many.parquet", tmp_path / "answers"
    pq.write_table(pa.table({"image": rows}), images, row_group_size=10)
    arguments = ["--images", images, "--output", output, "--model=deit_cifar10", "--part-images=10", "--processes=2"]

    process = command(*arguments)
    eventually(lambda: workers(process.pid), 120)
    workers(process.pid)[0].kill()  # it has hardly begun
    wait_for_parts(process, output, 2)
    workers(process.pid)[-1].kill()
    wait_for_parts(process, output, len(parts_of(output)) + 5)
    family = descendants(process.pid)
    process.kill()
    said, _ = process.communicate(timeout=60)  # which waits for the end of all that could write to it
    assert said.count("a process died; a new one does its part again") == 2, said
    finished = {path: path.stat().st_mtime_ns for path in parts_of(output)}
    assert len(finished) < 60, "it was over before it could be killed"
    eventually(lambda: not any(is_alive(each.pid) and each.is_running() for each in family), 60)
    second = command(*arguments)
    said, _ = second.communicate(timeout=300)
    assert second.returncode == 0, said
    assert answers(output)["image"].to_pylist() == [f"{images}#{row}" for row in range(600)]
    assert all(path.stat().st_mtime_ns == modified for path, modified in finished.items()), "done again in vain"


def test_a_part_at_which_every_process_dies_ends_the_job(table, tmp_path):
    process = command("--images", table, "--output", tmp_path / "answers", "--model=deit_cifar10", "--processes=1")
    while process.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            for each in workers(process.pid):
                each.kill()
    said, _ = process.communicate()
    assert process.returncode == 1
    assert f"deit: 3 processes died at the part that begins with {table}#0: give them more memory" in said
    assert not parts_of(tmp_path / "answers")


def test_a_job_for_gpus_ends_before_it_begins_where_there_is_none(pictures, tmp_path):
    """With the onnxruntime for processors that is installed here."""
    job = command("--images", pictures, "--output", tmp_path / "answers", "--model=deit_cifar10", "--gpus=1")
    said, _ = job.communicate(timeout=300)
    assert job.returncode == 1
    assert "deit: --gpus needs a GPU, and none can be used: onnxruntime" in said.replace("\n", " ")
    assert "install the extra gpu" in said
    assert not (tmp_path / "answers").exists()


def check_answers(pictures: Path, folder: Path) -> None:
    rows = {Path(row["image"]).name: row for row in answers(folder).to_pylist()}
    assert set(rows) == {*(f"{number}.jpg" for number in range(7)), "torn.jpg"}
    assert rows["torn.jpg"]["problem"].startswith("undecodable-image: ")
    assert rows["torn.jpg"]["label"] is None
    model = read_model(REPOSITORY, "deit_cifar10", None)
    session = Session(model.graph, threads=1)
    for path in pictures.glob("day */*.jpg"):
        pixels = model_input(path.read_bytes(), model.preprocessing, PictureLimits(max_pixels=10**6))
        expected = session.probabilities(np.asarray(pixels)[np.newaxis])[0]
        row = rows[path.name]
        assert row["label"] == model.labels[int(expected.argmax())]
        # the same graph on one thread; only the batch is another, which may move the last bits
        np.testing.assert_allclose(row["probabilities"], np.sort(expected)[::-1][:2], atol=1e-6)
        assert (row["model"], row["version"], row["model_sha256"]) == (model.name, model.version, model.digest)


@pytest.mark.soak
def test_ten_thousand_images_with_killed_actors_and_a_killed_job(shared_data, tmp_path):
    """An actor of Ray is killed, then the whole job; the same command goes on: nothing is missing or double."""
    images, output = shared_data / "cifar10" / "test.parquet", tmp_path / "answers"
    arguments = [
        "--images",
        images,
        "--output",
        output,
        "--model=deit_cifar10",
        "--part-images=100",
        "--processes=2",
        "--ray-address=local",
    ]

    process = command(*arguments)
    try:
        wait_for_parts(process, output, 5, 600)
        actors(process.pid, "DecodeAndClassify")[0].kill()
        wait_for_parts(process, output, len(parts_of(output)) + 10, 600)
        assert process.poll() is None, "it was over before the job could be killed"
    finally:
        family = descendants(process.pid)
        process.kill()
        for each in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        said, _ = process.communicate()
    finished = {path: path.stat().st_mtime_ns for path in parts_of(output)}
    assert 15 <= len(finished) < 100, said

    second = command(*arguments)
    said, _ = second.communicate(timeout=1200)
    assert second.returncode == 0, said
    found = answers(output)
    assert found.num_rows == 10_000
    assert found["image"].to_pylist() == [f"{images}#{row}" for row in range(10_000)]
    assert all(path.stat().st_mtime_ns == modified for path, modified in finished.items()), "done again in vain"
    labels = pq.read_table(images, columns=["label"])["label"].to_numpy()
    top1 = float((found["index"].to_numpy() == labels).mean())
    model = read_model(REPOSITORY, "deit_cifar10", None)
    metrics = json.loads((REPOSITORY / model.name / model.version / "provenance.json").read_text())["metrics"]
    # the accuracy that training measured, in bf16 or fp32, with the same transform
    assert abs(top1 - metrics["joint_top1"]) < 0.005


def test_parts_cover_every_image_once(pictures, table):
    parts = find_parts(str(pictures), part_images=3)
    names = [name for part in parts for name in part.names()]
    assert [part.number for part in parts] == [0, 1, 2]
    assert len(names) == len(set(names)) == 8
    assert names == sorted(names)
    rows = pq.read_table(table)["image"].to_pylist()
    parts = find_parts(str(table), part_images=3)
    assert [content for part in parts for content in read_images(str(table), part)] == [row["bytes"] for row in rows]
    assert [name for part in parts for name in part.names()] == [f"{table}#{number}" for number in range(10)]


def test_a_row_without_an_image_does_not_end_the_job(tmp_path):
    path = tmp_path / "links.parquet"
    pq.write_table(pa.table({"image": [{"bytes": b"image", "path": "0.jpg"}, {"bytes": None, "path": "1.jpg"}]}), path)
    (part,) = find_parts(str(path), part_images=3)
    assert read_images(str(path), part) == [b"image", b""]


def test_what_cannot_be_read_is_known_by_its_place(tmp_path, pictures):
    (part,) = find_parts(str(pictures), part_images=100)
    Path(part.files[2]).unlink()
    contents = read_images(str(pictures), part)
    assert [place for place, content in enumerate(contents) if isinstance(content, OSError)] == [2]
    work = Work(
        images=str(pictures),
        output=str(tmp_path),
        model=read_model(REPOSITORY, "deit_cifar10", None),
        top_k=1,
        batch_size=8,
        max_image_pixels=10**7,
    )
    assert decode(work, part).problems[2].startswith("unreadable: ")

    path = tmp_path / "damaged.parquet"
    images = [random.Random(row).randbytes(4000) for row in range(4)]
    pq.write_table(pa.table({"image": images}), path, row_group_size=2, compression="zstd", use_dictionary=False)
    start = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    with path.open("r+b") as file:
        file.seek(start)
        file.write(b"\xff" * 20)
    (part,) = find_parts(str(path), part_images=10)
    *whole, third, fourth = read_images(str(path), part)
    assert whole == images[:2]
    assert isinstance(third, OSError)
    assert isinstance(fourth, OSError)


def test_a_url_is_as_good_as_a_path(table):
    by_path, by_url = (find_parts(place, part_images=4) for place in (str(table), table.as_uri()))
    assert by_path == by_url
    assert read_images(table.as_uri(), by_url[2]) == read_images(str(table), by_path[2])


def job(parts: int = 2, **changes: object) -> Job:
    values = {"images": "here", "images_sha256": "a", "parts": parts, "model": "m", "version": "1", "top_k": 5}
    return Job(**{**values, "model_sha256": "b", "preprocessing": "{}", **changes})


def test_a_job_goes_on_where_it_was(tmp_path):
    output = str(tmp_path / "answers")
    assert begin(output, job()) == set()
    write_part(output, 1, [{"image": "x"}])
    assert begin(output, job()) == {1}


def test_the_folder_of_another_job_is_refused(tmp_path):
    output = str(tmp_path / "answers")
    begin(output, job())
    with pytest.raises(DataError, match=r"another job: it differs in model_sha256;"):
        begin(output, job(model_sha256="c"))
    with pytest.raises(DataError, match=r"in version, preprocessing; repeat the earlier command with --version 1 to"):
        begin(output, job(version="2", preprocessing='{"crop_pct": 0.5}'))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    with pytest.raises(DataError, match="not empty"):
        begin(str(tmp_path / "full"), job())


def test_what_cannot_be_classified_is_rows(tmp_path, pictures, table):
    with pytest.raises(DataError, match="does not exist"):
        find_parts(str(tmp_path / "nowhere"), part_images=3)
    with pytest.raises(DataError, match="neither an image"):
        (tmp_path / "empty").mkdir()
        find_parts(str(tmp_path / "empty"), part_images=3)
    with pytest.raises(DataError, match="give one kind"):
        find_parts(str(tmp_path), part_images=3)
    with pytest.raises(DataError, match="cannot be opened"):
        find_parts("gopher://hole", part_images=3)
    pq.write_table(pa.table({"picture": [b""]}), table)
    with pytest.raises(DataError, match="no column 'image'; it has picture"):
        find_parts(str(table), part_images=3)
    with pytest.raises(RepositoryError, match="holds deit_cifar10, deit_cifar10_int8; choose one with --model"):
        read_model(REPOSITORY, None, None)
    with pytest.raises(RepositoryError, match="has no model 'zebra'; it has: deit_cifar10, deit_cifar10_int8"):
        read_model(REPOSITORY, "zebra", None)
    with pytest.raises(RepositoryError, match=r"has no version 99; it has: 1"):
        read_model(REPOSITORY, "deit_cifar10", 99)


def test_the_digest_is_of_the_names_and_their_parts(pictures):
    first = digest_of(find_parts(str(pictures), part_images=3))
    assert first == digest_of(find_parts(str(pictures), part_images=3))
    assert first != digest_of(find_parts(str(pictures), part_images=4))
    (pictures / "late.png").touch()
    assert first != digest_of(find_parts(str(pictures), part_images=3))
