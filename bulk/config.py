"""What `deit classify-dataset` was asked to do. Free of Ray, so that --help is instant."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Option


@dataclass(frozen=True, kw_only=True)
class BulkConfig:
    """One job: every image of a place, classified into parquet files."""

    images: Annotated[
        str,
        Option(
            help="A folder of images, a folder of parquet files with a column `image`, or one such file; also s3://… "
            "and gs://…."
        ),
    ]
    output: Annotated[str, Option(help="Folder for the answers; also s3://… and gs://…. The same one again resumes.")]
    model_repository: Annotated[Path, Option(help="Where `deit export` put the model.")] = Path("model_repository")
    model: Annotated[str | None, Option(help="Name of the model; needed when there are several.")] = None
    version: Annotated[int | None, Option(help="Version of the model; the one that is served unless given.")] = None
    top_k: Annotated[int, Option(min=1, help="How many classes to keep of each image.")] = 5
    ray_address: Annotated[
        str | None,
        Option(
            envvar="RAY_ADDRESS", help="A running Ray cluster, or `auto`; without it one is started on this machine."
        ),
    ] = None
    decoders: Annotated[int, Option(min=1, help="Processes that decode, each a CPU.")] = 1
    models: Annotated[int, Option(min=1, help="Processes that hold the model.")] = 1
    model_threads: Annotated[int, Option(min=1, help="CPUs of each of them.")] = 1
    gpus: Annotated[
        float,
        Option(min=0, help="GPUs of each of them, such as 1 or 0.5; needs onnxruntime-gpu in place of onnxruntime."),
    ] = 0.0
    batch_size: Annotated[int, Option(min=1, help="Images that the model computes at once.")] = 32
    part_images: Annotated[
        int, Option(min=1, help="Images in a file of answers; what is lost and done again when a process dies.")
    ] = 512
    max_image_pixels: Annotated[int, Option(min=1, help="Larger pictures are refused, as the gateway does.")] = (
        25_000_000
    )
