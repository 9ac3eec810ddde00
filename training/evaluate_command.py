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

SHOWN = 10
"""Number of classes, and of confusions, that are printed."""

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
    sides = "both sides" if report.preprocessing.crop_mode == "squash" else "shorter side"
    typer.echo(
        f"{report.evaluation.images} images of {config.data}, {sides} to {report.preprocessing.resize_px} pixels, "
        f"crop of {report.preprocessing.image_size} (crop_pct {report.preprocessing.crop_pct:g}), "
        f"{report.preprocessing.interpolation}; {report.corrupt_images} images left out as undecodable\n"
    )
    accuracy = report.evaluation.accuracy
    columns = [key for key in ("top1", "top5", "real_top1", "real_top5") if f"class_{key}" in accuracy]
    typer.echo(f"{'read-out':28}" + "".join(f"{column.replace('_', ' '):>11}" for column in columns))
    for readout, name in READOUT_NAMES.items():
        if f"{readout}_top1" in accuracy:
            typer.echo(f"{name:28}" + "".join(f"{accuracy[f'{readout}_{column}']:11.2%}" for column in columns))

    by_class = report.evaluation.by_class
    assert by_class is not None  # evaluate_checkpoint asks for it
    losses = report.evaluation.loss
    typer.echo(
        f"\n{READOUT_NAMES[by_class.readout]}: loss {losses[by_class.readout]:.3f}, calibration error "
        f"{by_class.calibration_error:.2%}"
    )
    known = {label: accuracy for label, accuracy in enumerate(by_class.accuracy) if accuracy is not None}
    names = by_class.label_names
    for label in sorted(known, key=lambda label: known[label])[:SHOWN]:
        typer.echo(f"  {known[label]:7.2%} of {by_class.images[label]:6} images of {names[label]}")
    if len(known) > SHOWN:
        typer.echo(f"  (the weakest of {len(known)} classes; --output has all classes and confusions)")
    for label, answer, count in by_class.confusions[:SHOWN]:
        typer.echo(f"  {count:6} images of {names[label]} answered as {names[answer]}")

    deciders = report.evaluation.deciders
    typer.echo("\nshare of the images decided differently\n" + " " * 14 + "".join(f"{name:>14}" for name in deciders))
    for name, row in zip(deciders, report.evaluation.disagreement, strict=True):
        typer.echo(f"{name:14}" + "".join(f"{share:14.4f}" for share in row))
