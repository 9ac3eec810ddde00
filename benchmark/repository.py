"""Models of a repository on disk, as measurements need them."""

from dataclasses import dataclass
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from deit.errors import BenchmarkError
from deit.labels import LABELS_FILE, read_labels
from deit.model import CONFIG_FILE, ONNX_FILE, PREPROCESSING_PARAMETER, PROVENANCE_PARAMETER, Provenance


@dataclass(frozen=True, kw_only=True)
class RepositoryModel:
    """The newest version of a model. `onnx_file` is None when it is no ONNX file."""

    name: str
    onnx_file: Path | None
    preprocessing: str
    precision: str
    label_names: tuple[str, ...]


def read_model(repository: Path, name: str) -> RepositoryModel:
    """Raises BenchmarkError when there is no such model that `deit export` wrote."""
    folder = repository / name
    try:
        config = text_format.Parse((folder / CONFIG_FILE).read_text(), model_config_pb2.ModelConfig())
        version = max(int(entry.name) for entry in folder.iterdir() if entry.name.isdigit())
        onnx_file = folder / str(version) / ONNX_FILE
        return RepositoryModel(
            name=name,
            onnx_file=onnx_file if onnx_file.is_file() else None,
            preprocessing=config.parameters[PREPROCESSING_PARAMETER].string_value,
            precision=Provenance.from_json(config.parameters[PROVENANCE_PARAMETER].string_value).precision,
            label_names=read_labels(folder / LABELS_FILE),
        )
    except (OSError, ValueError, text_format.ParseError) as error:
        raise BenchmarkError(f"{folder} is no model that `deit export` wrote: {error}") from error
