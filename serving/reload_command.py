"""`deit models reload`: let a running server follow its model repository."""

from typing import Annotated

import typer

from deit.errors import RepositoryError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)


@app.callback()
def models() -> None:
    """Change what a running server serves."""


@app.command()
def reload(
    port: Annotated[int, typer.Option(envvar="DEIT_PORT", help="Port on which `deit serve` listens.")] = 8080,
) -> None:
    """Let a running server serve what its model repository holds now.

    No request fails: the old versions answer until the new ones have proven that they can. A version that does not is
    refused, and the old one serves on. Exit status: 0 done, 1 a model was refused.
    """
    from serving.control import command_server

    changes = command_server(port, "reload")["changes"]
    for change in changes:
        served = f", serving version {', '.join(change['versions'])}" if change["versions"] else ""
        reason = f": {change['reason']}" if change["reason"] else ""
        typer.echo(f"{change['model']}: {change['outcome']}{served}{reason}")
    refused = [change["model"] for change in changes if change["outcome"] == "refused"]
    if refused:
        raise RepositoryError(f"refused: {', '.join(refused)}; what was served before is served on")
