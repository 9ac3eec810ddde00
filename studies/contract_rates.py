"""What the APIs of other servers cost compared with `POST /classify`.

All use one `deit serve`, in turns. A rate is compared with that of /classify in the same round, because other work on
the machine comes and goes; the processor time of the gateway's process hardly depends on it.
"""

import base64
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated

import typer
from typer import Option

from benchmark.environment import this_environment
from benchmark.load import closed_loop, media_type_of
from benchmark.processes import GATEWAY, ServerProcesses, watched
from benchmark.server import our_server
from deit.errors import BenchmarkError
from deit.log import configure_logging
from deit.model import IMAGES, PROBABILITIES
from deit.options import command_of
from studies import run_study

WARM_UP_S = 1.0


@dataclass(frozen=True, kw_only=True)
class ContractConfig:
    """The load."""

    image: Annotated[Path, Option(help="A picture in JPEG, PNG or WebP.")]
    model_repository: Annotated[Path, Option(help="Model repository.")] = Path("model_repository")
    model: Annotated[str, Option(help="Model that answers.")] = "deit_cifar10"
    concurrency: Annotated[int, Option(min=1, help="Requests in flight.")] = 32
    seconds: Annotated[float, Option(min=0.1, help="Measured time of each contract in a round.")] = 4.0
    rounds: Annotated[int, Option(min=1, help="How often each contract takes its turn.")] = 5


@dataclass(frozen=True, kw_only=True)
class ContractRate:
    """One window: answers a second, and milliseconds of the gateway's and of all processes for an answer."""

    rate: float
    gateway_ms: float
    all_ms: float


def requests_by_contract(picture: bytes, model: str) -> dict[str, bytes]:
    """One request for each contract and body, as its clients send it."""
    text = base64.b64encode(picture).decode()
    raw = media_type_of(picture)
    infer = f"/v2/models/{model}/infer"
    element = len(picture).to_bytes(4, "little") + picture
    tensor = {"name": IMAGES, "datatype": "BYTES", "shape": [1]}
    output = {"name": PROBABILITIES}
    binary = json.dumps(
        {
            "inputs": [tensor | {"parameters": {"binary_data_size": len(element)}}],
            "outputs": [output | {"parameters": {"binary_data": True}}],
        }
    ).encode()
    length = f"Inference-Header-Content-Length: {len(binary)}\r\n"
    classes = {"outputs": [output | {"parameters": {"classification": 5}}]}
    return {
        "/classify": http(f"/classify?model={model}", picture, raw),
        "Hugging Face, bytes": http(f"/hf/{model}", picture, raw),
        "Hugging Face, JSON": http(f"/hf/{model}", {"inputs": text, "parameters": {"top_k": 5}}),
        "Open Inference Protocol, bytes": http(infer, binary + element, "application/octet-stream", length),
        "Open Inference Protocol, JSON": http(infer, {"inputs": [tensor | {"data": [text]}], **classes}),
        "Vertex AI": http(f"/v1/models/{model}:predict", {"instances": [{"content": text}]}),
        "TensorFlow Serving": http(f"/v1/models/{model}:predict", {"instances": [{"b64": text}]}),
        "SageMaker": http("/invocations", picture, raw),
    }


def http(path: str, body: bytes | dict[str, object], media_type: str = "application/json", extra: str = "") -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {media_type}\r\nContent-Length: {len(content)}\r\n"
    )
    return f"{head}{extra}\r\n".encode() + content


def window(url: str, processes: ServerProcesses, request: bytes, config: ContractConfig) -> ContractRate:
    """Raises BenchmarkError: some requests got no answer."""
    loop = closed_loop(url, [request], concurrency=config.concurrency, duration_s=config.seconds, warm_up_s=WARM_UP_S)
    load, before, after = watched(loop, processes.use, warm_up_s=WARM_UP_S, seconds=config.seconds)
    if set(load.statuses) != {200}:
        raise BenchmarkError(f"not every request got an answer: {dict(load.statuses)}")
    answers = len(load.answers)
    return ContractRate(
        rate=load.rate_per_s,
        gateway_ms=1000 * (after.cpu_s[GATEWAY] - before.cpu_s[GATEWAY]) / answers,
        all_ms=1000 * (after.total_cpu_s - before.total_cpu_s) / answers,
    )


def as_table(config: ContractConfig, size: int, measured: dict[str, list[ContractRate]]) -> str:
    """Markdown: medians of the rounds, and the spread of what is compared."""
    lines = [
        f"{this_environment().machine}; {config.concurrency} requests in flight, a picture of {size:,} bytes; "
        f"{config.rounds} rounds of {config.seconds:g} s",
        "",
        "| contract | rate, of /classify | gateway, ms | all processes, ms |",
        "|---|--:|--:|--:|",
    ]
    order = ["/classify", *sorted(measured.keys() - {"/classify"})]
    base = measured["/classify"]
    for name in order:
        rounds = measured[name]
        ratios = [one.rate / other.rate for one, other in zip(rounds, base, strict=True)]
        costs = [each.gateway_ms for each in rounds]
        lines.append(
            f"| {name} | {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) "
            f"| {median(costs):.2f} ({min(costs):.2f} to {max(costs):.2f}) "
            f"| {median(each.all_ms for each in rounds):.2f} |"
        )
    return "\n".join(lines)


app = typer.Typer()


@app.command()
@command_of(ContractConfig)
def contract_rates(config: ContractConfig) -> None:
    """Measure rate and processor time of each contract next to /classify."""
    configure_logging("text")
    picture = config.image.read_bytes()
    measured: defaultdict[str, list[ContractRate]] = defaultdict(list)
    with our_server(config.model_repository, default_model=config.model) as server:
        processes = ServerProcesses.of(server.pid)
        for turn in range(config.rounds):
            requests = list(requests_by_contract(picture, config.model).items())
            for name, request in requests[turn % len(requests) :] + requests[: turn % len(requests)]:
                measured[name].append(window(server.url, processes, request, config))
    typer.echo(as_table(config, len(picture), measured))


if __name__ == "__main__":
    run_study(app)
