"""Logging for the commands: events with values, as text for people or JSON lines for machines, on stderr.

Modules log through the standard library (`logging.getLogger(__name__)`); only a command calls `configure_logging`.
"""

import logging
import sys
from typing import Literal

LogFormat = Literal["text", "json"]


OUR_LOGGERS = ("deit", "training", "export", "serving", "benchmark", "bulk", "triton")


def configure_logging(log_format: LogFormat) -> None:
    """Send the log records of the process to stderr in one format: ours from INFO on, libraries' from WARNING on."""
    import structlog  # a third of the time that a help text may take

    before: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if log_format == "json":
        last: list[structlog.typing.Processor] = [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ]
    else:
        # rich tracebacks would print local variables: request headers, image bytes
        last = [
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)
        ]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=before,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name in OUR_LOGGERS:
        logging.getLogger(name).setLevel(logging.INFO)
    logging.captureWarnings(True)
