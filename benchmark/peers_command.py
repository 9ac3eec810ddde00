"""`deit benchmark peers`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from benchmark.options import RESULTS, Images, Results, Rounds, console, this_command
from deit.options import command_of

OURS = "deit serve"
PEERS = ("fastapi", "litserve", "bentoml", "ray", "mosec")


@dataclass(frozen=True, kw_only=True)
class PeersConfig:
    """Which servers to compare, and how."""

    images: Images
    model: Annotated[str, Option(help="Name of the fp32 model, which every server serves.")]
    best_model: Annotated[
        str | None,
        Option(
            help="Also compare the best that an accuracy gate admits: this variant of the model in ours, and in the "
            "peers too where ONNX Runtime can run it."
        ),
    ] = None
    model_repository: Annotated[Path, Option(help="Folder of the models.")] = Path("model_repository")
    peer: Annotated[list[str], Option(help="Which peers. Repeatable.")] = field(default_factory=lambda: list(PEERS))
    concurrency: Annotated[list[int], Option(help="Requests in flight. Repeatable.")] = field(
        default_factory=lambda: [1, 8, 32]
    )
    seconds: Annotated[float, Option(min=1, help="Of each measured window, after a warm-up of two.")] = 10
    rounds: Rounds = 3
    pairs: Annotated[
        int,
        Option(
            min=0,
            help="Also run ours and each peer side by side, so many windows of each in turns, and tell the ratio: it "
            "shows smaller differences on a machine whose speed changes.",
        ),
    ] = 0
    tune: Annotated[
        bool,
        Option(
            "--tune/--no-tune",
            help="First try each peer's stated settings at the highest concurrency and go on with its best.",
        ),
    ] = True
    environments: Annotated[Path, Option(help="Folder of the peers' own environments, made when they are missing.")] = (
        Path(".peers")
    )
    results: Results = RESULTS

    def __post_init__(self) -> None:
        if unknown := set(self.peer) - set(PEERS):
            raise ValueError(f"--peer {', '.join(sorted(unknown))}: known are {', '.join(PEERS)}")


@command_of(PeersConfig)
def peers(config: PeersConfig) -> None:
    """The same model, images and client against other servers, in turns with ours."""
    from rich.table import Table

    from benchmark.environment import this_environment
    from benchmark.peers.compare import compare_servers
    from benchmark.results import append, results_file

    environment = this_environment()
    records = compare_servers(config, environment, command=this_command())
    file = results_file(config.results, environment)
    append(file, records)
    table = Table(title=f"{config.model} on {environment.machine}")
    for heading in ("server", "model", "in flight", "images/s", "lowest", "highest", "p50 ms", "p99 ms", "MiB"):
        table.add_column(heading, justify="right")
    for record in (each for each in records if each.kind == "peer"):
        rate = record.figures.get("images_per_s")
        shown = () if rate is None else (rate.value, rate.lowest, rate.highest)
        rest = [record.value(name) for name in ("p50_ms", "p99_ms", "memory_mib")]
        table.add_row(
            *(str(record.conditions["server"]), record.model, str(record.conditions["concurrency"])),
            *(f"{each:.1f}" for each in (*shown, *rest) if each is not None),
            record.failure,
        )
    console.print(table)
    for record in (each for each in records if each.kind == "pair"):
        ratio = record.figures["ratio"]
        spread = f"{ratio.value:.2f} ({ratio.lowest:.2f} to {ratio.highest:.2f})"
        console.print(f"ours, of what {record.conditions['server']} does with {record.model}: {spread}")
    typer.echo(f"written to {file}")
