"""The options of `deit triton`."""

import ipaddress
from dataclasses import dataclass, field
from typing import Annotated

from typer import Option

from deit.options import named, wrong
from serving.settings.log import LogSettings
from serving.settings.panels import ACCESS
from serving.settings.triton import TritonSettings


@dataclass(frozen=True, kw_only=True)
class StandaloneSettings:
    """The options of `deit triton`."""

    triton: TritonSettings = field(default_factory=TritonSettings)
    host: Annotated[
        str,
        Option(
            help="Address of gRPC and metrics. Set 0.0.0.0 in a container, or :: if it has IPv6; the metrics then "
            "listen on IPv6 only.",
            rich_help_panel=ACCESS,
        ),
    ] = "127.0.0.1"
    insecure: Annotated[
        bool,
        Option(
            "--insecure",
            help="Accept other machines, although Triton does not check API keys. Set it only where the network lets "
            "only the gateway through.",
            rich_help_panel=ACCESS,
        ),
    ] = False
    log: LogSettings = field(default_factory=LogSettings)

    def __post_init__(self) -> None:
        try:
            is_loopback = ipaddress.ip_address(self.host).is_loopback
        except ValueError as error:
            raise wrong("--host", repr(self.host), "give an IP address, such as 127.0.0.1, 0.0.0.0 or ::") from error
        if not is_loopback and not self.insecure:
            raise wrong(
                "--host",
                self.host,
                f"this accepts other machines, and Triton does not check API keys; add {named('--insecure')} if the "
                "network lets only the gateway through",
            )
