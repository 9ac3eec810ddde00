"""`deit benchmark`: one module a measurement, whose command is light to import."""

import signal
import sys

import typer

from benchmark.accuracy_command import accuracy
from benchmark.decoding_command import decoding
from benchmark.engines_command import engines
from benchmark.gateway_command import http
from benchmark.gpu_check.command import gpu_check
from benchmark.peers_command import peers
from benchmark.report_command import report
from benchmark.strategies_command import strategies
from benchmark.throughput_command import throughput
from benchmark.train_command import train

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback()
def benchmark() -> None:
    """Measure a running server, and what it is made of."""
    # An exception, so that servers which were started for a measurement end with it.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


app.command("accuracy")(accuracy)
app.command("throughput")(throughput)
app.command("http")(http)
app.command("engines")(engines)
app.command("decoding")(decoding)
app.command("train")(train)
app.command("strategies")(strategies)
app.command("peers")(peers)
app.command("report")(report)
app.command("gpu-check")(gpu_check)
