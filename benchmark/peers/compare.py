"""Our server and its peers in turns: the same model, images and client, each server alone on the machine."""

import asyncio
import importlib.metadata
import json
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from rich.progress import Progress

from benchmark.config import OURS, PeersConfig
from benchmark.images import read_photographs
from benchmark.load import each_answered, requests_of
from benchmark.outcome import console
from benchmark.peers.entrant import Entrant, Window, measure
from benchmark.peers.side_by_side import side_by_side
from benchmark.peers.tuning import Shape, shapes
from benchmark.repository import only, onnx_file
from benchmark.results import Figure, Kind, Result
from benchmark.server import CLASSIFY, our_server
from deit.errors import BenchmarkError
from deit.repository.models import ModelVersion, find_model, read_version

IMAGES = 256
TUNING_S = 5.0

CHECKED_IMAGES = 16
# The same graph on the same pixels; batches of other sizes and other threads move the last bits of a probability.
LARGEST_DIFFERENCE = 1e-4
# A quantised graph scales a batch by its largest activation, so the other images of a batch change an answer.
LARGEST_QUANTISED_DIFFERENCE = 0.1


def compare_servers(config: PeersConfig) -> list[Result]:
    """A result for each server, model and concurrency, over all rounds. A server that fails says so in its result.

    Raises:
        BenchmarkError, DataError: our own server, the model or the photographs are missing.
    """
    images = read_photographs(config.images, IMAGES).images
    models = [read_version(find_model(config.model_repository, config.model))]
    if config.best_model is not None:
        models.append(read_version(find_model(config.model_repository, config.best_model)))
    cores = len(os.sched_getaffinity(0))
    failures: dict[tuple[str, str], str] = {}
    entrants = []
    for model in models:
        expected = ours_for(model, images)
        entrants.append(Entrant(server=OURS, model=model, shape=None))
        for peer in config.peer if onnx_file(model) is not None else ():
            candidates = [Entrant(server=peer, model=model, shape=shape) for shape in shapes(peer, cores)]
            try:
                entrants.append(best_of(candidates, config, images, expected))
            except BenchmarkError as error:
                failures[peer, model.name] = str(error)

    windows: defaultdict[tuple[Entrant, int], list[Window]] = defaultdict(list)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("measuring", total=config.rounds * len(entrants))
        for round_ in range(config.rounds):
            # every other round in reverse, so that none always follows the same one
            for entrant in entrants if round_ % 2 == 0 else reversed(entrants):
                progress.update(task, description=f"{entrant.server} {entrant.model.name}")
                with entrant.running(config, images[0]) as (url, pid):
                    for concurrency in config.concurrency:
                        window = measure(url, images, pid=pid, concurrency=concurrency, seconds=config.seconds)
                        windows[entrant, concurrency].append(window)
                progress.advance(task)

    pairs = {
        entrant: side_by_side(Entrant(server=OURS, model=entrant.model, shape=None), entrant, config, images)
        for entrant in entrants
        if config.pairs and entrant.shape is not None
    }

    def result(
        kind: Kind, server: str, model: ModelVersion, shape: Shape | None, concurrency: int, /, **found: object
    ) -> Result:
        return Result(
            kind=kind,
            model=model.name,
            precision=model.precision,
            conditions={
                "server": server,
                "settings": "defaults" if shape is None else str(shape),
                "version": version_of(server, config.environments),
                "concurrency": concurrency,
                "images": config.images.name,
                "seconds": config.seconds,
            },
            **found,  # type: ignore[arg-type]
        )

    return [
        *(
            result("peer", entrant.server, entrant.model, entrant.shape, concurrency, **figures_of(found))
            for (entrant, concurrency), found in windows.items()
        ),
        *(
            result("pair", entrant.server, entrant.model, entrant.shape, max(config.concurrency), figures=found)
            for entrant, found in pairs.items()
        ),
        *(
            result("peer", peer, model, None, concurrency, failure=failures[peer, model.name])
            for model in models
            for peer in config.peer
            for concurrency in config.concurrency
            if (peer, model.name) in failures
        ),
    ]


def best_of(
    candidates: Sequence[Entrant], config: PeersConfig, images: Sequence[bytes], expected: Sequence[dict[int, float]]
) -> Entrant:
    """The fastest at the highest concurrency, after checking the answers of each against ours."""
    rates: dict[Entrant, float] = {}
    for candidate in candidates if config.tune else candidates[:1]:
        with candidate.running(config, images[0]) as (url, pid):
            largest = LARGEST_DIFFERENCE if candidate.model.precision == "fp32" else LARGEST_QUANTISED_DIFFERENCE
            found = answers_of(url, images[:CHECKED_IMAGES])
            refuse_other_answers(candidate.server, found, expected, largest=largest)
            if config.tune:
                window = measure(url, images, pid=pid, concurrency=max(config.concurrency), seconds=TUNING_S)
                rates[candidate] = window.load.rate_per_s
                console.print(f"{candidate.server}: {candidate.shape}: {rates[candidate]:.1f} images/s")
    return max(rates, key=lambda candidate: rates[candidate]) if rates else candidates[0]


def ours_for(model: ModelVersion, images: Sequence[bytes]) -> list[dict[int, float]]:
    """Our server's answers for the first images, from the pixels that the peers read: Pillow's."""
    with only(model.model) as repository, our_server(repository, exact=True) as server:
        return answers_of(f"{server.url}{CLASSIFY}?model={model.name}", images[:CHECKED_IMAGES])


def answers_of(url: str, images: Sequence[bytes]) -> list[dict[int, float]]:
    """Probability by class of each image's five best.

    Raises:
        BenchmarkError: an image was not classified.
    """
    answers = asyncio.run(each_answered(url, requests_of(url, images, as_form=False), concurrency=2))
    found = []
    for answer in answers:
        if not answer.is_ok:
            raise BenchmarkError(f"{url} answered {answer.status or answer.error}: {answer.body[:200]!r}")
        found.append({each["index"]: each["probability"] for each in json.loads(answer.body)["predictions"]})
    return found


def refuse_other_answers(
    server: str,
    found: Sequence[dict[int, float]],
    expected: Sequence[dict[int, float]],
    *,
    largest: float = LARGEST_DIFFERENCE,
) -> None:
    """Raises BenchmarkError if a server's answers differ from ours."""
    for place, (theirs, ours) in enumerate(zip(found, expected, strict=True)):
        for index, probability in ours.items():
            # the fifth class may be replaced by one of equal probability
            if abs(theirs.get(index, min(theirs.values())) - probability) > largest:
                raise BenchmarkError(f"{server} answers image {place} with {theirs}, ours is {ours}")


def figures_of(windows: Sequence[Window]) -> dict[str, object]:
    """`figures` of a result over the rounds, or its `failure`."""
    try:
        figures = {
            "images_per_s": Figure.of([each.load.rate_per_s for each in windows], "images/s"),
            **{
                f"p{percentile}_ms": Figure.of([each.load.latency_ms(percentile) for each in windows], "ms")
                for percentile in (50, 95, 99)
            },
            "failed_share": Figure.of(
                [sum(not answer.is_ok for answer in each.load.answers) / len(each.load.answers) for each in windows],
                "share",
            ),
            "server_cores": Figure.of([each.server_cpu_s / each.load.duration_s for each in windows], "cores"),
            "client_cores": Figure.of([each.load.client_cpu_s / each.load.duration_s for each in windows], "cores"),
            "memory_mib": Figure.of([each.memory_mib for each in windows], "MiB"),
        }
    except BenchmarkError as error:
        return {"failure": str(error)}
    return {"figures": figures}


def version_of(server: str, environments: Path) -> str:
    """Version of the server's package in its environment."""
    if server == OURS:
        return importlib.metadata.version("deit-server")
    for folder in environments.glob(f"{server}/lib/python*/site-packages/{server}-*.dist-info"):
        if match := re.fullmatch(rf"{server}-(.+)\.dist-info", folder.name):
            return match[1]
    return "unknown"
