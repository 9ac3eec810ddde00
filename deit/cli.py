"""The `deit` command: a table of subcommands, each stage imported only when its subcommand runs."""

import errno
import importlib
import os
import select
import sys
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from deit import __version__
from deit.errors import DeitError
from deit.installation import how_to_install

# name -> (module with a typer `app`, one line of help)
SUBCOMMANDS = {
    "train": ("training.command", "Train a teacher, or distil a DeiT student from one."),
    "evaluate": ("training.evaluate_command", "Report the accuracy of each read-out of a model."),
    "curves": ("training.curves_command", "Draw the loss and the accuracy of training runs."),
    "export": ("export.command", "Turn a checkpoint into a verified model in a Triton model repository."),
    "serve": ("serving.command", "Serve a model repository: Triton behind an HTTP gateway."),
    "triton": ("serving.triton_command", "Run the embedded Triton alone, behind a separate gateway."),
    "classify-dataset": ("bulk.command", "Classify whole data sets, also on Ray."),
    "classify": ("serving.client.classify_command", "Classify pictures with a running server."),
    "models": ("deit.repository.command", "List, publish, roll back, remove and check the models of a repository."),
    "benchmark": ("benchmark.command", "Measure models, servers and machines, and report the results."),
}

# Also a user's quota.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)

# The extra whose absence explains a missing module, by the top-level name that failed to import.
EXTRA_OF_MODULE = {
    **dict.fromkeys(
        ("torch", "torchvision", "timm", "safetensors", "pyarrow", "matplotlib", "tensorboard"), "training"
    ),
    **dict.fromkeys(("onnx", "onnxscript"), "export"),
    "openvino": "openvino",
    "tensorrt": "gpu",
    **dict.fromkeys(
        ("fastapi", "uvicorn", "tritonclient", "grpc", "onnxruntime", "prometheus_client", "pytriton"), "serving"
    ),
    "ray": "bulk",
    **dict.fromkeys(("psutil", "pydantic"), "benchmark"),
    "httpx": "client",
    "opentelemetry": "tracing",
}


class LazySubcommands(TyperGroup):
    """Lists the subcommands without importing their stages, and imports the one that is called."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, (_, help_line) in SUBCOMMANDS.items():
            self.commands[name] = TyperCommand(name, help=help_line)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] in SUBCOMMANDS:
            module, _ = SUBCOMMANDS[args[0]]
            self.commands[args[0]] = typer.main.get_command(importlib.import_module(module).app)
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=LazySubcommands,
    help="Distil, export, serve and benchmark DeiT image classifiers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"deit-server {__version__}")
        raise typer.Exit


@app.callback()
def deit(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    pass


def _reader_has_gone() -> bool:
    """Nobody reads what this process prints any more. Any other broken pipe is an error."""
    poll = select.poll()
    for standard_output_or_error in (1, 2):
        poll.register(standard_output_or_error, 0)  # asks for nothing: a gone reader is always reported
    return bool(poll.poll(0))


def main() -> None:
    """Run the command. Exit status: 0 done, 1 the work failed (one line on stderr), 2 wrong usage, 130 interrupted."""
    try:
        app()
    except DeitError as error:
        sys.exit(f"deit: {error}")
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in EXTRA_OF_MODULE:
            raise
        sys.exit(f"deit: {missing} is not installed; {how_to_install(EXTRA_OF_MODULE[missing])}")
    except BrokenPipeError:
        if not _reader_has_gone():
            raise
        # `deit ... | head`: the reader has what it wanted. Python would complain again when it flushes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except PermissionError as error:
        place = error.filename or error
        sys.exit(f"deit: {place}: user {os.getuid()} may not do this; give it access, or choose another place")
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        place = f"{error.filename}: " if error.filename else ""
        sys.exit(f"deit: {place}{error.strerror}; make room, then run the command again (deit train: with --resume)")
    except KeyboardInterrupt:
        sys.exit(130)
