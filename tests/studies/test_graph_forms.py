import subprocess
import sys

from tests.conftest import REPOSITORY_ROOT

GRAPH = REPOSITORY_ROOT / "model_repository" / "deit_cifar10" / "1" / "model.onnx"


def test_a_copy_of_a_graph_gives_its_answers(tmp_path) -> None:
    copy = tmp_path / "copy.onnx"
    copy.write_bytes(GRAPH.read_bytes())
    command = [*(sys.executable, "-m", "studies.graph_forms", "--graph", GRAPH, "--graph", copy), "--calls=4"]
    done = subprocess.run(command, cwd=REPOSITORY_ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    words = " ".join((done.stdout + done.stderr).split())
    for batch_size in (1, 8):
        assert f"batch {batch_size} model: " in words
        assert f"batch {batch_size} copy: " in words
    assert words.count("answers within 0.0e+00") == 4
