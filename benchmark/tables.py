"""The report's tables: rows of text made from records, the same for Markdown, HTML and the README."""

from collections.abc import Callable, Sequence
from typing import Literal

from benchmark.paper import DISAGREEMENT, STRATEGIES, TEACHERS, TRANSFER, published
from benchmark.results import Condition, Figure, Record
from benchmark.table import Table

Cell = Callable[[Record], str]


def newest(records: Sequence[Record], machine: str) -> list[Record]:
    """Of each measurement on one machine the last, in the order in which they were first made."""
    found: dict[tuple[object, ...], Record] = {}
    for record in records:
        if record.environment.machine == machine:
            found[record.kind, record.model, record.precision, *sorted(_key(record).items())] = record
    return list(found.values())


def _key(record: Record) -> dict[str, str]:
    """What makes it another measurement, and not the same one again."""
    outcome = ("offered_per_s", "settings", "version", "count")
    return {name: str(value) for name, value in record.conditions.items() if name not in outcome}


def tables(records: Sequence[Record]) -> dict[str, Table]:
    """The tables that the records fill, by name. Records of one machine."""
    return {name: table for name, table in every_table(records).items() if table.rows}


def every_table(records: Sequence[Record]) -> dict[str, Table]:
    """All that there are, also those without rows."""
    return {
        "paper": _paper(records),
        "throughput": _table(
            _of(records, "throughput"),
            "Triton, by perf_analyzer",
            {
                "model": lambda record: record.model,
                "precision": lambda record: record.precision,
                "batch": _condition("batch_size"),
                "in flight": _condition("concurrency"),
                "images/s": _figure("images_per_s"),
                "p50 ms": _figure("p50_ms"),
                "p95 ms": _figure("p95_ms"),
                "p99 ms": _figure("p99_ms"),
                "mean batch": _figure("mean_batch"),
                "of limit": _share("limit_share"),
            },
            "Random pixels over gRPC. A latency is that of a request, which is a whole batch; the mean batch is what "
            "Triton computed at once. Brackets: lowest to highest round.",
        ),
        "http": _table(
            _of(records, "http"),
            "The gateway, by HTTP",
            {
                "model": lambda record: record.model,
                "precision": lambda record: record.precision,
                "load": _load,
                "images/s": _figure("images_per_s"),
                "p50 ms": _figure("p50_ms"),
                "p95 ms": _figure("p95_ms"),
                "p99 ms": _figure("p99_ms"),
                "p99/p50": _figure("p99_over_p50"),
                "ideal queue": _figure("ideal_p99_over_p50"),
                "refused": _share("refused_share"),
                "client cores": _figure("client_cores", digits=2),
                "MiB": _figure("memory_mib", digits=0),
                "of Triton alone": _share("engine_share"),
            },
            "Real photographs. Closed loop: so many requests always in flight. Open loop: random arrivals at a share "
            "of the best closed-loop rate, latency from when a request was due. Ideal queue: p99/p50 of a server with "
            "as many cores at that load, to which every request is the same work and nothing else costs time (M/D/c). "
            "The client runs on the same machine.",
        ),
        "cost": _table(
            _of(records, "http"),
            "Processor time of an image, by HTTP",
            {
                "model": lambda record: record.model,
                "precision": lambda record: record.precision,
                "load": _load,
                "all ms": _figure("server_cpu_ms_per_image", digits=2),
                "gateway ms": _figure("cpu_deit_ms_per_image", digits=2),
                "decoders ms": _figure("cpu_python_ms_per_image", digits=2),
                "Triton ms": _figure("cpu_tritonserver_ms_per_image", digits=2),
                "engine ms": _figure("cpu_triton_python_backend_stub_ms_per_image", digits=2),
                "mean batch": _figure("mean_batch"),
            },
            "By process: the gateway is one, decoders and instances of the engine are several. The cores divided by "
            "what decoding and the engine take is the rate at which a server would answer whose every other part were "
            "free.",
        ),
        "peers": _table(
            _of(records, "peer"),
            "Other servers, in turns with ours",
            {
                "server": lambda record: f"{record.conditions['server']} {record.conditions['version']}",
                "model": lambda record: f"{record.model} ({record.precision})",
                "settings": _condition("settings"),
                "in flight": _condition("concurrency"),
                "images/s": _figure("images_per_s"),
                "p50 ms": _figure("p50_ms"),
                "p99 ms": _figure("p99_ms"),
                "failed": _share("failed_share"),
                "server cores": _figure("server_cores", digits=2),
                "MiB": _figure("memory_mib", digits=0),
            },
            "Same graph, photographs and client; each server alone on the machine; each at the better of its settings "
            "(benchmark/peers/tuning.py). Every server was seen to answer as ours does.",
        ),
        "pairs": _table(
            _of(records, "pair"),
            "Ours and one other server, side by side",
            {
                "server": lambda record: f"{record.conditions['server']} {record.conditions['version']}",
                "model": lambda record: f"{record.model} ({record.precision})",
                "in flight": _condition("concurrency"),
                "ours, of its rate": _figure("ratio", digits=2),
                "windows of each": lambda record: str(record.figures["ratio"].runs),
                "images/s": _figure("peer_images_per_s"),
                "ours": _figure("images_per_s"),
                "CPU ms an image": _figure("peer_cpu_ms_per_image", digits=2),
                "ours, CPU ms": _figure("cpu_ms_per_image", digits=2),
            },
            "Both servers up, windows in turns: of two that follow each other the machine is nearly the same, so the "
            "ratio (median of all, with the lowest and the highest) tells smaller differences than the table above. "
            "While the other is measured, ours still asks its model once a "
            "second whether it answers, which takes the other about 1 % of the machine.",
        ),
        "accuracy": _table(
            _of(records, "accuracy"),
            "Accuracy by way of asking",
            {
                "model": lambda record: record.model,
                "precision": lambda record: record.precision,
                "way": _condition("way"),
                "data": lambda record: f"{record.conditions['data']} ({record.conditions['count']})",
                "top-1": _percent("top1"),
                "top-5": _percent("top5"),
                "ReaL top-1": _percent("real_top1"),
                "differs": _percent("disagreement"),
                "largest difference": _figure("max_difference", scientific=True),
            },
            "differs: share of the images decided differently from the first row's; largest difference: of a "
            "probability.",
        ),
        "paper_teachers": TEACHERS,
        "paper_strategies": STRATEGIES,
        "strategies": _table(
            _of(records, "strategy"),
            "Strategies of distillation, measured here",
            {
                "comparison": _condition("comparison"),
                "arm, read-out": lambda record: record.model,
                "top-1": _percent("top1"),
                "lowest": _percent("top1", "lowest"),
                "highest": _percent("top1", "highest"),
                "seeds": _condition("seeds"),
                "training images": _condition("training_images"),
                "epochs": _condition("epochs"),
                "judged on": _condition("data"),
            },
            "Means over seeds. Another task than the paper's, not to be set beside its figures; what the seeds allow "
            "to be said stands in docs/results.",
        ),
        "paper_disagreement": DISAGREEMENT,
        "disagreement": _disagreement(_of(records, "disagreement")),
        "paper_transfer": TRANSFER,
        "engines": _table(
            _of(records, "engine"),
            "Precisions and engines: in Triton, alone, and the machine's limit",
            {
                "model": lambda record: record.model,
                "precision": lambda record: record.precision,
                "engine": _condition("engine"),
                "batch": _condition("batch_size"),
                "in Triton: images/s": _figure("images_per_s"),
                "alone: images/s": _figure("alone_images_per_s"),
                "Triton of alone": _share("alone_share"),
                "limit: images/s": _figure("limit_images_per_s"),
                "of limit": _share("limit_share"),
            },
            "In Triton by perf_analyzer, in turns with the engine in one process with as many instances and "
            "threads. The limit is that of the products alone, at the precision.",
        ),
        "train": _plain(_of(records, "train"), "Training step and loader"),
        "limit": _table(
            _of(records, "machine_limit"),
            "The machine's limit: matrix products alone",
            {
                "precision": lambda record: record.precision,
                "GFLOP/s": _figure("gflop_per_s"),
                "model": lambda record: record.model,
                "GFLOP/image": _figure("gflop_per_image", digits=2),
                "images/s at most": _most,
            },
            "A model whose every operation ran as fast as the fastest matrix product.",
        ),
    }


def failures(records: Sequence[Record]) -> list[str]:
    """What was tried and gave no figures."""
    return [
        f"{record.kind} {record.model} ({', '.join(f'{k} {v}' for k, v in record.conditions.items())}): "
        f"{record.failure.splitlines()[0][:200]}"
        for record in records
        if record.failure
    ]


def _paper(records: Sequence[Record]) -> Table:
    """The rows of the paper's table 5 that were measured here."""
    rows = []
    for record in _of(records, "eager"):
        if (row := published(record.conditions["pytorch"])) is not None:
            rows.append(
                (
                    row.name,
                    f"{row.images_per_s:,.1f}",
                    _figure("images_per_s")(record),
                    str(record.conditions["batch_size"]),
                    _share("limit_share")(record),
                    f"{row.top1:.1f} %",
                    "" if row.real is None else f"{row.real:.1f} %",
                    "" if row.v2 is None else f"{row.v2:.1f} %",
                )
            )
    return Table(
        "The paper's table 5, and the same way here",
        ("model", "paper, V100: images/s", "here: images/s", "batch", "of limit", "paper: top-1", "ReaL", "V2"),
        tuple(rows),
        "PyTorch as it is, float32, mean of 30 runs with the slowest and the fastest; random weights where none were "
        "given, which changes no time. The paper's accuracies are those of its own weights on ImageNet.",
    )


def _disagreement(records: Sequence[Record]) -> Table:
    """A row for each decider, in the order of its first comparison; the columns are the same deciders by number."""
    shares = {(record.conditions["comparison"], record.model, record.conditions["other"]): record for record in records}
    deciders = list(
        dict.fromkeys((comparison, str(each)) for comparison, left, right in shares for each in (right, left))
    )

    def share(ours: tuple[Condition, str], theirs: tuple[Condition, str]) -> str:
        comparison = ours[0]
        if ours == theirs or comparison != theirs[0]:
            return "0.000" if ours == theirs else ""
        record = shares.get((comparison, ours[1], theirs[1])) or shares.get((comparison, theirs[1], ours[1]))
        return "" if record is None else f"{record.figures['disagreement'].value:.3f}"

    return Table(
        "Disagreement between deciders, measured here",
        ("comparison", "decider", *(str(number) for number in range(1, len(deciders) + 1))),
        tuple(
            (str(decider[0]), f"{number} {decider[1]}", *(share(decider, other) for other in deciders))
            for number, decider in enumerate(deciders, start=1)
        ),
        "Share of the test images that two decide differently, mean over seeds.",
    )


def _table(records: Sequence[Record], title: str, columns: dict[str, Cell], note: str) -> Table:
    """Without the columns that no record fills."""
    kept = {
        heading: cell for heading, cell in columns.items() if any(cell(record) for record in records if record.figures)
    }
    rows = [tuple(cell(record) for cell in kept.values()) for record in records if record.figures]
    return Table(title, tuple(kept), tuple(rows), note)


def _plain(records: Sequence[Record], title: str) -> Table:
    """Every condition and every figure as it is."""
    columns: dict[str, Cell] = {"model": lambda record: record.model, "precision": lambda record: record.precision}
    for record in records:
        columns |= {name.replace("_", " "): _condition(name) for name in record.conditions}
    for record in records:
        for name, figure in record.figures.items():
            digits = 2 if abs(figure.value) < 10 else 1
            columns[_heading(name, figure)] = _percent(name) if figure.unit == "share" else _figure(name, digits=digits)
    return _table(records, title, columns, "Brackets: lowest to highest run.")


def _heading(name: str, figure: Figure) -> str:
    words = name.removesuffix("_ms").removesuffix("_mib").replace("_per_s", "").replace("_", " ")
    return words if figure.unit == "share" else f"{words} ({figure.unit})"


def _of(records: Sequence[Record], kind: str) -> list[Record]:
    return [record for record in records if record.kind == kind]


def _condition(name: str) -> Cell:
    return lambda record: "" if (value := record.conditions.get(name)) is None else str(value)


# Of these a table tells the lowest and the highest too.
SPREAD = ("images_per_s", "peer_images_per_s", "ratio")


def _figure(name: str, *, digits: int = 1, scientific: bool = False) -> Cell:
    def cell(record: Record) -> str:
        figure = record.figures.get(name)
        if figure is None:
            return ""
        shape = ".1e" if scientific else f",.{digits}f"
        text = f"{figure.value:{shape}}"
        if figure.runs > 1 and figure.lowest is not None and figure.highest is not None and name in SPREAD:
            text += f" ({figure.lowest:{shape}} to {figure.highest:{shape}})"
        return text

    return cell


def _share(name: str) -> Cell:
    return lambda record: "" if (value := record.value(name)) is None else f"{100 * value:.0f} %"


def _percent(name: str, which: Literal["value", "lowest", "highest"] = "value") -> Cell:
    def cell(record: Record) -> str:
        value = getattr(record.figures.get(name), which, None)
        return "" if value is None else f"{100 * value:.2f} %"

    return cell


def _load(record: Record) -> str:
    if record.conditions["loop"] == "closed":
        return f"{record.conditions['concurrency']} in flight"
    offered, load = float(record.conditions["offered_per_s"] or 0), float(record.conditions["load"] or 0)
    return f"{offered:.1f}/s offered ({100 * load:.0f} %)"


def _most(record: Record) -> str:
    work = record.value("gflop_per_image")
    return "" if not work else f"{record.figures['gflop_per_s'].value / work:,.1f}"
