"""`deit triton`."""

import logging

import typer

from deit.log import configure_logging
from deit.options import SERVING, command_of, resolved
from serving.settings.standalone import StandaloneSettings

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

logger = logging.getLogger(__name__)


@app.command()
@command_of(StandaloneSettings, SERVING)
def triton(settings: StandaloneSettings) -> None:
    """Run the embedded Triton alone, behind `deit serve --triton-url`.

    It exits with status 1 when it loses a model, so that the restart policy of
    its container starts it again.

    Flags override environment variables.
    """
    configure_logging(settings.log.format)
    logger.info("settings", extra=resolved(settings))
    from serving.launcher import run_triton  # after parsing, so that --help and wrong usage are quick

    run_triton(settings)
