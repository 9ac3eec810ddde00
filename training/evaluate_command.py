"""`deit evaluate`."""

import json
from dataclasses import asdict

import typer

from deit.log import configure_logging
from deit.options import command_of
from training.evaluate_config import EvaluateConfig

READOUT_NAMES = {
    "class": "class token",
    "distillation": "distillation token",
    "joint": "joint probability (paper)",
    "joint_logit": "joint logit (DeiT's code)",
}

app = typer.Typer(add_completion=False)


@app.command()
@command_of(EvaluateConfig)
def evaluate(config: EvaluateConfig) -> None:
    """Report the accuracy of each read-out of a model, and where they disagree.

    Works under torchrun: each process takes its share of the images.
    """
    configure_logging("text")
    from training.evaluate_checkpoint import (
        evaluate_checkpoint,  # after parsing, so that --help and wrong usage need no torch
    )

    report = evaluate_checkpoint(config)
    if report is None:  # another process reports
        return
    if config.output is not None:
        config.output.write_text(json.dumps(asdict(report), indent=2) + "\n")
    typer.echo(f"{report.model}: {report.checkpoint}")
    typer.echo(
        f"{report.evaluation.images} images of {config.data}, shorter side to {report.preprocessing.resize_px} pixels, "
        f"crop of {report.preprocessing.image_size} (crop_pct {report.preprocessing.crop_pct:g}), "
        f"{report.preprocessing.interpolation}; {report.corrupt_images} images left out as undecodable\n"
    )
    accuracy = report.evaluation.accuracy
    columns = [key for key in ("top1", "top5", "real_top1", "real_top5") if f"class_{key}" in accuracy]
    typer.echo(f"{'read-out':28}" + "".join(f"{column.replace('_', ' '):>11}" for column in columns))
    for readout, name in READOUT_NAMES.items():
        if f"{readout}_top1" in accuracy:
            typer.echo(f"{name:28}" + "".join(f"{accuracy[f'{readout}_{column}']:11.2%}" for column in columns))

    deciders = report.evaluation.deciders
    typer.echo("\nshare of the images decided differently\n" + " " * 14 + "".join(f"{name:>14}" for name in deciders))
    for name, row in zip(deciders, report.evaluation.disagreement, strict=True):
        typer.echo(f"{name:14}" + "".join(f"{share:14.4f}" for share in row))
