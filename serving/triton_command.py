"""`deit triton`: options and their environment variables. Flag before environment before default."""

from pathlib import Path
from typing import Annotated

import typer

from deit.log import LogFormat, configure_logging
from serving.settings import StandaloneSettings, TritonPorts

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def triton(
    model_repository: Annotated[
        Path, typer.Option(envvar="DEIT_MODEL_REPOSITORY", help="Folder of models that `deit export` wrote.")
    ] = Path("model_repository"),
    host: Annotated[
        str,
        typer.Option(envvar="DEIT_HOST", help="IPv4 address of gRPC and metrics. In a container: 0.0.0.0."),
    ] = "127.0.0.1",
    insecure: Annotated[
        bool,
        typer.Option(
            envvar="DEIT_INSECURE", help="Listen beyond this machine, where the network lets only the gateway through."
        ),
    ] = False,
    grpc_port: Annotated[int, typer.Option(envvar="DEIT_TRITON_GRPC_PORT", help="Port of gRPC.")] = 8001,
    metrics_port: Annotated[int, typer.Option(envvar="DEIT_TRITON_METRICS_PORT", help="Port of metrics.")] = 8002,
    http_port: Annotated[
        int | None,
        typer.Option(envvar="DEIT_TRITON_HTTP_PORT", help="Port of HTTP, on loopback, for a health check beside it."),
    ] = None,
    start_timeout_s: Annotated[
        float, typer.Option(envvar="DEIT_START_TIMEOUT_S", help="Seconds until every model must be loaded.")
    ] = 120.0,
    log_format: Annotated[
        LogFormat, typer.Option(envvar="DEIT_LOG_FORMAT", help="How to write the log on stderr.")
    ] = "text",
) -> None:
    """Run the embedded Triton alone, in a container of its own behind `deit serve --triton-url`.

    It ends with status 1 when a model of it is lost: the container's restart policy starts it anew.
    """
    try:
        settings = StandaloneSettings(
            model_repository=model_repository,
            host=host,
            insecure=insecure,
            ports=TritonPorts(grpc=grpc_port, metrics=metrics_port, http=http_port),
            start_timeout_s=start_timeout_s,
            log_format=log_format,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    configure_logging(settings.log_format)
    from serving.embedded.standalone import run_triton  # after parsing, so that --help and errors are quick

    run_triton(settings)
