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
from deit.repository import publishing
from deit.repository.publishing import (
    publish,
    read_config,
    remove,
    serve_version,
    served_version,
    staging_folder,
    versions,
    writing,
)
from tests.conftest import REPOSITORY_ROOT

LABELS = ("red", "green", "blue")


def config(*outputs: str, backend: str = "onnxruntime") -> model_config_pb2.ModelConfig:
    config = model_config_pb2.ModelConfig(backend=backend, max_batch_size=16)
    config.input.add(name="images", data_type=model_config_pb2.TYPE_UINT8, dims=[16, 16, 3])
    for output in outputs or ("probabilities",):
        config.output.add(name=output, data_type=model_config_pb2.TYPE_FP32, dims=[3], label_filename="labels.txt")
    return config


def publish_tiny(
    repository: Path,
    content: bytes = b"graph",
    *,
    configuration: model_config_pb2.ModelConfig | None = None,
    labels: tuple[str, ...] = LABELS,
) -> int:
    def fill(folder: Path) -> None:
        (folder / "model.onnx").write_bytes(content)

    return publish(repository, "tiny", config=configuration or config(), label_names=labels, fill=fill)


def files(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_model_appears_whole_and_the_next_version_beside_it(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    assert publish_tiny(repository) == 1
    assert publish_tiny(repository, b"better graph", configuration=config(backend="openvino")) == 2
    assert sorted(files(repository)) == [
        "tiny/1/config.pbtxt",
        "tiny/1/model.onnx",
        "tiny/2/config.pbtxt",
        "tiny/2/model.onnx",
        "tiny/config.pbtxt",
        "tiny/labels.txt",
    ]
    assert (repository / "tiny/1/model.onnx").read_bytes() == b"graph"
    assert (repository / "tiny/2/model.onnx").read_bytes() == b"better graph"
    assert served_version(repository / "tiny") == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["models"]  # nothing is left beside it


def test_going_back_serves_the_old_version_with_its_own_configuration(tmp_path: Path) -> None:
    publish_tiny(tmp_path, b"old")
    first = (tmp_path / "tiny" / "config.pbtxt").read_bytes()
    publish_tiny(tmp_path, b"new", configuration=config(backend="openvino"))
    assert read_config(tmp_path / "tiny" / "config.pbtxt").backend == "openvino"
    serve_version(tmp_path, "tiny", 1)
    assert (tmp_path / "tiny" / "config.pbtxt").read_bytes() == first
    assert publish_tiny(tmp_path, b"newest") == 3  # a number is never used twice
    with pytest.raises(RepositoryError, match=r"has no version 9; it has: 1, 2, 3"):
        serve_version(tmp_path, "tiny", 9)


def test_a_version_made_before_versions_kept_their_configuration_can_be_gone_back_to(tmp_path: Path) -> None:
    publish_tiny(tmp_path)
    old = config()
    old.name = "tiny"
    old.version_policy.latest.num_versions = 1
    (tmp_path / "tiny" / "config.pbtxt").write_text(str(old))
    (tmp_path / "tiny" / "1" / "config.pbtxt").unlink()
    assert served_version(tmp_path / "tiny") == 1
    publish_tiny(tmp_path, configuration=config(backend="openvino"))
    serve_version(tmp_path, "tiny", 1)
    assert read_config(tmp_path / "tiny" / "config.pbtxt").backend == "onnxruntime"
    assert served_version(tmp_path / "tiny") == 1


def test_the_served_version_is_not_removed_but_others_and_whole_models_are(tmp_path: Path) -> None:
    publish_tiny(tmp_path)
    publish_tiny(tmp_path)
    with pytest.raises(RepositoryError, match="is the version that is served"):
        remove(tmp_path, "tiny", 2)
    remove(tmp_path, "tiny", 1)
    assert versions(tmp_path / "tiny") == [2]
    remove(tmp_path, "tiny")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RepositoryError, match="has no model 'tiny'; it has: none"):
        remove(tmp_path, "tiny")


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
    with pytest.raises(RepositoryError, match="is no model that `deit export` wrote"):
        publish_tiny(tmp_path)


def test_a_full_disk_is_one_sentence_and_the_old_version_stays(tmp_path: Path) -> None:
    publish_tiny(tmp_path)
    before = files(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # the kernel refuses the write, as on a full disk
    try:
        with pytest.raises(RepositoryError, match="cannot be written: File too large. The versions before are"):
            publish_tiny(tmp_path, b"0" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files(tmp_path) == before
    assert not staging_folder(tmp_path).exists()


def test_the_second_writer_waits_for_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_tiny(tmp_path)
    with writing(tmp_path):
        second = threading.Thread(target=publish_tiny, args=(tmp_path,))
        second.start()
        second.join(0.3)
        assert second.is_alive()
        assert versions(tmp_path / "tiny") == [1]
        monkeypatch.setattr(publishing, "LOCK_WAIT_S", 0.1)
        with pytest.raises(RepositoryError, match="another process has been writing"):
            publish_tiny(tmp_path)
        monkeypatch.undo()
    second.join(30)
    assert versions(tmp_path / "tiny") == [1, 2]


# Writers one after the other, forked so that each starts at once, that publish and go back and forth until they are
# killed. A version's graph says its number a thousand times.
WRITERS = """
import os
import sys
from pathlib import Path
from deit.repository.publishing import publish, remove, serve_version, versions
from tests.deit.repository.test_publishing import LABELS, config

def write_for_ever(repository):
    while True:
        present = versions(repository / "tiny")
        number = max(present, default=0) + 1
        publish(repository, "tiny", config=config(backend=f"backend{number}"), label_names=LABELS,
                fill=lambda folder: (folder / "model.onnx").write_text(f"{number}\\n" * 1000))
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


@pytest.mark.timeout(120)
def test_200_killed_writers_leave_the_old_version_or_the_new(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    publish(
        repository,
        "tiny",
        config=config(backend="backend1"),
        label_names=LABELS,
        fill=lambda folder: (folder / "model.onnx").write_text("1\n" * 1000),
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
        for _ in range(200):
            writers.stdin.write(f"{repository}\n")
            pid = int(writers.stdout.readline())
            threading.Event().wait(moments.uniform(0, pause_s))
            os.kill(pid, signal.SIGKILL)
            assert writers.stdout.readline() == "gone\n"
            version = _whole(repository)
            pause_s *= 1.25 if version in seen else 0.8  # about every second kill meets a writer that has written
            seen.add(version)
        writers.stdin.close()
    assert len(seen) > 20  # the writers did get to write
    with writing(repository):
        pass
    assert not staging_folder(repository).exists()


def _whole(repository: Path) -> int:
    """The served version, of a repository in which everything that can be seen is whole."""
    number = served_version(repository / "tiny")
    assert number is not None
    assert read_config(repository / "tiny" / "config.pbtxt").backend == f"backend{number}"
    for each in versions(repository / "tiny"):
        assert (repository / "tiny" / str(each) / "model.onnx").read_text() == f"{each}\n" * 1000
        assert read_config(repository / "tiny" / str(each) / "config.pbtxt").backend == f"backend{each}"
    assert (repository / "tiny" / "labels.txt").read_text().split() == list(LABELS)
    return number
