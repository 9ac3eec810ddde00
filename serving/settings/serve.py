"""The options of `deit serve`."""

import ipaddress
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from typer import Option

from deit.allowance import usable_cores, usable_memory_bytes
from deit.candidate import CandidateModel, Mode, candidates_of
from deit.options import Secret, named, wrong
from serving.settings.capture import CaptureSettings
from serving.settings.decoding import Decoding
from serving.settings.limits import Limits
from serving.settings.log import LogSettings
from serving.settings.panels import ACCESS, GATEWAY, LOG, MODELS, TRITON
from serving.settings.triton import TritonSettings

CORES_PER_GATEWAY = 4
"""Decoding and, if it runs on the CPU, the engine keep the other three busy."""

GATEWAY_BYTES = 128 * 2**20
"""A generous estimate of a gateway's memory, without its decoders."""

MOST_GATEWAYS = 16


def gateways_for(cores: int, memory_bytes: int | None) -> int:
    """One for every four cores, in at most a quarter of the memory."""
    fitting = MOST_GATEWAYS if memory_bytes is None else memory_bytes // 4 // GATEWAY_BYTES
    return max(1, min(cores // CORES_PER_GATEWAY, fitting, MOST_GATEWAYS))


MOST_IMAGES_PER_REQUEST = 64
"""As many of 512 x 512 pixels fit into a gRPC message (serving/gateway/connection.py)."""


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """The options of `deit serve`."""

    triton: TritonSettings = field(default_factory=TritonSettings)
    default_model: Annotated[
        str | None,
        Option(
            help="Model for requests that do not name one; unset, the first by name. Set it if you serve several.",
            rich_help_panel=MODELS,
        ),
    ] = None
    shadow: Annotated[
        str,
        Option(
            metavar="MODEL=CANDIDATE:PERCENT",
            help="Run a candidate (another served model, or MODEL/VERSION) on a share of a model's requests, only to "
            "compare its predictions; separate several with commas. Set it to try a model on real requests before "
            "callers get its predictions.",
            rich_help_panel=MODELS,
        ),
    ] = ""
    canary: Annotated[
        str,
        Option(
            metavar="MODEL=CANDIDATE:PERCENT",
            help="Let a candidate answer a share of a model's requests; separate several with commas. Set it to "
            "replace a model step by step.",
            rich_help_panel=MODELS,
        ),
    ] = ""
    allow_reload: Annotated[
        bool,
        Option(
            "--allow-reload",
            help="Let `deit models reload` load new versions while the server runs. Leave it off if other users "
            "have accounts on this machine.",
            rich_help_panel=MODELS,
        ),
    ] = False
    triton_url: Annotated[
        str | None,
        Option(
            metavar="HOST:PORT",
            help="gRPC address of an external Triton, such as NVIDIA's container; unset, one is started here. Several, "
            "separated by commas, or a name with several addresses, are used in turn.",
            rich_help_panel=TRITON,
        ),
    ] = None
    images_per_request: Annotated[
        int | None,
        Option(
            help="Maximum number of images in one request to Triton: under load, images for the same model wait up to "
            "1 ms for each other. Set it to 1 if that millisecond matters more than throughput.",
            show_default="32 for a model on a GPU, else 1",
            rich_help_panel=TRITON,
        ),
    ] = None
    shared_memory: Annotated[
        bool,
        Option(
            "--shared-memory",
            help="Pass pixels to Triton in shared memory instead of in requests. Set it for a model on a GPU if no "
            "other users have accounts on this machine. With --triton-url it needs DEIT_SHARED_MEMORY_KEY.",
            rich_help_panel=TRITON,
        ),
    ] = False
    shared_memory_key: Secret | None = None
    """The key of an external Triton for --shared-memory, from DEIT_SHARED_MEMORY_KEY only."""
    triton_restarts: Annotated[
        int,
        Option(
            help="How many times in a row a failing embedded Triton is restarted before the server exits. Set 0 if an "
            "orchestrator restarts the server.",
            rich_help_panel=TRITON,
        ),
    ] = 5
    host: Annotated[
        str,
        Option(
            help="Address to listen on. 0.0.0.0 accepts other machines, :: also over IPv6; then set API keys, and put "
            "a TLS proxy in front.",
            rich_help_panel=GATEWAY,
        ),
    ] = "127.0.0.1"
    port: Annotated[
        int,
        Option(help="Port to listen on; 0 picks a free one. Change it if 8080 is taken.", rich_help_panel=GATEWAY),
    ] = 8080
    root_path: Annotated[
        str,
        Option(
            help="Path under which a proxy exposes this server, such as /vision, whether or not the proxy removes it. "
            "Set it unless the proxy exposes the server at its root.",
            show_default="none",
            rich_help_panel=GATEWAY,
        ),
    ] = ""
    keep_alive_s: Annotated[
        float,
        Option(
            help="Seconds that an idle connection stays open. Keep it above the idle timeout of the load balancer in "
            "front, or requests fail now and then (502).",
            rich_help_panel=GATEWAY,
        ),
    ] = 75.0
    metrics_port: Annotated[
        int | None,
        Option(
            help="Separate port for /metrics, without API keys; unset, /metrics is on --port. Set it if Prometheus "
            "does not send a key.",
            rich_help_panel=GATEWAY,
        ),
    ] = None
    gateways: Annotated[
        int | None,
        Option(
            help="Gateway processes that share the port. Raise it if cores stay idle under load: one handles about 800 "
            "images a second.",
            show_default="one for every four cores, with the default limits up to 4; 1 with --allow-reload",
            rich_help_panel=GATEWAY,
        ),
    ] = None
    decoding: Decoding = field(default_factory=Decoding)
    api_keys_file: Annotated[
        Path | None,
        Option(
            help="File of accepted API keys, with one SHA-256 and name per line. Or put the keys themselves into "
            "DEIT_API_KEYS, separated by commas.",
            rich_help_panel=ACCESS,
        ),
    ] = None
    api_keys: Secret | None = None
    """Accepted API keys, separated by commas, from DEIT_API_KEYS only."""
    insecure: Annotated[
        bool,
        Option(
            "--insecure",
            help="Accept other machines without API keys. Set it only if something else controls access.",
            rich_help_panel=ACCESS,
        ),
    ] = False
    rate_limit: Annotated[
        float | None,
        Option(
            help="Requests per second for each API key; unset, no limit. Set it if one client crowds out the others.",
            rich_help_panel=ACCESS,
        ),
    ] = None
    cors_origins: Annotated[
        str,
        Option(
            help="Origins of other web pages whose scripts may send requests, separated by commas, such as "
            "https://app.example.org.",
            rich_help_panel=ACCESS,
        ),
    ] = ""
    trusted_proxies: Annotated[
        str,
        Option(
            help="Addresses or networks of proxies in front, separated by commas, such as 10.0.0.0/8: the caller's "
            "address in the log then comes from their X-Forwarded-For. Set it behind a proxy.",
            rich_help_panel=ACCESS,
        ),
    ] = ""
    contracts: Annotated[
        bool,
        Option(
            help="Also serve the APIs of Hugging Face, KServe, SageMaker and Vertex AI. Turn it off if nobody uses "
            "them.",
            rich_help_panel=GATEWAY,
        ),
    ] = True
    limits: Limits = field(default_factory=Limits)
    capture: CaptureSettings = field(default_factory=CaptureSettings)
    log: LogSettings = field(default_factory=LogSettings)
    log_requests: Annotated[
        bool,
        Option(help="Log a line per request. Turn it off if a proxy does.", rich_help_panel=LOG),
    ] = True

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise wrong("--port", self.port, "choose a port from 1 to 65535, or 0 for any free one")
        if self.metrics_port is not None and not 1 <= self.metrics_port <= 65535:
            raise wrong("--metrics-port", self.metrics_port, "choose a port from 1 to 65535")
        if self.metrics_port is not None and self.metrics_port == self.port:
            raise wrong("--metrics-port", self.metrics_port, "--port has it too; leave it out to have /metrics there")
        if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)*", self.root_path):
            raise wrong("--root-path", repr(self.root_path), "give a path such as /vision, without a slash at its end")
        if not 0 < self.keep_alive_s < math.inf:
            raise wrong("--keep-alive-s", self.keep_alive_s, "give seconds above 0; the default is 75")
        if self.gateways is not None and not 1 <= self.gateways <= 256:
            raise wrong("--gateways", self.gateways, "give 1 to 256, or leave it out for one per four cores")
        if self.gateways not in (None, 1) and self.allow_reload:
            raise ValueError(
                f"{named('--allow-reload')} is for one gateway, and {named('--gateways')} is {self.gateways}: drop "
                "either; with several, load new versions by a restart or with deploy/update-models"
            )
        if self.rate_limit is not None and not 0 < self.rate_limit < math.inf:
            raise wrong("--rate-limit", self.rate_limit, "give requests per second above 0, or leave it out")
        for origin in self.origins:
            if not re.fullmatch(r"https?://[^\s/?#*]+", origin):
                raise wrong(
                    "--cors-origins",
                    repr(origin),
                    "give origins of pages such as https://app.example.org, without a path and without *",
                )
        for proxy in filter(None, map(str.strip, self.trusted_proxies.split(","))):
            try:
                ipaddress.ip_network(proxy)
            except ValueError as error:
                fix = "give addresses such as 10.0.0.7, or networks such as 10.0.0.0/8"
                raise wrong("--trusted-proxies", repr(proxy), fix) from error
        if self.triton_url is not None:
            address = r"(\[[0-9a-fA-F:]+\]|[^\s:/,]+):\d{1,5}"
            if not re.fullmatch(rf"{address}( *, *{address})*", self.triton_url):
                raise wrong(
                    "--triton-url",
                    repr(self.triton_url),
                    "give HOST:PORT of Triton's gRPC service, without http://, such as triton:8001",
                )
            for flag, is_set in (
                ("--allow-reload", self.allow_reload),
                ("--triton-http-port", self.triton.ports.http is not None),
                ("--triton-decode", self.triton.decodes_on is not None),
            ):
                if is_set:
                    raise ValueError(
                        f"{named(flag)} is for the embedded Triton, and {named('--triton-url')} uses another one: "
                        "drop either"
                    )
        else:
            for flag, port in (("--port", self.port), ("--metrics-port", self.metrics_port)):
                if port and port in self.triton.ports.by_flag().values():
                    raise wrong(flag, port, "the embedded Triton has this port too; choose another for either")
        if self.shared_memory_key is not None and (not self.shared_memory or self.triton_url is None):
            raise ValueError(
                f"DEIT_SHARED_MEMORY_KEY is for {named('--shared-memory')} with {named('--triton-url')}: set both, or "
                "drop it"
            )
        if self.shared_memory and self.triton_url is not None and self.shared_memory_key is None:
            raise ValueError(
                f"{named('--shared-memory')} with {named('--triton-url')} needs the key that Triton was started with, "
                "in DEIT_SHARED_MEMORY_KEY; docs/serving.md says how to start it"
            )
        if self.images_per_request is not None and not 1 <= self.images_per_request <= MOST_IMAGES_PER_REQUEST:
            raise wrong(
                "--images-per-request",
                self.images_per_request,
                f"give 1 to {MOST_IMAGES_PER_REQUEST}, or leave it out for what suits each model",
            )
        _ = self.candidates
        if self.triton_restarts < 0:
            raise wrong("--triton-restarts", self.triton_restarts, "give 0 or more; the default is 5")

    @property
    def gateway_count(self) -> int:
        """--gateways, or its default on this machine."""
        if self.gateways is not None:
            return self.gateways
        if self.allow_reload:
            return 1
        # each must be able to take one image of the largest size
        largest = max(1, self.limits.max_in_flight_pixels // self.limits.max_image_pixels)
        return min(largest, gateways_for(usable_cores(), usable_memory_bytes()))

    @property
    def candidates(self) -> dict[str, CandidateModel]:
        """--shadow and --canary, by the model whose requests are shared. Raises ValueError."""
        found: dict[str, CandidateModel] = {}
        texts: dict[Mode, str] = {"shadow": self.shadow, "canary": self.canary}
        for mode, text in texts.items():
            try:
                more = candidates_of(mode, text)
            except ValueError as error:
                raise wrong(f"--{mode}", repr(text), str(error)) from error
            if both := found.keys() & more.keys():
                raise ValueError(
                    f"{min(both)} is in {named('--shadow')} and in {named('--canary')}: a model can have only one "
                    "candidate"
                )
            found |= more
        return found

    @property
    def origins(self) -> tuple[str, ...]:
        """--cors-origins, one by one."""
        return tuple(filter(None, map(str.strip, self.cors_origins.split(","))))
