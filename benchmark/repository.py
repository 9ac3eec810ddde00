"""Models of a repository on disk, as measurements need them."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deit.errors import BenchmarkError
from deit.labels import LABELS_FILE, read_labels
from deit.model import CONFIG_FILE, ONNX_FILE, PREPROCESSING_PARAMETER, PROVENANCE_PARAMETER, Provenance
from deit.repository.publishing import model_folder, read_config, served_version

# ONNX Runtime has no bfloat16 products for processors.
RUN_BY_ONNXRUNTIME = ("fp32", "fp16", "int8")


@dataclass(frozen=True, kw_only=True)
class RepositoryModel:
    """The version of a model that is served, by whatever engine its export chose.

    `onnx_file` is None when ONNX Runtime cannot run it on a processor.
    """

    name: str
    onnx_file: Path | None
    preprocessing: str
    precision: str
    label_names: tuple[str, ...]


def read_model(repository: Path, name: str) -> RepositoryModel:
    """Raises RepositoryError or BenchmarkError when there is no such model that `deit export` wrote."""
    folder = model_folder(repository, name)
    config, version = read_config(folder / CONFIG_FILE), served_version(folder)
    try:
        precision = Provenance.from_json(config.parameters[PROVENANCE_PARAMETER].string_value).precision
        label_names = read_labels(folder / LABELS_FILE)
    except (OSError, ValueError) as error:
        raise BenchmarkError(f"{folder} is no model that `deit export` wrote: {error}") from error
    onnx_file = folder / str(version) / ONNX_FILE
    return RepositoryModel(
        name=name,
        onnx_file=onnx_file if precision in RUN_BY_ONNXRUNTIME and onnx_file.is_file() else None,
        preprocessing=config.parameters[PREPROCESSING_PARAMETER].string_value,
        precision=precision,
        label_names=label_names,
    )


@contextmanager
def only(repository: Path, name: str) -> Iterator[Path]:
    """A repository with that one model, so that the memory of a server is not that of others."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / name).symlink_to(model_folder(repository, name).resolve())
        yield Path(folder)
