"""Forms of one graph on one engine: the processor time of a call of each, in turns in one process.

Processor time, because rates on a busy machine say more about what else runs there than about a graph.
"""

import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import onnxruntime
import typer
from typer import Option

from benchmark.outcome import console
from deit.model import IMAGES, PROBABILITIES
from deit.options import command_of
from export.engines import Engine
from studies import run_study


@dataclass(frozen=True, kw_only=True)
class FormsConfig:
    """Which graphs to compare, and how."""

    graph: Annotated[list[Path], Option(help="ONNX file. Repeatable; the first is what the others are compared with.")]
    engine: Annotated[str, Option(help="onnxruntime or openvino.")] = "openvino"
    bf16: Annotated[bool, Option(help="Let OpenVINO compute in bfloat16 what a graph leaves in float32.")] = False
    batch_size: Annotated[list[int], Option(help="Images a call. Repeatable.")] = field(default_factory=lambda: [1, 8])
    calls: Annotated[int, Option(min=4, help="Calls of each graph.")] = 60


app = typer.Typer(add_completion=False)


@app.command()
@command_of(FormsConfig)
def forms(config: FormsConfig) -> None:
    """The quartiles of each graph's processor time an image, on one thread."""
    engine = Engine(backend=config.engine, bf16=config.bf16, threads=1)
    runs = {graph: engine.load(graph, (PROBABILITIES,)) for graph in config.graph}
    (images,) = onnxruntime.InferenceSession(config.graph[0], providers=["CPUExecutionProvider"]).get_inputs()
    assert images.name == IMAGES
    for batch_size in config.batch_size:
        batch = np.random.default_rng(0).integers(0, 256, (batch_size, *images.shape[1:]), np.uint8)
        answers = {graph: run(batch)[0] for graph, run in runs.items()}
        taken_ms: dict[Path, list[float]] = {graph: [] for graph in runs}
        for _ in range(config.calls):
            for graph in random.sample(config.graph, len(runs)):
                before_s = time.process_time()
                runs[graph](batch)
                taken_ms[graph].append(1000 * (time.process_time() - before_s) / batch_size)
        first = np.quantile(taken_ms[config.graph[0]], 0.25)
        for graph, taken in taken_ms.items():
            low, middle, high = np.quantile(taken, [0.25, 0.5, 0.75])
            difference = np.abs(answers[graph] - answers[config.graph[0]]).max()
            console.print(
                f"batch {batch_size} {graph.stem}: {middle:.2f} ms an image ({low:.2f} to {high:.2f}), first quartile "
                f"{low / first:.3f} of the first graph's, answers within {difference:.1e}"
            )


if __name__ == "__main__":
    run_study(app)
