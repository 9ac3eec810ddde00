"""`deit benchmark decoding`."""

from dataclasses import dataclass, field
from typing import Annotated

from typer import Option

from benchmark.options import Images, console
from deit.options import command_of


@dataclass(frozen=True, kw_only=True)
class DecodingConfig:
    """Numbers of decoders to compare, exact and fast, and threads beside them."""

    images: Images
    decoders: Annotated[list[int], Option(help="How many processes. Repeatable.")] = field(
        default_factory=lambda: [1, 2, 3, 4]
    )
    concurrency: Annotated[list[int], Option(help="Images in flight. Repeatable.")] = field(
        default_factory=lambda: [1, 8]
    )
    duration_s: Annotated[float, Option(min=0.1, help="Seconds for each row.")] = 10.0
    count: Annotated[int, Option(min=1, help="How many photographs to take.")] = 200


@command_of(DecodingConfig)
def decoding(config: DecodingConfig) -> None:
    """Images per second that the gateway's decoders prepare, and how late that makes its event loop."""
    import asyncio

    from rich.table import Table

    from benchmark.decoding import in_processes, in_threads
    from benchmark.images import read_photographs

    images = read_photographs(config.images, config.count).images
    table = Table(title=f"{len(images)} photographs to 224 pixels, without server and model")
    for heading in ("decoders", "in flight", "images/s", "p50 ms", "p99 ms", "event loop p99 ms"):
        table.add_column(heading, justify="right")
    for concurrency in config.concurrency:
        load = {"concurrency": concurrency, "duration_s": config.duration_s}
        runs = {f"{each} threads": in_threads(images, threads=each, **load) for each in config.decoders}
        for mode in ("exact", "fast"):
            for each in config.decoders:
                runs[f"{each} {mode}"] = in_processes(images, processes=each, mode=mode, **load)
        for name, run in runs.items():
            result = asyncio.run(run)
            figures = (result.images_per_s, result.p50_ms, result.p99_ms, result.lag_p99_ms)
            table.add_row(name, str(concurrency), *(f"{figure:.1f}" for figure in figures))
    console.print(table)
