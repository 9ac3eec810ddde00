"""What each arm of a comparison of distillation strategies gets right, and on how many images two deciders differ.

The figures that `deit compare` writes into its report, as records, so that they stand beside the paper's tables.
"""

from statistics import mean

from benchmark.results import Condition, Environment, Figure, Record
from studies.comparison import find_runs, read_comparison
from studies.decisions import decide
from studies.strategies_command import StrategiesConfig
from training.processes import choose_device


def measure_strategies(config: StrategiesConfig, environment: Environment, *, command: str) -> list[Record]:
    """Evaluate the last checkpoint of every run, as `deit compare` does.

    Raises:
        DataError: the runs are not finished or cannot be compared.
    """
    comparison = read_comparison(config.comparison)
    runs = find_runs(comparison, config.runs)
    decided = decide(runs, config.data, workers=config.workers, device=choose_device(config.device))
    first = next(iter(next(iter(runs.values())).values()))
    shared: dict[str, Condition] = {
        "comparison": config.comparison.stem,
        "data": f"{first.provenance['data']['test']['images']} test images of {config.data.name}",
        "seeds": decided.seeds,
        "epochs": first.settings["epochs"],
        "training_images": first.provenance["data"]["train"]["images"],
    }

    def record(kind: str, model: str, conditions: dict[str, Condition], figure: str, values: list[float]) -> Record:
        return Record(
            kind=kind,  # type: ignore[arg-type]  # Record checks it
            model=model,
            precision="fp32",
            command=command,
            environment=environment,
            conditions=shared | conditions,
            figures={
                figure: Figure(
                    value=mean(values), unit="share", lowest=min(values), highest=max(values), runs=len(values)
                )
            },
        )

    deciders = {f"teacher {spec}": [decisions] * decided.seeds for spec, decisions in decided.teachers.items()}
    deciders |= {side.replace(":", ", "): decisions for side, decisions in decided.sides().items()}
    return [
        *(
            record("strategy", name, {}, "top1", [float((each == decided.labels).mean()) for each in by_seed])
            for name, by_seed in deciders.items()
        ),
        *(
            record(
                "disagreement",
                left,
                {"other": right},
                "disagreement",
                [float((ours != theirs).mean()) for ours, theirs in zip(deciders[left], deciders[right], strict=True)],
            )
            for place, left in enumerate(deciders)
            for right in list(deciders)[:place]
        ),
    ]
