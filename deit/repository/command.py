"""`deit models`: what is in a model repository, and which version of it is served. One function a subcommand."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from deit.errors import RepositoryError
from deit.model import CONFIG_FILE

app = typer.Typer(no_args_is_help=True)

Repository = Annotated[
    Path, typer.Option(help="The model repository.", envvar="DEIT_MODEL_REPOSITORY", show_envvar=True)
]
REPOSITORY = Path("model_repository")


@app.callback()
def models() -> None:
    """List, publish, roll back, remove and check the models of a repository, and let a running server follow it."""


@app.command("list")
def list_models(repository: Repository = REPOSITORY) -> None:
    """Every model with its versions, the served one, its precision and its engine."""
    from rich.console import Console
    from rich.table import Table

    from deit.repository.config import engine_of, provenance_of
    from deit.repository.publishing import model_folders, read_config, served_version, versions

    table = Table("model", "versions", "served", "precision", "backend", box=None)
    for name in model_folders(repository):
        model = repository / name
        config = read_config(model / CONFIG_FILE)
        provenance = provenance_of(config)
        table.add_row(
            name,
            ", ".join(map(str, versions(model))),
            str(served_version(model) or "none"),
            provenance.precision if provenance else "unknown",
            engine_of(config),
        )
    Console().print(table)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="Name of the model.")],
    version: Annotated[int | None, typer.Option(help="A version; the served one unless given.")] = None,
    repository: Repository = REPOSITORY,
) -> None:
    """Where a version came from, how it runs, and what the gate found when it was published."""
    from rich.console import Console

    from deit.model import REPORT_TABLE
    from deit.repository.config import engine_of, provenance_of, verification_of
    from deit.repository.publishing import model_folder, read_config, served_version, versions

    folder = model_folder(repository, name)
    served = served_version(folder)
    shown = version or served
    if shown not in versions(folder):
        raise RepositoryError(f"{folder} has no version {shown or 'that is served'}; see `deit models list`")
    own = folder / str(shown) / CONFIG_FILE
    config = read_config(own if own.is_file() else folder / CONFIG_FILE)
    lines = {
        "version": f"{shown}{' (served)' if shown == served else f' (served: {served})'}",
        "engine": engine_of(config),
        "instances": ", ".join(f"{group.count} {group.Kind.Name(group.kind)}" for group in config.instance_group),
        "batch": f"at most {config.max_batch_size}",
        "parameters": ", ".join(
            f"{key}={config.parameters[key].string_value}" for key in sorted(config.parameters) if key.isupper()
        ),
    }
    if provenance := provenance_of(config):
        lines |= {key: str(value) for key, value in asdict(provenance).items()}
    if verification := verification_of(config):
        lines |= {f"gate: {key}": str(value) for key, value in verification.items()}
    console = Console(soft_wrap=True, highlight=False)
    for key, value in lines.items():
        if value:
            console.print(f"{key:<28}{value}", markup=False)
    report = folder / str(shown) / REPORT_TABLE
    if report.is_file():
        console.print("\n" + report.read_text(), markup=False)


@app.command()
def publish(
    model: Annotated[Path, typer.Argument(help="Folder of a model in another repository, such as staging/deit_tiny.")],
    repository: Repository = REPOSITORY,
    name: Annotated[str | None, typer.Option(help="Name here; the folder's unless given.")] = None,
    version: Annotated[int | None, typer.Option(help="Version to take; the served one unless given.")] = None,
) -> None:
    """Copy a version of a model from another repository as the next version here, after `doctor` found it sound."""
    from deit.repository.promotion import promote

    number = promote(model, repository, name or model.resolve().name, version)
    print(repository / (name or model.resolve().name) / str(number))


@app.command()
def rollback(
    name: Annotated[str, typer.Argument(help="Name of the model.")],
    version: Annotated[int | None, typer.Option(help="Version to go to; the one before unless given.")] = None,
    repository: Repository = REPOSITORY,
) -> None:
    """Serve another version of a model from the next load on; `deit models reload` makes a running server load it."""
    from deit.repository.publishing import model_folder, serve_version, served_version, versions

    folder = model_folder(repository, name)
    before = served_version(folder)
    if version is None:
        older = [each for each in versions(folder) if before is not None and each < before]
        if not older:
            raise RepositoryError(f"{folder} has no version before {before}; name one with --version")
        version = older[-1]
    serve_version(repository, name, version)
    print(f"{name}: version {version} instead of {before}, from the next `deit models reload` or start on")


@app.command()
def reload(
    port: Annotated[int, typer.Option(envvar="DEIT_PORT", help="Port on which `deit serve` listens.")] = 8080,
) -> None:
    """Let a running server serve what its model repository holds now.

    No request fails: the old versions answer until the new ones have proven that they can. A version that does not is
    refused, and the old one serves on. Exit status: 0 done, 1 a model was refused.
    """
    from deit.control import command_server

    changes = command_server(port, "reload")["changes"]
    for change in changes:
        served = f", serving version {', '.join(change['versions'])}" if change["versions"] else ""
        reason = f": {change['reason']}" if change["reason"] else ""
        typer.echo(f"{change['model']}: {change['outcome']}{served}{reason}")
    refused = [change["model"] for change in changes if change["outcome"] == "refused"]
    if refused:
        raise RepositoryError(f"refused: {', '.join(refused)}; what was served before is served on")


@app.command()
def remove(
    name: Annotated[str, typer.Argument(help="Name of the model.")],
    version: Annotated[int | None, typer.Option(help="Only this version; the whole model unless given.")] = None,
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
    """Say what is wrong with a repository, and what to do. Exit status 1 when something is."""
    from deit.repository.doctor import examine

    findings = examine(repository, tensorrt=tensorrt)
    for finding in findings:
        print(finding)
    if findings:
        raise typer.Exit(1)
    print(f"{repository} is sound")
