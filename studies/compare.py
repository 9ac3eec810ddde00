"""Arms of finished runs over the same seeds, as Markdown. Every sentence about a result follows from the data."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Annotated

import numpy as np
import typer
from typer import Argument, Option

from benchmark.environment import this_environment
from benchmark.outcome import keep
from benchmark.results import Condition, Figure, Result
from deit.checkpoint import read_checkpoint_config
from deit.durable import write_file
from deit.errors import DataError
from deit.log import configure_logging
from deit.options import command_of
from studies import run_study
from studies.comparison import (
    LEAST_SEEDS,
    Claim,
    Comparison,
    PairedDifference,
    Runs,
    TrainingRun,
    differing_settings,
    find_runs,
    image_chance,
    read_comparison,
    spread,
)
from studies.decisions import Decided, Decisions, decide
from studies.gains import Gains, gains_svg
from training.processes import choose_device


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    comparison: Annotated[Path, Argument(help="TOML file with arms and claims; see training/recipes.")]
    data: Annotated[Path, Option(help="The data set that the runs were tested on.")]
    output: Annotated[Path, Option(help="The Markdown file to write.")]
    runs: Annotated[Path, Option(help="Folder that holds the runs.")] = Path("runs")
    workers: Annotated[int, Option(min=0, help="Processes that decode.")] = 2
    device: Annotated[str, Option(help="torch's name of the device; auto: a GPU if there is one.")] = "auto"
    results: Annotated[
        Path | None, Option(help="Also record the figures in this folder, for the report of `deit benchmark`.")
    ] = None


app = typer.Typer()


@app.command()
@command_of(CompareConfig)
def compare(config: CompareConfig) -> None:
    """Compare arms of finished runs over the same seeds: read-outs, paired differences, disagreement, cosines.

    Says of each claim whether the seeds reproduce it, contradict it or do not resolve it.
    """
    configure_logging("text")
    comparison = read_comparison(config.comparison)
    runs = find_runs(comparison, config.runs)
    decided = decide(runs, config.data, workers=config.workers, device=choose_device(config.device))
    picture = config.output.with_suffix(".svg")
    if gained := gains(runs, decided):
        write_file(picture, gains_svg(next(iter(runs)), gained))
    write_file(config.output, "\n".join(report(comparison, runs, decided, gained, picture.name)) + "\n")
    typer.echo(config.output)
    if config.results is not None:
        environment = this_environment()
        keep(list(results(config, runs, decided)), environment, config.results, "python", "-m", "studies.compare")


def report(comparison: Comparison, runs: Runs, decided: Decided, gained: Gains, picture: str) -> Iterator[str]:
    """The lines of the report; `picture` is the file beside it that shows what was gained."""
    yield from (f"# {comparison.title}", "")
    if comparison.about:
        yield from (comparison.about, "")
    yield from _origin(runs, decided)
    if comparison.claims:
        yield from ("## Conclusions", "")
        yield (
            f"A claim is resolved if at least {LEAST_SEEDS} seeds agree, the 95 % interval of their paired differences "
            "(Student's) is on one side of zero, and p over the test images is below 0.05 (Student's t-test of each "
            "image's mean over the seeds). The verdict is on the paper's result; a difference where the paper has none "
            "counts as a contradiction."
        )
        yield ""
        yield from (_sentence(claim, runs, decided) for claim in comparison.claims)
        yield ""
    yield from _accuracy(runs, decided)
    if gained:
        yield from _paired(runs, gained, picture)
    if comparison.paper:
        yield from ("## The paper's results", "", comparison.paper, "")
    yield from _settings(runs)
    yield from _cost(runs)
    yield from _disagreement(runs, decided)
    if decided.cosines:
        yield from _cosines(decided)


def _origin(runs: Runs, decided: Decided) -> Iterator[str]:
    every = [run for by_seed in runs.values() for run in by_seed.values()]
    first = every[0]
    versions = first.provenance["versions"]
    preprocessing = read_checkpoint_config(first.checkpoint).preprocessing
    yield (
        f"Written by `studies.compare`; every figure is measured on {len(decided.labels):,} test images with the last "
        f"checkpoint of each run, in float32. Seeds {', '.join(map(str, runs[next(iter(runs))]))}; shorter side to "
        f"{preprocessing.resize_px} px, crop of {preprocessing.image_size} px (crop_pct {preprocessing.crop_pct:g}); "
        f"{first.provenance['data']['train']['images']:,} training images, {first.settings['epochs']} epochs; trained "
        f"with precision {first.settings['precision']}{' and torch.compile' if first.settings['compile'] else ''} on "
        f"{_all(run.provenance.get('machine', 'a machine that was not noted') for run in every)}; "
        f"torch {versions['torch']}, timm {versions['timm']}; commit "
        f"{_all(_commit(run) for run in every)}."
    )
    yield ""


def _commit(run: TrainingRun) -> str:
    """Twelve digits, and whether the sources were changed."""
    noted = str(run.provenance["commit"])
    return noted[:12] + ("-dirty" if noted.endswith("-dirty") else "")


def _sentence(claim: Claim, runs: Runs, decided: Decided) -> str:
    """The verdict on a claim, from the data alone."""
    left, right = (_values(side, claim.measure, runs, decided) for side in (claim.left, claim.right))
    difference = PairedDifference(differences=tuple(a - b for a, b in zip(left, right, strict=True)))
    seeds = len(difference.differences)
    how_often = {1: "more often than", 0: "as often as", -1: "less often than"}[claim.sign]
    what = f"{'is right' if claim.measure == 'top1' else 'agrees with its teacher'} {how_often}"
    if seeds == 1:
        found = f"{100 * difference.mean:+.2f} points in one seed, so without a spread"
    else:
        low, high = (100 * (difference.mean + sign * difference.half_width) for sign in (-1, 1))
        interval = f"95 % interval {low:+.2f} to {high:+.2f}"
        found = f"{100 * difference.mean:+.2f} points on average over {seeds} seeds, {interval}"
    chance = None
    if claim.measure == "top1":
        hits = [
            np.stack([decisions == decided.labels for decisions in _decisions(side, decided)])
            for side in (claim.left, claim.right)
        ]
        chance = image_chance(*hits)
        found += f"; p = {chance:.2g} over the images"
    paper = f". The paper: {claim.paper}" if claim.paper else ""
    verdict = difference.verdict(chance, claim.sign)
    return f"- **{verdict}**: {_title(claim.left)} {what} {_title(claim.right)}. {found}{paper}"


def _accuracy(runs: Runs, decided: Decided) -> Iterator[str]:
    seeds = list(next(iter(runs.values())))
    yield from ("## Top-1", "")
    yield from _header(["arm", "read-out", *(f"seed {seed}" for seed in seeds), "mean", "deviation"], left=2)
    for spec, decisions in decided.teachers.items():
        yield _row(f"teacher {spec}", "", *([""] * len(seeds)), f"{100 * (decisions == decided.labels).mean():.2f}", "")
    for arm, by_seed in decided.students.items():
        for readout in next(iter(by_seed.values())):
            values = _values(f"{arm}:{readout}", "top1", runs, decided)
            average, deviation = spread(values)
            numbers = [_number(100 * value, ".2f") for value in (*values, average, deviation)]
            yield _row(arm, readout, *numbers)
    yield ""


def gains(runs: Runs, decided: Decided) -> Gains:
    """Of each further arm over the first one, as shares of the images."""
    baseline, *others = runs
    right = _values(baseline, "top1", runs, decided)
    return {
        arm: PairedDifference(
            differences=tuple(a - b for a, b in zip(_values(arm, "top1", runs, decided), right, strict=True))
        )
        for arm in others
    }


def _paired(runs: Runs, gained: Gains, picture: str) -> Iterator[str]:
    seeds, baseline = list(next(iter(runs.values()))), next(iter(runs))
    yield from (f"## Points above {baseline}, seed by seed", "", f"![Points above {baseline}]({picture})", "")
    yield (
        "The read-out is joint for arms with two tokens, else the class token's. The interval is Student's, of paired "
        "differences; values inside it are not resolved."
    )
    yield ""
    yield from _header(["arm", *(f"seed {seed}" for seed in seeds), "mean", "deviation", "95 % interval"], left=1)
    for arm, gain in gained.items():
        numbers = [f"{100 * value:+.2f}" for value in (*gain.differences, gain.mean)]
        yield _row(arm, *numbers, _number(100 * gain.deviation, ".2f"), f"± {100 * gain.half_width:.2f}")
    yield ""


def _settings(runs: Runs) -> Iterator[str]:
    yield from ("## Settings that differ between arms", "", "All other settings are equal.", "")
    yield from _header(["setting", *runs], left=1 + len(runs))
    for name, by_arm in differing_settings(runs).items():
        yield _row(f"`{name}`", *("" if by_arm[arm] is None else str(by_arm[arm]) for arm in runs))
    yield ""


def _cost(runs: Runs) -> Iterator[str]:
    yield from ("## Time", "", "As logged by the runs; the machine may have done other work.", "")
    yield from _header(["arm", "training images/s, median", "training time of a run, median"], left=1)
    for arm, by_seed in runs.items():
        speeds = [line["train_images_per_s"] for run in by_seed.values() for line in run.metrics]
        times = [sum(line["train_s"] for line in run.metrics) for run in by_seed.values()]
        yield _row(arm, f"{np.median(speeds):,.0f}", f"{np.median(times):,.0f} s")
    yield ""


def _disagreement(runs: Runs, decided: Decided) -> Iterator[str]:
    """Shares of the images on which two deciders differ: the mean over seeds."""
    seeds = decided.seeds
    deciders: dict[str, list[Decisions]] = {"label": [decided.labels] * seeds}
    deciders |= {f"teacher {spec}": [decisions] * seeds for spec, decisions in decided.teachers.items()}
    deciders |= {_title(side): decisions for side, decisions in decided.sides().items()}
    yield from ("## Disagreement: share of the images, mean over seeds", "")
    yield from _header(["", *(str(number) for number in range(1, len(deciders) + 1))], left=1)
    largest = 0.0
    for number, (name, ours) in enumerate(deciders.items(), start=1):
        cells = []
        for theirs in deciders.values():
            average, deviation = spread([float((a != b).mean()) for a, b in zip(ours, theirs, strict=True)])
            largest = max(largest, deviation if seeds > 1 else 0.0)
            cells.append(f"{average:.3f}")
        yield _row(f"{number} {name}", *cells)
    yield from ("", f"The standard deviation over seeds is at most {largest:.3f}.", "")


def _cosines(decided: Decided) -> Iterator[str]:
    arms = list(decided.cosines)
    yield from ("## Cosine of class and distillation token", "")
    yield from ("Mean ± standard deviation over seeds; after a block and the norm, of the means over images.", "")
    yield from _header(["where", *arms], left=1)
    depth = max(len(cosines.blocks) for by_seed in decided.cosines.values() for cosines in by_seed.values())
    places = ["learned tokens", "with positions", *(f"after block {block}" for block in range(1, depth + 1))]
    by_arm = {
        arm: [
            [
                cosines.tokens,
                cosines.tokens_with_positions,
                *(average for average, _ in cosines.blocks),
                cosines.final_norm[0],
                cosines.heads[0],
            ]
            for cosines in by_seed.values()
        ]
        for arm, by_seed in decided.cosines.items()
    }
    for place, name in enumerate([*places, "after the final norm", "rows of the heads"]):
        cells = (spread([values[place] for values in by_arm[arm]]) for arm in arms)
        yield _row(name, *(f"{average:.3f} ± {_number(deviation, '.3f')}" for average, deviation in cells))
    yield ""


def _values(side: str, measure: str, runs: Runs, decided: Decided) -> list[float]:
    """One number for each seed: how often the side is right, or agrees with its teacher."""
    if measure == "top1":
        return [float((decisions == decided.labels).mean()) for decisions in _decisions(side, decided)]
    arm = side.partition(":")[0]
    specs = [run.settings["teacher"] for run in runs[arm].values()]
    if None in specs:
        raise DataError(f"a claim asks how often {side} agrees with its teacher, but it has none")
    every = zip(_decisions(side, decided), specs, strict=True)
    return [float((decisions == decided.teachers[spec]).mean()) for decisions, spec in every]


def _decisions(side: str, decided: Decided) -> list[Decisions]:
    """The decisions of each seed, for an arm or arm:read-out."""
    arm, _, readout = side.partition(":")
    decisions = []
    for of_readout in decided.students[arm].values():
        chosen = readout or ("joint" if "joint" in of_readout else "class")
        if chosen not in of_readout:
            raise DataError(f"a claim names {side}, but {arm} has the read-outs {', '.join(of_readout)}")
        decisions.append(of_readout[chosen])
    return decisions


def _title(side: str) -> str:
    arm, _, readout = side.partition(":")
    return f"{arm} ({readout})" if readout else arm


def _all(texts: Iterator[str]) -> str:
    return " and ".join(dict.fromkeys(texts))


def _header(names: list[str], *, left: int) -> Iterator[str]:
    yield _row(*names)
    yield "|" + "|".join("---" if place < left else "--:" for place in range(len(names))) + "|"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _number(value: float, form: str) -> str:
    """Empty for NaN, such as the deviation of one seed."""
    return "" if math.isnan(value) else format(value, form)


def results(config: CompareConfig, runs: Runs, decided: Decided) -> Iterator[Result]:
    """Top-1 of each decider and the disagreement of each two, for the report of `deit benchmark`."""
    first = next(iter(next(iter(runs.values())).values()))
    shared: dict[str, Condition] = {
        "comparison": config.comparison.stem,
        "data": f"{first.provenance['data']['test']['images']} test images of {config.data.name}",
        "seeds": decided.seeds,
        "epochs": first.settings["epochs"],
        "training_images": first.provenance["data"]["train"]["images"],
    }

    def result(kind: str, model: str, conditions: dict[str, Condition], figure: str, values: list[float]) -> Result:
        return Result(
            kind=kind,  # type: ignore[arg-type]  # Result checks it
            model=model,
            precision="fp32",
            conditions=shared | conditions,
            figures={
                figure: Figure(
                    value=mean(values), unit="share", lowest=min(values), highest=max(values), runs=len(values)
                )
            },
        )

    deciders = {f"teacher {spec}": [decisions] * decided.seeds for spec, decisions in decided.teachers.items()}
    deciders |= {side.replace(":", ", "): decisions for side, decisions in decided.sides().items()}
    for name, by_seed in deciders.items():
        yield result("strategy", name, {}, "top1", [float((each == decided.labels).mean()) for each in by_seed])
    for place, left in enumerate(deciders):
        for right in list(deciders)[:place]:
            pairs = zip(deciders[left], deciders[right], strict=True)
            values = [float((ours != theirs).mean()) for ours, theirs in pairs]
            yield result("disagreement", left, {"other": right}, "disagreement", values)


if __name__ == "__main__":
    run_study(app)
