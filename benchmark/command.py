"""`deit benchmark`: one module a measurement, whose command is light to import."""

import typer

from benchmark.decoding_command import decoding
from benchmark.gateway_command import http
from benchmark.throughput_command import throughput

app = typer.Typer(no_args_is_help=True)


@app.callback()
def benchmark() -> None:
    """Measure a running server, and what it is made of."""


app.command("throughput")(throughput)
app.command("http")(http)
app.command("decoding")(decoding)
