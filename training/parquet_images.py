"""Images in parquet files, as Hugging Face and others write them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from deit.errors import DataError
from training.class_names import class_indices, named_in
from training.columns import Columns

KEPT_BYTES = 2**30
"""Up to this size, all images are kept in memory, which forked workers share; of larger data sets, only the row group
that was read last.
"""

BATCH_ROWS = 256
"""Rows decoded at once: Arrow's offsets reach 2 GiB, and a row group may be larger."""


class ParquetImages:
    """Encoded images in parquet files, which are memory-mapped and decoded one row group at a time.

    The image column is the one with Hugging Face's feature `Image`, or else the only column of bytes or of structs with
    `bytes`; the class column is the one with `ClassLabel`, or else the only column of numbers or text.
    """

    def __init__(self, files: Sequence[Path], columns: Columns = Columns()) -> None:  # noqa: B008  frozen
        self._files = tuple(files)
        self._opened = [_open(file) for file in files]
        schema = self._opened[0].schema_arrow
        features = _features(schema)
        image = _choose(files[0], schema, features, "Image", columns.image, _is_image, "--image-column")
        label = _choose(files[0], schema, features, "ClassLabel", columns.label, _is_label, "--label-column", image)
        for file, opened in zip(files, self._opened, strict=True):
            if {image, label} - set(opened.schema_arrow.names):
                raise DataError(
                    f"{file} lacks the columns {image} and {label} that {files[0]} has: remove one of the files"
                )
        self._image, self._is_struct = image, pa.types.is_struct(schema.field(image).type)
        values = [value for opened in self._opened for value in opened.read([label])[label].to_pylist()]
        names = features.get(label, {}).get("names")
        self._labels, self.label_names = class_indices(
            values, tuple(map(str, names)) if names else named_in(files[0].parent), f"column {label} of {files[0]}"
        )
        # number of the file and of the row group in it
        self._groups = [(file, group) for file, each in enumerate(self._opened) for group in range(each.num_row_groups)]
        metadata = [self._opened[file].metadata.row_group(group) for file, group in self._groups]
        self._starts = np.cumsum([0, *(group.num_rows for group in metadata)])
        self._paths = self._read_paths()
        self._kept: dict[int, pa.ChunkedArray] = {}
        if sum(group.total_byte_size for group in metadata) <= KEPT_BYTES:
            self._keep_all()

    def __len__(self) -> int:
        return len(self._labels)

    def encoded(self, index: int) -> bytes:
        group = int(np.searchsorted(self._starts, index, side="right")) - 1
        if group not in self._kept:
            self._kept = {group: self._decoded(group)}
        content: bytes | None = self._kept[group][index - int(self._starts[group])].as_py()
        if content is not None:
            return content
        path: str | None = self._paths[index].as_py()
        if path is None:
            raise DataError(f"{self.source(index)} has neither bytes nor a path")
        return Path(self._file_of(group).parent, path).read_bytes()

    def label(self, index: int) -> int:
        return int(self._labels[index])

    def file_name(self, index: int) -> str:
        return Path(self._paths[index].as_py() or "").name

    def source(self, index: int) -> str:
        file = self._file_of(int(np.searchsorted(self._starts, index, side="right")) - 1)
        groups = zip(self._starts[:-1], self._groups, strict=True)
        first = next(start for start, (number, _) in groups if self._files[number] == file)
        return f"row {index - first} of {file.parent}/{file.name}"

    def _file_of(self, group: int) -> Path:
        return self._files[self._groups[group][0]]

    def _keep_all(self) -> None:
        kept, size = {}, 0
        for group in range(len(self._groups)):
            kept[group] = self._decoded(group)
            size += kept[group].nbytes
            if size > KEPT_BYTES:  # a file stores repeated values once, so its size says less
                return
        self._kept = kept

    def _decoded(self, group: int) -> pa.ChunkedArray:
        file, number = self._groups[group]
        column = f"{self._image}.bytes" if self._is_struct else self._image
        # no threads, because workers are forked
        batches = self._opened[file].iter_batches(BATCH_ROWS, row_groups=[number], columns=[column], use_threads=False)
        try:
            arrays = [pc.struct_field(batch[0], "bytes") if self._is_struct else batch[0] for batch in batches]
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"row group {number} of {self._files[file]} is damaged: {error}") from error
        return pa.chunked_array(arrays, type=None if arrays else pa.binary())

    def _read_paths(self) -> pa.ChunkedArray:
        """The path of each image, or null if the files give none."""
        kind = self._opened[0].schema_arrow.field(self._image).type
        if not self._is_struct or "path" not in {field.name for field in kind}:
            return pa.chunked_array([pa.nulls(len(self._labels), pa.string())])
        tables = (opened.read([f"{self._image}.path"])[self._image] for opened in self._opened)
        return pa.chunked_array([pc.struct_field(chunk, "path") for table in tables for chunk in table.chunks])


def _open(file: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file, memory_map=True)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file} is not parquet, or is damaged ({error}): fetch or write it again") from error


def _features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """Hugging Face's description of the columns, {} where there is none."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    return {name: feature for name, feature in features.items() if isinstance(feature, dict)}


def _choose(
    file: Path,
    schema: pa.Schema,
    features: dict[str, dict[str, Any]],
    feature: str,
    wanted: str | None,
    fits: Any,
    option: str,
    image: str | None = None,
) -> str:
    """The column that the option names, or else the only one by Hugging Face's feature, by name or by type."""
    described = [name for name in schema.names if features.get(name, {}).get("_type") == feature]
    by_type: list[str] = [field.name for field in schema if fits(field.type) and field.name != image]
    if wanted is not None:
        if wanted in by_type:
            return wanted
        raise DataError(f"{option} {wanted}: {file} has {_listed(schema)}; candidates: {', '.join(by_type) or 'none'}")
    for candidates in (described, [name for name in by_type if name in ("image", "label")], by_type):
        if len(candidates) == 1:
            return str(candidates[0])
        if candidates:
            raise DataError(f"{file} has several columns for {option}: add it with one of {', '.join(candidates)}")
    raise DataError(
        f"{file} has no column of {'images as bytes' if feature == 'Image' else 'classes as numbers or text'}; it has "
        f"{_listed(schema)}. Write them as Hugging Face's datasets does."
    )


def _listed(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({str(field.type)[:40]})" for field in schema)


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_image(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _is_bytes(field.type) for field in kind)
    return _is_bytes(kind)


def _is_label(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind))
