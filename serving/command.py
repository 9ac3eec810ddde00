"""`deit serve`."""

import logging

import typer

from deit.log import configure_logging
from deit.options import SERVING, command_of, resolved
from serving.settings.serve import ServeSettings

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

logger = logging.getLogger(__name__)


@app.command()
@command_of(ServeSettings, SERVING)
def serve(settings: ServeSettings) -> None:
    """Serve a model repository: Triton behind an HTTP gateway.

    Flags override environment variables.
    """
    configure_logging(settings.log.format)
    logger.info("settings", extra=resolved(settings))
    # after parsing, so that --help and wrong usage are quick
    from serving.launcher import serve
    from serving.supervisor import supervise

    if (count := settings.gateway_count) > 1:
        supervise(settings, count)
    else:
        serve(settings)
