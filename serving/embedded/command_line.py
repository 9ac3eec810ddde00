"""The command line of `tritonserver`, by version, because Triton exits on an option that it does not know.

It listens on loopback unless asked otherwise, with gRPC and metrics; loading models or files from outside needs a key.
All options are set explicitly.
Sources: `src/command_line_parser.cc` of https://github.com/triton-inference-server/server, branch by branch.
"""

import secrets
from pathlib import Path

from deit.ports import LOOPBACK
from serving.gateway.shared_pixels import KEY_NAME
from serving.settings.triton import TritonPorts

EXIT_TIMEOUT_S = 10
"""How long a stopping Triton waits for requests. The gateway has finished its own by then."""

LOAD_THREADS = 4
"""Models that load at once; releases before 24.08 take two for each core of the machine."""

HTTP_THREADS = 2
"""For a health check and for perf_analyzer, which reads a model's metadata; inference uses gRPC."""

# Shared memory of a Python backend's instance, for one batch of inputs and outputs. It grows in steps when a batch is
# larger: 64 images of 224 x 224 are 38.5 MB, and the default of 1 MiB would grow 38 times on the first one.
SHM_BYTES = 64 * 2**20
SHM_GROWTH_BYTES = 16 * 2**20

# Protocols that we do not use, and that other users of the machine could misuse on loopback (CVE-2024-0087,
# CVE-2025-23319). They require a header whose value is secret. So does shared memory, unless the gateway uses it.
CLOSED_PROTOCOLS = "trace,logging"

# Loading models: it can bring files, and with a Python backend any program (CVE-2025-23316).
CONTROL_PROTOCOL = "model-repository"
CONTROL_HEADER = "control"

# Option -> the first Triton that knows it
SINCE = {
    "--allow-client-shm": (2, 68),
}


def triton_options(
    version: tuple[int, int],
    *,
    model_repository: Path,
    backend_directory: Path,
    shared_memory_prefix: str,
    ports: TritonPorts,
    host: str = LOOPBACK,
    control_key: str | None,
    traces_url: str | None,
    shared_memory_key: str | None = None,
) -> list[str]:
    """Arguments for this version of Triton.

    Args:
        host: address of gRPC and metrics; HTTP stays on loopback.
        control_key: the key to load and unload models with; None to forbid it.
        traces_url: OpenTelemetry collector for spans of requests with a `traceparent`; None for none.
        shared_memory_key: the key for registering shared memory; None to forbid it.
    """
    is_ipv6 = ":" in host
    closed = CLOSED_PROTOCOLS if shared_memory_key else f"{KEY_NAME},{CLOSED_PROTOCOLS}"
    options = {
        "--model-repository": str(model_repository),
        "--backend-directory": str(backend_directory),
        "--model-control-mode": "none" if control_key is None else "explicit",
        # A model that does not load does not affect the others; the model index reports it.
        "--strict-readiness": "false",
        "--exit-on-error": "false",
        "--exit-timeout-secs": str(EXIT_TIMEOUT_S),
        "--model-load-thread-count": str(LOAD_THREADS),
        "--log-format": "ISO8601",
        "--allow-grpc": "true",
        "--grpc-address": f"[{host}]" if is_ipv6 else host,
        "--grpc-port": str(ports.grpc),
        "--grpc-restricted-protocol": f"{closed}:closed={secrets.token_urlsafe(32)}",
        "--allow-metrics": "true",
        "--metrics-address": f"ipv6:{host}" if is_ipv6 else host,  # as libevhtp writes it
        "--metrics-port": str(ports.metrics),
        "--allow-http": "false" if ports.http is None else "true",
        "--allow-sagemaker": "false",
        "--allow-vertex-ai": "false",
        "--allow-client-shm": "false" if shared_memory_key is None else "true",
    }
    if ports.http is not None:
        options |= {
            "--http-thread-count": str(HTTP_THREADS),
            "--http-address": LOOPBACK,
            "--http-port": str(ports.http),
        }
        if control_key is not None:
            options["--http-restricted-api"] = f"{CONTROL_PROTOCOL}:{CONTROL_HEADER}={control_key}"
    explicit = [
        "--load-model=*",
        f"--grpc-restricted-protocol={CONTROL_PROTOCOL}:{CONTROL_HEADER}={control_key}",
    ]
    return [
        *(f"{option}={value}" for option, value in options.items() if version >= SINCE.get(option, (0, 0))),
        *([f"--grpc-restricted-protocol={KEY_NAME}:{KEY_NAME}={shared_memory_key}"] if shared_memory_key else []),
        *([] if control_key is None else explicit),
        *([] if traces_url is None else [f"--trace-config={each}" for each in trace_settings(traces_url)]),
        "--disable-auto-complete-config",
        f"--backend-config=python,shm-region-prefix-name={shared_memory_prefix}",
        f"--backend-config=python,shm-default-byte-size={SHM_BYTES}",
        f"--backend-config=python,shm-growth-byte-size={SHM_GROWTH_BYTES}",
    ]


def trace_settings(url: str) -> list[str]:
    """Rate 0: Triton traces what the gateway does, and nothing else."""
    return [
        "mode=opentelemetry",
        "level=TIMESTAMPS",
        "rate=0",
        "count=-1",
        f"opentelemetry,url={url}",
        "opentelemetry,resource=service.name=triton",
    ]
