"""Models of a repository in Triton, next to their engines alone.

Everything is measured in turns in one run, because on a shared machine two runs cannot be compared.
"""

from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.progress import track
from typer import Option

from benchmark.config import RESULTS, PerfAnalyzerOption, ResultsOption, RoundsOption
from benchmark.environment import this_environment
from benchmark.outcome import console, keep, this_command
from benchmark.perf_analyzer import NEVER_STABLE, measure
from benchmark.results import Environment, Figure, Record
from benchmark.server import our_server
from deit.errors import BenchmarkError
from deit.model import PROBABILITIES
from deit.options import command_of
from deit.repository.models import find_model, read_version
from export.engines import Engine, Infer
from export.speed import images_per_s
from studies import run_study


@dataclass(frozen=True, kw_only=True)
class EnginesConfig:
    model: Annotated[list[str], Option(help="Name of a model. Repeatable.")]
    model_repository: Annotated[Path, Option(help="Folder of the models, for which `deit serve` is started.")] = Path(
        "model_repository"
    )
    batch_size: Annotated[list[int], Option(help="Images a request. Repeatable.")] = field(
        default_factory=lambda: [8, 32]
    )
    concurrency: Annotated[int, Option(min=1, help="Requests in flight.")] = 4
    requests: Annotated[int, Option(min=50, help="Requests in each measured window.")] = 50
    rounds: RoundsOption = 3
    perf_analyzer: PerfAnalyzerOption = Path(".perf-analyzer")
    csv: Annotated[Path, Option(help="Folder for perf_analyzer's CSV files.")] = Path("runs/engines")
    results: ResultsOption = RESULTS


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model in the repository, ready to be run here."""

    name: str
    precision: str
    engine: Engine
    size: int
    instances: list[Infer]


def measure_engines(config: EnginesConfig, environment: Environment, *, command: str) -> list[Record]:
    """A record for each model and batch size.

    Raises:
        BenchmarkError: a model is not one that an engine on processors runs, or perf_analyzer fails.
    """
    models = [open_model(config.model_repository, name) for name in config.model]
    served: dict[tuple[str, int], list[float]] = {}
    alone: dict[tuple[str, int], list[float]] = {}
    with our_server(config.model_repository, default_model=models[0].name) as server:
        for turn, batch_size, model in track(
            list(product(range(config.rounds), config.batch_size, models)),
            description="measuring",
            console=console,
            transient=True,
        ):
            cell = measure(
                config.perf_analyzer,
                url=server.triton_url,
                model=model.name,
                batch_size=batch_size,
                concurrency=config.concurrency,
                requests=config.requests,
                csv_file=config.csv / f"{model.name}_b{batch_size}_r{turn}.csv",
            )
            if cell is not None:
                served.setdefault((model.name, batch_size), []).append(cell.images_per_s)
            pixels = np.random.default_rng(0).integers(0, 256, (batch_size, model.size, model.size, 3), dtype=np.uint8)
            alone.setdefault((model.name, batch_size), []).extend(images_per_s([model.instances], pixels))

    def figures(model: Loaded, batch_size: int) -> dict[str, Figure]:
        if (model.name, batch_size) not in served:
            return {}
        rate = Figure.of(served[model.name, batch_size], "images/s")
        engine = Figure.of(alone[model.name, batch_size], "images/s")
        return {
            "images_per_s": rate,
            "alone_images_per_s": engine,
            "alone_share": Figure(value=rate.value / engine.value, unit="share"),
        }

    return [
        Record(
            kind="engine",
            model=model.name,
            precision=model.precision,
            command=command,
            environment=environment,
            conditions={
                "engine": model.engine.title,
                "batch_size": batch_size,
                "concurrency": config.concurrency,
            },
            figures=(found := figures(model, batch_size)),
            failure=None if found else NEVER_STABLE,
        )
        for batch_size in config.batch_size
        for model in models
    ]


def open_model(repository: Path, name: str) -> Loaded:
    """The served version of a model, loaded once for each of its instances."""
    version = read_version(find_model(repository, name))
    config = version.config
    if version.engine not in ("onnxruntime", "openvino"):
        raise BenchmarkError(f"{version.model} runs on {version.engine}, which does not run on processors")
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    instances = sum(group.count for group in config.instance_group)
    on_gpu = any(group.kind == group.KIND_GPU for group in config.instance_group)
    engine = Engine(
        backend=config.backend,
        on_gpu=on_gpu,
        bf16=parameters.get("HINT_BF16") == "YES",
        threads=int(parameters.get("INFERENCE_NUM_THREADS") or parameters.get("intra_op_thread_count") or 0),
        instances=instances,
    )
    return Loaded(
        name=name,
        precision=version.precision if version.provenance else "fp32",
        engine=engine,
        size=config.input[0].dims[0],
        instances=[engine.load(version.file, (PROBABILITIES,)) for _ in range(instances)],
    )


app = typer.Typer()


@app.command()
@command_of(EnginesConfig)
def engines(config: EnginesConfig) -> None:
    """Images per second of models in Triton and of their engines alone, in one run."""
    environment = this_environment()
    command = this_command("python", "-m", "studies.engines")
    keep(measure_engines(config, environment, command=command), environment, config.results)


if __name__ == "__main__":
    run_study(app)
