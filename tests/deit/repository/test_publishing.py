import os
import random
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from tritonclient.grpc import model_config_pb2

from deit.errors import RepositoryError
from deit.model import PREPROCESSING_PARAMETER
from deit.preprocessing import Preprocessing
from deit.repository import lock
from deit.repository.config import read_config
from deit.repository.lock import staging_folder, writing
from deit.repository.models import read_served, read_version, version_numbers
from deit.repository.numbers import NUMBERS_FILE
from deit.repository.publishing import promote, publish, remove, serve_version
from tests.conftest import REPOSITORY_ROOT
from tests.deit.repository.conftest import change

LABELS = ("red", "green", "blue")
PREPROCESSING = Preprocessing(image_size=16, crop_pct=0.9, interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3)


def graph(text: bytes) -> bytes:
    """What an ONNX file looks like from outside: a protobuf whose field 7 is the graph."""
    return b"\x3a" + bytes([len(text) & 0x7F | 0x80, len(text) >> 7]) + text


def config(*outputs: str, backend: str = "onnxruntime", max_batch_size: int = 16) -> model_config_pb2.ModelConfig:
    config = model_config_pb2.ModelConfig(
        backend=backend, max_batch_size=max_batch_size, default_model_filename="model.onnx"
    )
    config.input.add(name="images", data_type=model_config_pb2.TYPE_UINT8, dims=[16, 16, 3])
    for output in outputs or ("probabilities",):
        config.output.add(name=output, data_type=model_config_pb2.TYPE_FP32, dims=[3], label_filename="labels.txt")
    config.parameters[PREPROCESSING_PARAMETER].string_value = PREPROCESSING.to_json()
    return config


def publish_tiny(
    repository: Path,
    content: bytes = graph(b"graph"),
    *,
    configuration: model_config_pb2.ModelConfig | None = None,
    labels: tuple[str, ...] = LABELS,
) -> int:
    def fill(folder: Path) -> None:
        (folder / "model.onnx").write_bytes(content)

    return publish(repository, "tiny", config=configuration or config(), label_names=labels, fill=fill)


def files(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def served(repository: Path) -> tuple[int, ...]:
    return read_served(repository / "tiny")[1]


def test_a_model_appears_whole_and_the_next_version_beside_it(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    assert publish_tiny(repository) == 1
    assert publish_tiny(repository, graph(b"better graph"), configuration=config(backend="openvino")) == 2
    assert sorted(files(repository)) == [
        "tiny/1/config.pbtxt",
        "tiny/1/model.onnx",
        "tiny/2/config.pbtxt",
        "tiny/2/model.onnx",
        "tiny/config.pbtxt",
        "tiny/labels.txt",
    ]
    assert (repository / "tiny/1/model.onnx").read_bytes() == graph(b"graph")
    assert (repository / "tiny/2/model.onnx").read_bytes() == graph(b"better graph")
    assert served(repository) == (2,)
    assert [entry.name for entry in tmp_path.iterdir()] == ["models"]  # nothing is left next to it


def test_going_back_serves_the_old_version_with_its_own_configuration(tmp_path: Path) -> None:
    publish_tiny(tmp_path, graph(b"old"))
    first = (tmp_path / "tiny" / "config.pbtxt").read_bytes()
    publish_tiny(tmp_path, graph(b"new"), configuration=config(backend="openvino"))
    assert read_config(tmp_path / "tiny" / "config.pbtxt").backend == "openvino"
    serve_version(tmp_path, "tiny", 1)
    assert (tmp_path / "tiny" / "config.pbtxt").read_bytes() == first
    assert publish_tiny(tmp_path, graph(b"newest")) == 3  # a number is never used twice
    with pytest.raises(RepositoryError, match=r"has no version 9; it has: 1, 2, 3"):
        serve_version(tmp_path, "tiny", 9)


def test_a_version_made_before_versions_kept_their_configuration_can_be_gone_back_to(tmp_path: Path) -> None:
    publish_tiny(tmp_path)
    old = config()
    old.name = "tiny"
    old.version_policy.latest.num_versions = 1
    (tmp_path / "tiny" / "config.pbtxt").write_text(str(old))
    (tmp_path / "tiny" / "1" / "config.pbtxt").unlink()
    assert served(tmp_path) == (1,)
    publish_tiny(tmp_path, configuration=config(backend="openvino"))
    serve_version(tmp_path, "tiny", 1)
    assert read_config(tmp_path / "tiny" / "config.pbtxt").backend == "onnxruntime"
    assert served(tmp_path) == (1,)


def test_the_served_version_is_not_removed_but_others_and_whole_models_are(tmp_path: Path) -> None:
    publish_tiny(tmp_path)
    publish_tiny(tmp_path)
    with pytest.raises(RepositoryError, match="version 2 of tiny is served: serve another first"):
        remove(tmp_path, "tiny", 2)
    remove(tmp_path, "tiny", 1)
    assert version_numbers(tmp_path / "tiny") == [2]
    remove(tmp_path, "tiny")
    assert not (tmp_path / "tiny").exists()
    with pytest.raises(RepositoryError, match="has no model 'tiny'; it has: none"):
        remove(tmp_path, "tiny")


def test_no_number_is_given_twice_whatever_was_removed(tmp_path: Path) -> None:
    """A gateway takes what has the same name and number for the same version, and keeps its pixels for it."""
    for _ in range(3):
        publish_tiny(tmp_path)
    serve_version(tmp_path, "tiny", 1)
    remove(tmp_path, "tiny", 3)
    remove(tmp_path, "tiny", 2)
    assert publish_tiny(tmp_path) == 4
    remove(tmp_path, "tiny")
    assert publish_tiny(tmp_path) == 5
    assert served(tmp_path) == (5,)
    assert (tmp_path / "tiny" / "5" / "config.pbtxt").read_text() == (tmp_path / "tiny" / "config.pbtxt").read_text()
    (tmp_path / NUMBERS_FILE).write_text('["tiny"]')
    with pytest.raises(RepositoryError, match="does not hold the highest version number"):
        publish_tiny(tmp_path)


def test_a_configuration_that_cannot_be_read_is_put_right_by_going_back(tmp_path: Path) -> None:
    publish_tiny(tmp_path)
    publish_tiny(tmp_path)
    (tmp_path / "tiny" / "config.pbtxt").write_text("input [")
    serve_version(tmp_path, "tiny", 1)
    assert served(tmp_path) == (1,)


def test_every_version_that_was_served_can_be_gone_back_to(tmp_path: Path) -> None:
    """`all` in a repository made by hand, which has one configuration for all its versions."""
    publish_tiny(tmp_path)
    publish_tiny(tmp_path)
    change(tmp_path / "tiny" / "config.pbtxt", "specific {\n    versions: 2\n  }", "all {\n  }")
    for number in (1, 2):
        (tmp_path / "tiny" / str(number) / "config.pbtxt").unlink()
    assert served(tmp_path) == (1, 2)
    serve_version(tmp_path, "tiny", 1)
    serve_version(tmp_path, "tiny", 2)
    assert served(tmp_path) == (2,)


def test_a_version_that_is_not_sound_is_not_promoted(repository: Path, tmp_path: Path) -> None:
    (repository / "tiny" / "labels.txt").unlink()
    with pytest.raises(RepositoryError, match="is not published: .*labels.txt does not name the classes"):
        promote(repository / "tiny", tmp_path / "production", "tiny")
    assert not (tmp_path / "production").exists()


def test_a_link_in_a_version_is_promoted_as_bytes(repository: Path, tmp_path: Path) -> None:
    (graph,) = repository.glob("tiny/*/model.onnx")
    graph.rename(tmp_path / "elsewhere.onnx")
    graph.symlink_to(tmp_path / "elsewhere.onnx")
    assert promote(repository / "tiny", tmp_path / "production", "tiny") == 1
    copy = tmp_path / "production" / "tiny" / "1" / "model.onnx"
    assert not copy.is_symlink()
    assert copy.read_bytes() == (tmp_path / "elsewhere.onnx").read_bytes()
    assert served(tmp_path / "production") == (1,)


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        ({"configuration": config("probabilities", "class_probabilities")}, "other inputs or outputs"),
        ({"labels": ("red", "green", "violet")}, "other class names"),
    ],
)
def test_a_version_with_another_interface_is_refused_and_nothing_changes(
    tmp_path: Path, changes: dict[str, object], finding: str
) -> None:
    publish_tiny(tmp_path)
    before = files(tmp_path)
    with pytest.raises(RepositoryError, match=finding):
        publish_tiny(tmp_path, **changes)
    assert files(tmp_path) == before


def test_a_failed_publication_leaves_nothing(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    with pytest.raises(FileNotFoundError):
        publish(
            repository,
            "tiny",
            config=config(),
            label_names=LABELS,
            fill=lambda folder: (folder / "missing" / "model.onnx").write_bytes(b""),
        )
    assert list(tmp_path.rglob("*")) == [repository]


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    with pytest.raises(RepositoryError, match="was not written by `deit export`"):
        publish_tiny(tmp_path)


def test_a_full_disk_is_one_sentence_and_the_old_version_stays(tmp_path: Path) -> None:
    publish_tiny(tmp_path)
    before = files(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # the kernel refuses the write, as on a full disk
    try:
        with pytest.raises(RepositoryError, match="cannot be written: File too large. Earlier versions are"):
            publish_tiny(tmp_path, b"0" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files(tmp_path) == before
    assert not staging_folder(tmp_path).exists()


def test_the_second_writer_waits_for_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_tiny(tmp_path)
    with writing(tmp_path):
        with monkeypatch.context() as patch, pytest.raises(RepositoryError, match="another process has been writing"):
            patch.setattr(lock, "LOCK_WAIT_S", 0.1)
            publish_tiny(tmp_path)
        second = threading.Thread(target=publish_tiny, args=(tmp_path,))
        second.start()
        second.join(0.3)
        assert second.is_alive()
        assert version_numbers(tmp_path / "tiny") == [1]
    second.join(30)
    assert version_numbers(tmp_path / "tiny") == [1, 2]


# Writers one after the other, forked so that each starts at once, that publish and go back and forth until they are
# killed. A version's graph says its number a thousand times.
WRITERS = """
import os
import sys
from pathlib import Path
from deit.repository.models import version_numbers
from deit.repository.publishing import publish, remove, serve_version
from tests.deit.repository.test_publishing import LABELS, config, graph

def write_for_ever(repository):
    while True:
        present = version_numbers(repository / "tiny")
        number = max(present, default=0) + 1
        publish(repository, "tiny", config=config(max_batch_size=number), label_names=LABELS,
                fill=lambda folder: (folder / "model.onnx").write_bytes(graph(b"%d\\n" % number * 1000)))
        if present:
            serve_version(repository, "tiny", max(present))
            serve_version(repository, "tiny", number)
        for old in present[:-1]:
            remove(repository, "tiny", old)

for line in sys.stdin:
    repository = Path(line.strip())
    pid = os.fork()
    if not pid:
        write_for_ever(repository)
    print(pid, flush=True)
    os.waitpid(pid, 0)
    print("gone", flush=True)
"""


@pytest.mark.parametrize("kills", [40, pytest.param(200, marks=pytest.mark.soak)])
def test_killed_writers_leave_the_old_version_or_the_new(tmp_path: Path, kills: int) -> None:
    repository = tmp_path / "models"
    publish(
        repository,
        "tiny",
        config=config(max_batch_size=1),
        label_names=LABELS,
        fill=lambda folder: (folder / "model.onnx").write_bytes(graph(b"1\n" * 1000)),
    )
    moments = random.Random(0)
    seen: set[int] = set()
    pause_s = 0.06  # a turn of a writer takes about 0.04 s where nothing else runs
    with subprocess.Popen(
        [sys.executable, "-c", WRITERS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
        cwd=REPOSITORY_ROOT,
    ) as writers:
        assert writers.stdin is not None
        assert writers.stdout is not None
        for _ in range(kills):
            writers.stdin.write(f"{repository}\n")
            pid = int(writers.stdout.readline())
            threading.Event().wait(moments.uniform(0, pause_s))
            os.kill(pid, signal.SIGKILL)
            assert writers.stdout.readline() == "gone\n"
            version = _whole(repository)
            pause_s *= 1.25 if version in seen else 0.8  # about every second kill meets a writer that has written
            seen.add(version)
        writers.stdin.close()
    assert len(seen) > kills / 10  # the writers did get to write
    with writing(repository):
        pass
    assert not staging_folder(repository).exists()


def _whole(repository: Path) -> int:
    """The served version, of a repository in which everything that can be seen is whole."""
    version = read_version(repository / "tiny")
    assert version.config.max_batch_size == version.number
    assert version.labels == LABELS
    for each in version_numbers(repository / "tiny"):
        assert (repository / "tiny" / str(each) / "model.onnx").read_bytes() == graph(b"%d\n" % each * 1000)
        assert read_config(repository / "tiny" / str(each) / "config.pbtxt").max_batch_size == each
    return version.number
