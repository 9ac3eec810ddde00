"""The summary of a run: its settings and course, and the accuracy of its best and last epochs."""

import json
from pathlib import Path
from typing import Any

from deit.durable import write_file
from training.curves import READOUTS, draw_curves, read_metrics

SUMMARY_FILE, CURVES_FILE = "report.md", "curves.svg"

SHOWN = (
    *("model", "model_arg", "preset", "image_size", "initial_checkpoint", "distillation", "token", "teacher"),
    *("label_weight", "temperature", "kl_reduction", "epochs", "batch_size", "repeated_augmentation", "optimizer"),
    *("learning_rate", "weight_decay", "drop_path", "ema_decay", "auto_augment", "mixing_probability", "precision"),
    "seed",
)
"""The settings that readers of a result ask for first; config.json has all."""


EVALUATED = {
    "test": "",
    "test_ema": ", averaged weights",
    "val": ", val",
    "val_ema": ", averaged weights, val",
}
"""Addition to a read-out's title, by the prefix of its metrics."""


def write_summary(folder: Path) -> Path:
    """Write report.md and curves.svg of a finished run from the files in its folder, and return the former."""
    metrics = read_metrics(folder / "metrics.jsonl")
    settings = json.loads((folder / "config.json").read_text())
    origin = json.loads((folder / "provenance.json").read_text())
    draw_curves([folder / "metrics.jsonl"], folder / CURVES_FILE)
    write_file(folder / SUMMARY_FILE, _markdown(folder.name, settings, origin, metrics))
    return folder / SUMMARY_FILE


def _markdown(name: str, settings: dict[str, Any], origin: dict[str, Any], metrics: list[dict[str, float]]) -> str:
    last = metrics[-1]
    hours = sum(line["train_s"] for line in metrics) / 3600
    rows = [
        (f"{title}{more}", f"{split}_{readout}")
        for split, more in EVALUATED.items()
        for readout, title in READOUTS.items()
        if f"{split}_{readout}_top1" in last
    ]
    versions = ", ".join(f"{package} {version}" for package, version in origin["versions"].items())
    data = "; ".join(
        f"{split}: {part['images']} images of {part['classes']} classes, fingerprint {part['fingerprint'][:12]}"
        for split, part in origin["data"].items()
    )
    return "\n".join(
        [
            f"# {name}",
            "",
            f"{settings['model']} after {last['epoch']} of {settings['epochs']} epochs: loss {last['loss']:.3f}, "
            f"{hours:.2f} hours of training at {last['train_images_per_s']:.0f} images/s in the last epoch, "
            f"{sum(line['skipped_steps'] for line in metrics):.0f} steps skipped, "
            f"{last['corrupt_images']:.0f} images left out as undecodable.",
            "",
            "| read-out | top-1 | top-5 | best top-1 of an epoch |",
            "|---|--:|--:|--:|",
            *(
                f"| {title} | {last[f'{key}_top1']:.2%} | {last[f'{key}_top5']:.2%} | "
                f"{max(line[f'{key}_top1'] for line in metrics if f'{key}_top1' in line):.2%} |"
                for title, key in rows
            ),
            "",
            "The best epoch was chosen on the images it is reported on, which flatters it; the last was not chosen.",
            "",
            f"![Loss and top-1 by epoch]({CURVES_FILE})",
            "",
            "| setting | value |",
            "|---|---|",
            *(f"| {key} | {settings[key]} |" for key in SHOWN if settings.get(key) is not None),
            "",
            f"Data: {settings['data']} ({data}). Commit {origin['commit']}; {versions}.",
            "",
        ]
    )
