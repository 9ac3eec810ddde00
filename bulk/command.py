"""`deit classify-dataset`."""

import typer

from bulk.config import BulkConfig
from deit.log import configure_logging
from deit.options import command_of

app = typer.Typer(add_completion=False)


@app.command()
@command_of(BulkConfig)
def classify_dataset(config: BulkConfig) -> None:
    """Classify whole data sets without a server, on this machine or a Ray cluster.

    Writes a parquet file for each part of the images. Killed processes are
    replaced; the same command resumes a job.
    """
    configure_logging("text")
    from bulk.classify import classify_dataset as run  # after parsing, so that --help and wrong usage are quick

    print(f"{run(config)} images are classified in {config.output}")
