"""Plots training runs: loss, and top-1 of each read-out, by epoch."""

import json
from pathlib import Path

from deit.durable import replacement
from deit.errors import DataError

READOUTS = {"joint": "joint", "distillation": "distillation head", "class": "class head"}
WIDTH_INCH, HEIGHT_INCH = 8.0, 3.2


def read_metrics(log: Path) -> list[dict[str, float]]:
    """The lines of a run's metrics.jsonl, one for each epoch.

    Raises:
        DataError: the file is missing, empty or not such a log.
    """
    try:
        lines = [json.loads(line) for line in log.read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise DataError(f"{log} cannot be read as a run's metrics.jsonl: {error}") from error
    if not lines or not all(isinstance(line, dict) and {"epoch", "loss"} <= line.keys() for line in lines):
        raise DataError(f"{log} is not a metrics.jsonl: each line needs an epoch and a loss")
    return lines


def draw_curves(logs: list[Path], output: Path) -> None:
    """Draw the runs side by side in one picture; its suffix decides the format.

    A run is named by its folder, or by its file where that is not called metrics.jsonl.
    """
    from matplotlib.figure import Figure  # only a picture needs it

    runs = {log.parent.name if log.name == "metrics.jsonl" else log.stem: read_metrics(log) for log in logs}
    figure = Figure(figsize=(WIDTH_INCH, HEIGHT_INCH), layout="constrained")
    loss_axes, accuracy_axes = figure.subplots(1, 2)
    for name, metrics in runs.items():
        epochs = [line["epoch"] for line in metrics]
        loss_axes.plot(epochs, [line["loss"] for line in metrics], label=name)
        split = "val" if "val_class_top1" in metrics[-1] else "test"  # the split that chose the best epoch
        for readout, title in READOUTS.items():
            key = f"{split}_{readout}_top1"
            if key in metrics[-1]:
                label = f"{name}, {title}" if f"{split}_joint_top1" in metrics[-1] else name
                evaluated = [line for line in metrics if key in line]
                accuracy_axes.plot(
                    [line["epoch"] for line in evaluated], [100 * line[key] for line in evaluated], label=label
                )
    loss_axes.set(xlabel="epoch", ylabel="training loss")
    accuracy_axes.set(xlabel="epoch", ylabel="top-1, %")
    for axes in (loss_axes, accuracy_axes):
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    output.parent.mkdir(parents=True, exist_ok=True)
    with replacement(output) as temporary:
        # without a date, the same logs give the same file
        metadata = {"Date": None} if output.suffix == ".svg" else None
        figure.savefig(temporary, format=output.suffix.removeprefix("."), metadata=metadata)
