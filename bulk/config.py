"""The options of `deit classify-dataset`. Free of Ray and ONNX Runtime, so that --help is instant."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Option

BATCH_ON_CPU, BATCH_ON_GPU = 4, 32


@dataclass(frozen=True, kw_only=True)
class BulkConfig:
    """One job: classify every image of a folder or data set into parquet files."""

    images: Annotated[
        str,
        Option(
            help="A folder of images, a folder of parquet files with a column `image`, or one such file; also s3://… "
            "and gs://…."
        ),
    ]
    output: Annotated[
        str, Option(help="Folder for the results; also s3://… and gs://…. Give the same one again to resume.")
    ]
    model_repository: Annotated[Path, Option(help="Model repository.")] = Path("model_repository")
    model: Annotated[str | None, Option(help="Name of the model; needed if there are several.")] = None
    version: Annotated[int | None, Option(help="Version of the model. Default: the served one.")] = None
    top_k: Annotated[int, Option(min=1, help="Classes to keep per image, best first.")] = 5
    ray_address: Annotated[
        str | None,
        Option(
            envvar="RAY_ADDRESS",
            help="Address of a running Ray cluster, or `auto`. Without it the job runs on the cores of this machine.",
        ),
    ] = None
    processes: Annotated[
        int | None,
        Option(
            min=1,
            help="Processes that decode and, without GPUs, run the model, one CPU each. Default: one for each CPU. "
            "Lower it where memory is short.",
        ),
    ] = None
    gpus: Annotated[
        float,
        Option(
            min=0,
            help="GPUs per process that runs the model, such as 1 or 0.5; all GPUs are used. Needs "
            "onnxruntime-gpu instead of onnxruntime, and starts Ray.",
        ),
    ] = 0.0
    batch_size: Annotated[
        int | None,
        Option(
            min=1,
            help=f"Images per batch. Default: {BATCH_ON_CPU} on CPUs, whose caches cannot hold more, and "
            f"{BATCH_ON_GPU} with --gpus. Raise it on a large GPU.",
        ),
    ] = None
    part_images: Annotated[
        int, Option(min=1, help="Images per output file; also the work that is repeated when a process dies.")
    ] = 128
    max_image_pixels: Annotated[
        int, Option(min=1, help="Largest width x height of an image; larger ones are refused, as by the gateway.")
    ] = 25_000_000
