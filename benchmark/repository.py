"""Which file of a model version ONNX Runtime can run here, and a repository of one model."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deit.repository.models import ModelVersion

# ONNX Runtime has no bfloat16 products for processors.
RUN_BY_ONNXRUNTIME = ("fp32", "fp16", "int8")


def onnx_file(version: ModelVersion) -> Path | None:
    """The graph, or None when ONNX Runtime cannot run it on a processor."""
    is_graph = version.file.suffix == ".onnx" and version.file.is_file()
    return version.file if is_graph and version.precision in RUN_BY_ONNXRUNTIME else None


@contextmanager
def only(model: Path) -> Iterator[Path]:
    """A repository with that one model, so that the memory of a server does not include others."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / model.name).symlink_to(model.resolve())
        yield Path(folder)
