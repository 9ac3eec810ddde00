"""`deit classify`: sends images, folders and patterns to a running server."""

import asyncio
import csv
import glob
import json
import sys
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from deit.errors import DeitError
from serving.client import DEFAULT_URL, AsyncClient, Classification, Refused
from serving.client.clients import ClassifyOptions

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".avif")
"""Files taken from a folder. A file that is named itself is sent whatever its suffix: the server reads its bytes."""


@dataclass(frozen=True)
class FileOutcome:
    """The outcome for one file: the answer, or why there is none."""

    file: str
    answer: Classification | None
    problem: str | None = None


class Unclassified(DeitError):
    """Some files have no answer."""


@app.command()
def classify(
    files: Annotated[
        list[str],
        typer.Argument(help="Images, folders (searched recursively), and patterns such as 'holiday/**/*.jpg'."),
    ],
    url: Annotated[str, typer.Option(envvar="DEIT_URL", help="Address of the server.")] = DEFAULT_URL,
    model: Annotated[str | None, typer.Option(help="Name of the model. Default: the server's.")] = None,
    version: Annotated[str | None, typer.Option(help="Version of the model. Default: the newest.")] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Predictions per image, best first.")] = 1,
    min_probability: Annotated[
        float | None, typer.Option(min=0, max=1, help="Leave out classes below this probability.")
    ] = None,
    heads: Annotated[
        bool, typer.Option("--heads", help="Also show whether both heads agree, and how far apart they are.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Write one JSON object per line.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Write CSV, one row per prediction.")] = False,
    concurrency: Annotated[
        int,
        typer.Option(
            min=1,
            help="Requests in flight. Lower it on a slow connection; the command slows down by itself when the "
            "server is busy.",
        ),
    ] = 8,
) -> None:
    """Classify images with a running server.

    Results are printed in the order of the files. Set DEIT_API_KEY if the server
    needs a key. Exit status: 0 every image was classified, 1 some were not,
    2 wrong usage.
    """
    if as_json and as_csv:
        raise typer.BadParameter("--json and --csv exclude each other; choose one")
    found = list(dict.fromkeys(path for given in files for path in find(given)))
    write = write_json if as_json else csv_writer(heads) if as_csv else write_text
    options = ClassifyOptions(model=model, version=version, top_k=top_k, min_probability=min_probability, heads=heads)
    failed = asyncio.run(_classify(found, url, options, concurrency, write))
    if failed:
        raise Unclassified(f"{failed} of {len(found)} images not classified")


def find(given: str) -> Iterator[Path]:
    """The files that one argument names, sorted. Raises BadParameter when there is none."""
    path = Path(given)
    if path.is_file():
        yield path
        return
    # Path.glob takes no absolute pattern
    matches = path.rglob("*") if path.is_dir() else map(Path, glob.glob(given, recursive=True))  # noqa: PTH207
    files = [match for match in matches if match.is_file() and not match.name.startswith(".")]
    pictures = sorted(file for file in files if file.suffix.lower() in SUFFIXES)
    others = Counter(file.suffix.lower() or file.name for file in files if file.suffix.lower() not in SUFFIXES)
    if not pictures:
        what = f"the folder does not contain an image ({', '.join(SUFFIXES)})" if path.is_dir() else "not found"
        raise typer.BadParameter(f"{given}: {what}")
    if others:
        left_out = ", ".join(f"{count} {kind}" for kind, count in others.most_common(8))
        print(f"{given}: left out {others.total()} that are not {', '.join(SUFFIXES)}: {left_out}", file=sys.stderr)
    yield from pictures


async def _classify(
    files: list[Path], url: str, options: ClassifyOptions, concurrency: int, write: Callable[[FileOutcome], None]
) -> int:
    """Write an outcome for each file; how many have no answer."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    failed = 0
    console = Console(stderr=True)
    columns = (*Progress.get_default_columns()[:-1], MofNCompleteColumn(), TimeRemainingColumn())
    async with AsyncClient(url) as client:
        with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
            task = progress.add_task("classifying", total=len(files))
            async for outcome in outcomes(client, files, options, concurrency):
                failed += outcome.answer is None
                write(outcome)
                progress.advance(task)
    return failed


async def outcomes(
    client: AsyncClient, files: list[Path], options: ClassifyOptions, concurrency: int
) -> AsyncIterator[FileOutcome]:
    """Outcomes in the order of the files, with at most `concurrency` in flight.

    Raises:
        ClientError: the error is not due to a file, so further ones would fail too.
    """
    turns = asyncio.Semaphore(concurrency)

    async def outcome(file: Path) -> FileOutcome:
        async with turns:
            try:
                return FileOutcome(str(file), await client.classify(file, **options))
            except Refused as refusal:
                if refusal.status in (401, 404):
                    raise
                return FileOutcome(str(file), None, f"{refusal.title}: {refusal.detail}")
            except OSError as error:
                return FileOutcome(str(file), None, f"the file cannot be read: {error.strerror}")

    on_their_way: deque[asyncio.Task[FileOutcome]] = deque()
    try:
        for file in files:
            if len(on_their_way) == 2 * concurrency:
                yield await on_their_way.popleft()
            on_their_way.append(asyncio.create_task(outcome(file)))
        while on_their_way:
            yield await on_their_way.popleft()
    finally:
        for task in on_their_way:
            task.cancel()
        await asyncio.gather(*on_their_way, return_exceptions=True)


def write_text(outcome: FileOutcome) -> None:
    if outcome.answer is None:
        print(f"{outcome.file}: {outcome.problem}", file=sys.stderr)
        return
    said = ", ".join(f"{each.label} {each.probability:.1%}" for each in outcome.answer.predictions) or "nothing certain"
    print(f"{outcome.file}: {said}{_agreement(outcome.answer)}")


def _agreement(answer: Classification) -> str:
    if answer.heads is None:
        return ""
    apart = f"{answer.heads.jensen_shannon_divergence:.3f} bit apart"
    if answer.heads.agree:
        return f" (heads agree, {apart})"
    ours, theirs = answer.heads.class_head[0].label, answer.heads.distillation_head[0].label
    return f" (class head: {ours}, distillation head: {theirs}, {apart})"


def write_json(outcome: FileOutcome) -> None:
    line: dict[str, Any] = {"file": outcome.file}
    line |= {"problem": outcome.problem} if outcome.answer is None else asdict(outcome.answer)
    print(json.dumps({name: value for name, value in line.items() if value is not None}, ensure_ascii=False))


def csv_writer(heads: bool) -> Callable[[FileOutcome], None]:
    """Writes rows to stdout, after a header."""
    columns = ["file", "model", "version", "rank", "label", "index", "probability"]
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow([*columns, *(["agree", "divergence_bits"] if heads else []), "problem"])

    def write(outcome: FileOutcome) -> None:
        blank = [""] * (len(columns) - 1 + 2 * heads)
        if outcome.answer is None:
            writer.writerow([outcome.file, *blank, outcome.problem])
            return
        answer = outcome.answer
        agreement = [answer.heads.agree, answer.heads.jensen_shannon_divergence] if answer.heads else []
        for rank, each in enumerate(answer.predictions, 1):
            row = [outcome.file, answer.model, answer.version, rank, each.label, each.index, each.probability]
            writer.writerow([*row, *agreement, ""])
        if not answer.predictions:
            writer.writerow([outcome.file, answer.model, answer.version, *blank[2:], ""])

    return write
