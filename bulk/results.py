"""The output: a parquet file for each part, written atomically, in a folder that belongs to one job."""

import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from bulk.sources import filesystem
from deit.durable import write_file
from deit.errors import DataError

JOB_FILE = "_job.json"  # readers of parquet folders skip names that begin with _

SCHEMA = pa.schema(
    [
        ("image", pa.string()),
        ("index", pa.int32()),
        ("label", pa.string()),
        ("probability", pa.float32()),
        ("indices", pa.list_(pa.int32())),
        ("probabilities", pa.list_(pa.float32())),
        ("problem", pa.string()),
        ("model", pa.string()),
        ("version", pa.string()),
        ("model_sha256", pa.string()),
    ]
)
"""A row for each image: the most probable class, the `top_k` best first, or the problem that prevented an answer."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """The settings that must be the same when a job is resumed."""

    images: str
    images_sha256: str
    parts: int
    model: str
    version: str
    model_sha256: str
    preprocessing: str
    top_k: int


def part_name(number: int) -> str:
    return f"part-{number:06d}.parquet"


def begin(output: str, job: Job) -> set[int]:
    """The numbers of the parts that an earlier run of the same job finished.

    Raises:
        DataError: the folder contains something else.
    """
    files_of, root = filesystem(output)
    found = files_of.get_file_info(pafs.FileSelector(root, allow_not_found=True))
    names = {each.base_name for each in found if each.is_file and not each.base_name.startswith(".")}
    if JOB_FILE not in names:
        if names:
            raise DataError(f"{output} is not empty and not the output of an earlier run; give an empty folder")
        _write(output, JOB_FILE, json.dumps(asdict(job), indent=2).encode())
        return set()
    with files_of.open_input_stream(f"{root}/{JOB_FILE}") as stream:
        earlier = json.loads(stream.read())
    differences = [key for key, value in asdict(job).items() if earlier.get(key) != value]
    if differences:
        # the served version may have changed since
        named = f" with --version {earlier['version']}" if "version" in differences else ""
        raise DataError(
            f"{output} belongs to another job: it differs in {', '.join(differences)}; "
            f"repeat the earlier command{named} to resume it, or give another folder"
        )
    return {number for number in range(job.parts) if part_name(number) in names}


def write_part(output: str, number: int, rows: list[dict[str, object]]) -> None:
    """Replace the file of a part. Writing it twice, for example after a worker died, gives the same file."""
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), buffer)
    _write(output, part_name(number), buffer.getvalue())


def _write(output: str, name: str, content: bytes) -> None:
    files_of, root = filesystem(output)
    if isinstance(files_of, pafs.LocalFileSystem):
        write_file(Path(root) / name, content)
        return
    # an object of S3 or Cloud Storage appears when its upload is complete
    files_of.create_dir(root, recursive=True)
    with files_of.open_output_stream(f"{root}/{name}") as stream:
        stream.write(content)
