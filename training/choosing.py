"""Finds the best epoch of a run and decides whether to stop, by the accuracy after each epoch."""

from typing import Any


def score_key(line: dict[str, Any], judged_by: str) -> str | None:
    """Key of the number that judges an epoch: top-1 of the joint read-out, else of the class head; None if the epoch
    was not evaluated.
    """
    keys = (f"{judged_by}_joint_top1", f"{judged_by}_class_top1")
    return next((key for key in keys if key in line), None)


def is_best(metrics: list[dict[str, Any]], judged_by: str) -> bool:
    """Whether the last line of metrics.jsonl is an evaluated epoch that is better than all before it."""
    scores = _scores(metrics, judged_by)
    return (
        len(scores) > 0
        and scores[-1][0] == metrics[-1]["epoch"]
        and all(score < scores[-1][1] for _, score in scores[:-1])
    )


def is_stalled(metrics: list[dict[str, Any]], judged_by: str, patience: int | None) -> bool:
    """Whether the best epoch is at least `patience` epochs back; False if patience is None."""
    scores = _scores(metrics, judged_by)
    if patience is None or not scores:
        return False
    best = max(score for _, score in scores)
    first_best = next(epoch for epoch, score in scores if score == best)
    return int(scores[-1][0]) - first_best >= patience


def _scores(metrics: list[dict[str, Any]], judged_by: str) -> list[tuple[int, float]]:
    """Epoch and score of each evaluated epoch."""
    return [(int(line["epoch"]), float(line[key])) for line in metrics if (key := score_key(line, judged_by))]
