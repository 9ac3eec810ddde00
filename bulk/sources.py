"""The images of a job as parts, fixed in order before the first image is read.

A part is the unit of work, of retries and of output, so its contents must not depend on the run: names are sorted, and
the number of a part follows only from them and the size of parts.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from deit.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".avif")
PARQUET_SUFFIX = ".parquet"

COLUMN = "image"
"""Column of a parquet file, in Hugging Face's layout: a struct with `bytes`, or the bytes themselves."""


@dataclass(frozen=True)
class Part:
    """Images that are processed together.

    Attributes:
        number: from 0 on; names the file that holds the answers.
        files: paths of images, or the one parquet file they are in.
        first, count: rows of the parquet file; `count` is 0 for files of images.
    """

    number: int
    files: tuple[str, ...]
    first: int = 0
    count: int = 0

    def names(self) -> list[str]:
        """The name of each image in the answers; unique within a job."""
        if self.count:
            return [f"{self.files[0]}#{row}" for row in range(self.first, self.first + self.count)]
        return list(self.files)


def filesystem(location: str) -> tuple[pafs.FileSystem, str]:
    """The file system of a local path or a URL (s3://, gs://, hdfs://), and the path on it.

    Raises:
        DataError: pyarrow does not know this kind of URL.
    """
    if "://" not in location:
        return pafs.LocalFileSystem(), str(Path(location).absolute())
    try:
        found, path = pafs.FileSystem.from_uri(location)
    except (pa.ArrowException, ValueError) as error:
        raise DataError(f"{location} cannot be opened: {error}; give a folder, a file, s3://… or gs://…") from error
    return found, path


def find_parts(location: str, *, part_images: int) -> list[Part]:
    """All parts of a folder of images, a folder of parquet files or one parquet file, without hidden files and folders.

    Raises:
        DataError: there are neither images nor parquet files, or both.
    """
    files_of, root = filesystem(location)
    try:
        info = files_of.get_file_info(root)
        if info.type == pafs.FileType.NotFound:
            raise DataError(f"{location} does not exist")
        selector = pafs.FileSelector(root, recursive=True)
        found = [info] if info.is_file else files_of.get_file_info(selector)
    except OSError as error:
        raise DataError(f"{location} cannot be listed: {error}") from error
    paths = sorted(each.path for each in found if each.is_file and not _is_hidden(each.path, root))
    images = [path for path in paths if path.lower().endswith(IMAGE_SUFFIXES)]
    tables = [path for path in paths if path.lower().endswith(PARQUET_SUFFIX)]
    if images and tables:
        raise DataError(f"{location} holds {len(images)} images and {len(tables)} parquet files; give one kind")
    if tables:
        return list(_rows(files_of, tables, part_images))
    if not images:
        raise DataError(f"{location} contains neither an image ({', '.join(IMAGE_SUFFIXES)}) nor a parquet file")
    starts = range(0, len(images), part_images)
    return [Part(number, tuple(images[start : start + part_images])) for number, start in enumerate(starts)]


def _is_hidden(path: str, root: str) -> bool:
    """macOS, for example, writes `._photo.jpg`, which is not an image, next to each photo.jpg on other file systems."""
    return any(name.startswith(".") for name in path.removeprefix(root).split("/"))


def _rows(files_of: pafs.FileSystem, tables: list[str], part_images: int) -> Iterator[Part]:
    number = 0
    for path in tables:
        try:
            with files_of.open_input_file(path) as file:
                parquet = pq.ParquetFile(file)
                if COLUMN not in parquet.schema_arrow.names:
                    raise DataError(f"{path} has no column {COLUMN!r}; it has {', '.join(parquet.schema_arrow.names)}")
                rows = parquet.metadata.num_rows
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{path} is not a parquet file that can be read: {error}") from error
        for first in range(0, rows, part_images):
            yield Part(number, (path,), first, min(part_images, rows - first))
            number += 1


def read_images(location: str, part: Part) -> list[bytes | OSError]:
    """The bytes of each image of a part, in order, or why they cannot be read.

    Raises:
        DataError: the parquet file has changed since the parts were found.
    """
    files_of, _ = filesystem(location)
    contents: list[bytes | OSError] = []
    if not part.count:
        for path in part.files:
            try:
                with files_of.open_input_stream(path) as stream:
                    contents.append(stream.read())
            except OSError as error:
                contents.append(error)
        return contents
    try:
        with files_of.open_input_file(part.files[0]) as file:
            parquet, skipped = pq.ParquetFile(file), 0
            for group in range(parquet.num_row_groups):
                rows = parquet.metadata.row_group(group).num_rows
                start, end = max(part.first - skipped, 0), min(part.first + part.count - skipped, rows)
                if start < end:
                    contents += _read_group(parquet, group, start, end)
                skipped += rows
    except OSError as error:
        return [error] * part.count
    except pa.ArrowException as error:
        raise DataError(f"{part.files[0]} cannot be read as parquet: {error}; write it again, or move it") from error
    if len(contents) != part.count:
        raise DataError(f"{part.files[0]} has changed since the job began: start the job again")
    return contents


def _read_group(parquet: pq.ParquetFile, group: int, start: int, end: int) -> list[bytes | OSError]:
    """Rows of a row group, each with the reason if it is damaged."""
    try:
        column = parquet.read_row_group(group, columns=[COLUMN])[COLUMN].slice(start, end - start)
    except OSError as error:
        return [error] * (end - start)
    rows_read = (each["bytes"] if isinstance(each, dict) else each for each in column.to_pylist())
    return [content or b"" for content in rows_read]  # an image that is not there is undecodable


def digest_of(parts: list[Part]) -> str:
    """Digest of the images' names and their division into parts, not of their bytes."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(repr(part).encode())
    return digest.hexdigest()
