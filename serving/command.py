"""`deit serve`: options and their environment variables. Flag before environment before default."""

from pathlib import Path
from typing import Annotated

import typer

from deit.log import LogFormat, configure_logging
from serving.settings import Decoding, DecodingMode, Limits, ServeSettings, TritonPorts

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

DEFAULTS = ServeSettings(model_repository=Path("model_repository"))

# The panels of --help. A pair of flags makes its panel wide, therefore perf_analyzer's options have their own.
GATEWAY, ACCESS, TRITON = "Gateway", "Access", "Triton"
LIMITS, PERF_ANALYZER = "Limits", "Measuring with perf_analyzer"


@app.command()
def serve(
    model_repository: Annotated[
        Path,
        typer.Option(
            envvar="DEIT_MODEL_REPOSITORY",
            help="Folder of models that `deit export` wrote. Change it to serve your own.",
        ),
    ] = DEFAULTS.model_repository,
    host: Annotated[
        str,
        typer.Option(
            envvar="DEIT_HOST",
            help="Address to listen on. 0.0.0.0 admits other machines: set keys, and put a proxy with TLS in front.",
            rich_help_panel=GATEWAY,
        ),
    ] = DEFAULTS.host,
    port: Annotated[
        int,
        typer.Option(
            envvar="DEIT_PORT",
            help="Port to listen on; 0 takes a free one. Change it when 8080 is taken.",
            rich_help_panel=GATEWAY,
        ),
    ] = DEFAULTS.port,
    api_keys_file: Annotated[
        Path | None,
        typer.Option(
            envvar="DEIT_API_KEYS_FILE",
            help="SHA-256 and name of each key that may ask, a line each. Or set keys themselves in DEIT_API_KEYS.",
            rich_help_panel=ACCESS,
        ),
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option(
            envvar="DEIT_INSECURE",
            help="Listen beyond this machine without keys. Only where something else keeps strangers out.",
            rich_help_panel=ACCESS,
        ),
    ] = False,
    rate_limit: Annotated[
        float | None,
        typer.Option(
            envvar="DEIT_RATE_LIMIT",
            help="Requests a second for each key. Set it when one user must not crowd out the others.",
            rich_help_panel=ACCESS,
        ),
    ] = None,
    cors_origins: Annotated[
        str,
        typer.Option(
            envvar="DEIT_CORS_ORIGINS",
            help="Pages that may ask from a browser, with commas between, such as https://app.example.org.",
            rich_help_panel=ACCESS,
        ),
    ] = "",
    default_model: Annotated[
        str | None,
        typer.Option(
            envvar="DEIT_DEFAULT_MODEL",
            help="Answers requests that name no model. Set it when there are several; without it, the first by name.",
            rich_help_panel=GATEWAY,
        ),
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            envvar="DEIT_METRICS_PORT",
            help="A port for Prometheus alone, without keys; without it, /metrics is on the gateway's port.",
            rich_help_panel=GATEWAY,
        ),
    ] = None,
    log_requests: Annotated[
        bool,
        typer.Option(
            "--log-requests/--no-log-requests",
            envvar="DEIT_LOG_REQUESTS",
            help="Log a line for each request. Turn it off where a proxy does.",
            rich_help_panel=GATEWAY,
        ),
    ] = DEFAULTS.log_requests,
    log_format: Annotated[
        LogFormat,
        typer.Option(
            envvar="DEIT_LOG_FORMAT",
            help="How to write the log on stderr. Choose json when a program reads it.",
            rich_help_panel=GATEWAY,
        ),
    ] = DEFAULTS.log_format,
    triton_url: Annotated[
        str | None,
        typer.Option(
            envvar="DEIT_TRITON_URL",
            metavar="HOST:PORT",
            help="gRPC address of a Triton elsewhere, such as NVIDIA's container; without it, one is started here.",
            rich_help_panel=TRITON,
        ),
    ] = None,
    start_timeout_s: Annotated[
        float,
        typer.Option(
            envvar="DEIT_START_TIMEOUT_S",
            help="Seconds until every model must be loaded. Raise it when Triton builds TensorRT engines.",
            rich_help_panel=TRITON,
        ),
    ] = DEFAULTS.start_timeout_s,
    allow_reload: Annotated[
        bool,
        typer.Option(
            envvar="DEIT_ALLOW_RELOAD",
            help="Let `deit models reload` load new versions without a pause. Not where strangers have accounts.",
            rich_help_panel=TRITON,
        ),
    ] = DEFAULTS.allow_reload,
    triton_restarts: Annotated[
        int,
        typer.Option(
            envvar="DEIT_TRITON_RESTARTS",
            help="How often in a row a failed embedded Triton is started again. Set 0 where an orchestrator does it.",
            rich_help_panel=TRITON,
        ),
    ] = DEFAULTS.triton_restarts,
    triton_grpc_port: Annotated[
        int,
        typer.Option(
            envvar="DEIT_TRITON_GRPC_PORT",
            help="gRPC port of the embedded Triton, on loopback. Change it when 8001 is taken.",
            rich_help_panel=TRITON,
        ),
    ] = DEFAULTS.triton_ports.grpc,
    triton_metrics_port: Annotated[
        int,
        typer.Option(
            envvar="DEIT_TRITON_METRICS_PORT",
            help="Metrics port of the embedded Triton, on loopback. Change it when 8002 is taken.",
            rich_help_panel=TRITON,
        ),
    ] = DEFAULTS.triton_ports.metrics,
    max_body_bytes: Annotated[
        int,
        typer.Option(
            envvar="DEIT_MAX_BODY_BYTES",
            help="Largest upload. Raise it for very large photographs; each request may hold this much memory.",
            rich_help_panel=LIMITS,
        ),
    ] = DEFAULTS.limits.max_body_bytes,
    max_image_pixels: Annotated[
        int,
        typer.Option(
            envvar="DEIT_MAX_IMAGE_PIXELS",
            help="Largest width x height. Raise it for cameras above 25 megapixels; each may take 32 bytes.",
            rich_help_panel=LIMITS,
        ),
    ] = DEFAULTS.limits.max_image_pixels,
    max_images: Annotated[
        int,
        typer.Option(
            envvar="DEIT_MAX_IMAGES",
            help="Most images in one form. Raise it with the body limit for batches of small images.",
            rich_help_panel=LIMITS,
        ),
    ] = DEFAULTS.limits.max_images,
    request_timeout_s: Annotated[
        float,
        typer.Option(
            envvar="DEIT_REQUEST_TIMEOUT_S",
            help="Seconds until a request is given up. Raise it for slow uploads, lower it when callers wait less.",
            rich_help_panel=LIMITS,
        ),
    ] = DEFAULTS.limits.request_timeout_s,
    max_wait_s: Annotated[
        float,
        typer.Option(
            envvar="DEIT_MAX_WAIT_S",
            help="Seconds an image may take before more are refused with 429. Raise it when callers rather wait.",
            rich_help_panel=LIMITS,
        ),
    ] = DEFAULTS.limits.max_wait_s,
    max_in_flight_bytes: Annotated[
        int,
        typer.Option(
            envvar="DEIT_MAX_IN_FLIGHT_BYTES",
            help="Of all bodies together; more are refused with 429. Set it by the memory of the machine.",
            rich_help_panel=LIMITS,
        ),
    ] = DEFAULTS.limits.max_in_flight_bytes,
    max_in_flight_pixels: Annotated[
        int,
        typer.Option(
            envvar="DEIT_MAX_IN_FLIGHT_PIXELS",
            help="Of all images together; beyond it large ones are refused with 429. Raise it with many cores.",
            rich_help_panel=LIMITS,
        ),
    ] = DEFAULTS.limits.max_in_flight_pixels,
    decoders: Annotated[
        int,
        typer.Option(
            envvar="DEIT_DECODERS",
            help="Processes that decode images; by default one more than there are cores. Lower it to save memory.",
            rich_help_panel=GATEWAY,
        ),
    ] = DEFAULTS.decoding.processes,
    decode: Annotated[
        DecodingMode,
        typer.Option(
            envvar="DEIT_DECODE",
            help="exact decodes every pixel. fast decodes large JPEGs at a fraction, and resizes only the crop.",
            rich_help_panel=GATEWAY,
        ),
    ] = DEFAULTS.decoding.mode,
    triton_http: Annotated[
        bool,
        typer.Option(
            envvar="DEIT_TRITON_HTTP",
            help="Open the embedded Triton's own HTTP port, on loopback, for perf_analyzer.",
            rich_help_panel=PERF_ANALYZER,
        ),
    ] = False,
    triton_http_port: Annotated[
        int,
        typer.Option(
            envvar="DEIT_TRITON_HTTP_PORT",
            help="That port. Change it when 8000 is taken.",
            rich_help_panel=PERF_ANALYZER,
        ),
    ] = 8000,
) -> None:
    """Serve a model repository: Triton behind an HTTP gateway."""
    try:
        settings = ServeSettings(
            model_repository=model_repository,
            host=host,
            port=port,
            api_keys_file=api_keys_file,
            insecure=insecure,
            rate_limit=rate_limit,
            cors_origins=tuple(filter(None, map(str.strip, cors_origins.split(",")))),
            triton_url=triton_url,
            triton_ports=TritonPorts(
                grpc=triton_grpc_port,
                metrics=triton_metrics_port,
                http=triton_http_port if triton_http else None,
            ),
            default_model=default_model,
            start_timeout_s=start_timeout_s,
            allow_reload=allow_reload,
            triton_restarts=triton_restarts,
            limits=Limits(
                max_body_bytes=max_body_bytes,
                max_image_pixels=max_image_pixels,
                max_images=max_images,
                request_timeout_s=request_timeout_s,
                max_wait_s=max_wait_s,
                max_in_flight_bytes=max_in_flight_bytes,
                max_in_flight_pixels=max_in_flight_pixels,
            ),
            decoding=Decoding(processes=decoders, mode=decode),
            metrics_port=metrics_port,
            log_requests=log_requests,
            log_format=log_format,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    configure_logging(settings.log_format)
    from serving.launcher import serve as serve_models  # after parsing, so that --help and errors are quick

    serve_models(settings)
