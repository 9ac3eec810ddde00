"""`deit models`: what a model repository holds and which versions are served. One function per subcommand."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from deit.candidate import Mode
from deit.errors import RepositoryError

app = typer.Typer(no_args_is_help=True, add_completion=False)

Repository = Annotated[
    Path, typer.Option(help="The model repository.", envvar="DEIT_MODEL_REPOSITORY", show_envvar=True)
]
REPOSITORY = Path("model_repository")


@app.callback()
def models() -> None:
    """List, publish, roll back, try, remove and check the models of a repository; reload a running server."""


@app.command("list")
def list_models(repository: Repository = REPOSITORY) -> None:
    """List models with their versions, which one is served, precision and backend."""
    from rich.console import Console
    from rich.table import Table

    from deit.repository.models import (
        candidate_of,
        listed,
        model_folders,
        read_served,
        read_version,
        version_numbers,
    )

    table = Table("model", "versions", "served", "precision", "backend", "candidate", box=None)
    for name in model_folders(repository):
        model = repository / name
        config, served = read_served(model)
        runs = (version.precision, version.engine) if served and (version := read_version(model)) else ("", "")
        tried = str(candidate_of(model, config) or "")
        table.add_row(name, listed(version_numbers(model)), listed(served), *runs, tried)
    Console().print(table)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="Name of the model.")],
    version: Annotated[int | None, typer.Option(help="Version to show. Default: the served one.")] = None,
    repository: Repository = REPOSITORY,
) -> None:
    """Show where a version came from, how it runs, and the gate's report."""
    from rich.console import Console

    from deit.repository.layout import REPORT_TABLE
    from deit.repository.models import candidate_of, find_model, listed, read_served, read_version

    model = find_model(repository, name)
    shown = read_version(model, version)
    config, served = read_served(model)
    lines = {
        "version": f"{shown.number} ({'served' if shown.number in served else f'served: {listed(served)}'})",
        "file": f"{shown.file}, sha256 {shown.digest}" if shown.file.is_file() else f"{shown.file}, missing",
        "candidate": str(candidate_of(model, config) or ""),
        "engine": shown.engine,
        "instances": ", ".join(f"{group.count} {group.Kind.Name(group.kind)}" for group in shown.config.instance_group),
        "batch": f"at most {shown.config.max_batch_size}",
        "parameters": ", ".join(
            f"{key}={value.string_value}" for key, value in sorted(shown.config.parameters.items()) if key.isupper()
        ),
    }
    if shown.provenance:
        lines |= {key: str(value) for key, value in asdict(shown.provenance).items()}
    lines |= {f"gate: {key}": str(value) for key, value in shown.verification.items()}
    console = Console(soft_wrap=True, highlight=False)
    for key, value in lines.items():
        if value:
            console.print(f"{key:<28}{value}", markup=False)
    report = shown.folder / REPORT_TABLE
    if report.is_file():
        console.print("\n" + report.read_text(), markup=False)


@app.command()
def publish(
    model: Annotated[Path, typer.Argument(help="Folder of a model in another repository, such as staging/deit_tiny.")],
    repository: Repository = REPOSITORY,
    name: Annotated[str | None, typer.Option(help="Name in this repository. Default: the folder's.")] = None,
    version: Annotated[int | None, typer.Option(help="Version to copy. Default: the served one.")] = None,
) -> None:
    """Copy a version of a model from another repository as the next version here, if `doctor` finds it sound."""
    from deit.repository.publishing import promote

    model = model.resolve()
    name = name or model.name
    print(repository / name / str(promote(model, repository, name, version)))


@app.command()
def rollback(
    name: Annotated[str, typer.Argument(help="Name of the model.")],
    version: Annotated[int | None, typer.Option(help="Version to serve. Default: the previous one.")] = None,
    repository: Repository = REPOSITORY,
) -> None:
    """Serve another version of a model, if `doctor` finds it sound.

    Triton serves it from its next start on; a server with --allow-reload, from
    `deit models reload` on.
    """
    from deit.repository.doctor import newest_sound, rollback_command
    from deit.repository.models import find_model, listed, read_served, version_numbers
    from deit.repository.publishing import serve_version

    model = find_model(repository, name)
    if version is None:
        _, served = read_served(model)
        older = [each for each in version_numbers(model) if served and each < served[-1]]
        if not older:
            other = newest_sound(model, but=served[-1] if served else None)
            way = f"{rollback_command(other)} serves version {other.number}" if other else "publish another version"
            raise RepositoryError(f"{name} has no version before the served one ({listed(served)}): {way}")
        version = older[-1]
    serve_version(repository, name, version)
    print(
        f"{name}: version {version} will be served from Triton's next start. A running `deit serve --allow-reload` "
        "takes it now with `deit models reload`, which needs --port if the server's is not 8080."
    )


TriedOn = Annotated[str, typer.Argument(help="Name of the model whose requests are shared.")]
TriedShare = Annotated[
    float, typer.Option("--percent", min=0, max=100, help="Share of its requests; 0 ends the trial.")
]
TriedModel = Annotated[str | None, typer.Option("--model", help="Another model to try. Default: NAME itself.")]
TriedVersion = Annotated[
    int | None, typer.Option("--version", help="Version to try. Default, for another model: the served one.")
]


@app.command()
def shadow(
    name: TriedOn,
    percent: TriedShare,
    model: TriedModel = None,
    version: TriedVersion = None,
    repository: Repository = REPOSITORY,
) -> None:
    """Run another model or version on a share of a model's requests, to compare them.

    Callers never get its predictions; /metrics shows how often they differ.
    Triton loads it at its next start; a server with --allow-reload, with
    `deit models reload`.
    """
    _try("shadow", repository, name, percent, model, version)


@app.command()
def canary(
    name: TriedOn,
    percent: TriedShare,
    model: TriedModel = None,
    version: TriedVersion = None,
    repository: Repository = REPOSITORY,
) -> None:
    """Let another model or version answer a share of a model's requests.

    Responses name the model and version used. Triton loads the candidate at its
    next start; a server with --allow-reload, with `deit models reload`.
    """
    _try("canary", repository, name, percent, model, version)


def _try(mode: Mode, repository: Path, name: str, percent: float, model: str | None, version: int | None) -> None:
    from deit.repository.candidates import end_candidate, try_candidate

    if percent:
        done = str(try_candidate(repository, name, mode, percent, other=model, number=version))
    else:
        end_candidate(repository, name)
        done = "no candidate"
    print(
        f"{name}: {done} from Triton's next start. A running `deit serve --allow-reload` takes it now with "
        "`deit models reload`, which needs --port if the server's is not 8080."
    )


@app.command()
def reload(
    port: Annotated[int, typer.Option(envvar="DEIT_PORT", help="Port on which `deit serve` listens.")] = 8080,
) -> None:
    """Load new versions and models into a running server, and drop removed ones.

    No request fails: old versions answer until the new ones have returned
    probabilities. A version that does not is refused, and the old one keeps
    serving.
    Exit status: 0 done, 1 a model was refused.
    """
    from deit.control import command_server

    changes = command_server(port, "reload")["changes"]
    for change in changes:
        served = f", serving version {', '.join(change['versions'])}" if change["versions"] else ""
        reason = f": {change['reason']}" if change["reason"] else ""
        typer.echo(f"{change['model']}: {change['outcome']}{served}{reason}")
    refused = [change["model"] for change in changes if change["outcome"] == "refused"]
    if refused:
        raise RepositoryError(f"refused: {', '.join(refused)}; the old versions keep serving")


@app.command()
def remove(
    name: Annotated[str, typer.Argument(help="Name of the model.")],
    version: Annotated[int | None, typer.Option(help="Version to remove. Default: the whole model.")] = None,
    repository: Repository = REPOSITORY,
) -> None:
    """Remove a version that is not served, or a whole model."""
    from deit.repository import publishing

    publishing.remove(repository, name, version)


@app.command()
def doctor(
    repository: Repository = REPOSITORY,
    tensorrt: Annotated[
        str | None, typer.Option(help="Version of the TensorRT that will load plans, such as 11.1.0.")
    ] = None,
) -> None:
    """Check a repository for faults and say how to fix them. Exit status 1 if there are any."""
    from deit.repository.doctor import examine

    findings = examine(repository, tensorrt=tensorrt)
    for finding in findings:
        print(finding)
    if findings:
        raise typer.Exit(1)
    print(f"{repository} is sound")
