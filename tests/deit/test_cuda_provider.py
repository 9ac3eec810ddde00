"""With the onnxruntime for processors that is installed here; tests/test_gpu_environment.py has the one for GPUs."""

from pathlib import Path

import onnxruntime
import pytest

from deit.cuda_provider import CUDA, TENSORRT, GpuUnavailableError, cuda_provider, gpu_session
from tests.conftest import REPOSITORY_ROOT

GRAPH = REPOSITORY_ROOT / "model_repository" / "deit_cifar10" / "1" / "model.onnx"


@pytest.mark.parametrize("provider", [CUDA, TENSORRT, "OpenVINOExecutionProvider"])
@pytest.mark.parametrize("graph", [GRAPH, GRAPH.read_bytes()])
def test_a_session_that_cannot_be_on_the_gpu_is_none_on_the_cpu(provider: str, graph: Path | bytes) -> None:
    with pytest.raises(GpuUnavailableError, match=rf"has no {provider} .*CPUExecutionProvider.*the extra gpu"):
        gpu_session(graph, onnxruntime.SessionOptions(), [(provider, {}), cuda_provider()])


def test_cuda_computes_float32_in_float32() -> None:
    assert cuda_provider("1") == (CUDA, {"device_id": "1", "use_tf32": "0"})
