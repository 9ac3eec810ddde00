"""The report's tables: rows of text made from records, the same for Markdown, HTML, the README and the terminal."""

from collections.abc import Sequence
from typing import Literal

from benchmark import paper
from benchmark.results import Condition, Record
from benchmark.table import Cell, MeasuredTable, Table, condition, figure, model, percent, precision, share


def load(record: Record) -> str:
    if record.conditions["loop"] == "closed":
        return f"{record.conditions['concurrency']} in flight"
    offered, of_best = float(record.conditions["offered_per_s"] or 0), float(record.conditions["load"] or 0)
    return f"{offered:.1f}/s offered ({100 * of_best:.0f} %)"


def papers(figure: Literal["images_per_s", "top1", "real", "v2"], unit: str = "") -> Cell:
    """What the paper's table 5 has for a model that was measured in PyTorch, if it has the model."""

    def cell(record: Record) -> str:
        value = getattr(paper.published(record.conditions["pytorch"]), figure, None)
        return "" if value is None else f"{value:,.1f}{unit}"

    return cell


EAGER = MeasuredTable(
    kind="eager",
    title="The paper's table 5, and the same measurement here",
    columns={
        "model": lambda record: record.model if (row := paper.published(record.model)) is None else row.name,
        "precision": precision,
        "compiled": lambda record: "yes" if record.conditions.get("compiled") else "",
        "batch": condition("batch_size"),
        "here: images/s": figure("images_per_s"),
        "of matmul rate": share("limit_share"),
        "paper, V100: images/s": papers("images_per_s"),
        "paper: top-1": papers("top1", " %"),
        "ReaL": papers("real", " %"),
        "V2": papers("v2", " %"),
    },
    note=(
        "PyTorch without a server; brackets: slowest to fastest run. Weights are random if none were given, which does "
        "not change the time. Of matmul rate: relative to the rate of plain matrix products in the same precision. "
        "The paper's accuracies are those of its own weights on ImageNet."
    ),
)

PRODUCTS = MeasuredTable(
    kind="machine_limit",
    title="Matrix products alone",
    columns={
        "precision": precision,
        "device": condition("device"),
        "side": condition("side"),
        "GFLOP/s": figure("gflop_per_s"),
    },
    note="No model computes faster than its matrix products.",
)

THROUGHPUT = MeasuredTable(
    kind="throughput",
    title="Triton, by perf_analyzer",
    columns={
        "model": model,
        "precision": precision,
        "batch": condition("batch_size"),
        "in flight": condition("concurrency"),
        "images/s": figure("images_per_s"),
        "p50 ms": figure("p50_ms"),
        "p95 ms": figure("p95_ms"),
        "p99 ms": figure("p99_ms"),
        "mean batch": figure("mean_batch"),
    },
    note=(
        "Random pixels over gRPC. Latency is per request, which is a whole batch; mean batch is the number of images "
        "that Triton computed at once. Brackets: lowest to highest round."
    ),
)

HTTP = MeasuredTable(
    kind="http",
    title="The gateway, over HTTP",
    columns={
        "model": model,
        "precision": precision,
        "load": load,
        "images/s": figure("images_per_s"),
        "p50 ms": figure("p50_ms"),
        "p95 ms": figure("p95_ms"),
        "p99 ms": figure("p99_ms"),
        "p99/p50": figure("p99_over_p50"),
        "refused": share("refused_share"),
        "client cores": figure("client_cores", digits=2),
        "MiB": figure("memory_mib", digits=0),
        "share of Triton alone": share("engine_share"),
    },
    note=(
        "Real photographs. Closed loop: a fixed number of requests in flight. Open loop: random arrivals at a share "
        "of the best closed-loop rate, latency from when a request was due. "
        "The client runs on the same machine."
    ),
)


def unavoidable(record: Record) -> str:
    """The share of the processor time that decoding and the engine take."""
    names = ("server_cpu_ms_per_image", "cpu_python_ms_per_image", "cpu_triton_python_backend_stub_ms_per_image")
    if not all(name in record.figures for name in names):  # Triton runs elsewhere, or its engine is a library
        return ""
    everything, *needed = (record.figures[name].value for name in names)
    return f"{100 * sum(needed) / everything:.0f} %"


COST = MeasuredTable(
    kind="http",
    title="CPU time per image, over HTTP",
    columns={
        "model": model,
        "precision": precision,
        "load": load,
        "all ms": figure("server_cpu_ms_per_image", digits=2),
        "gateway ms": figure("cpu_deit_ms_per_image", digits=2),
        "decoders ms": figure("cpu_python_ms_per_image", digits=2),
        "Triton ms": figure("cpu_tritonserver_ms_per_image", digits=2),
        "engine ms": figure("cpu_triton_python_backend_stub_ms_per_image", digits=2),
        "decoders and engine": unavoidable,
        "mean batch": figure("mean_batch"),
    },
    note=(
        "CPU time per image, by kind of process: one gateway, several decoders and instances of the engine. The share "
        "of decoders and engine is how close the server comes to one without any other cost."
    ),
)

PEERS = MeasuredTable(
    kind="peer",
    title="Other servers, in turns with ours",
    columns={
        "server": lambda record: f"{record.conditions['server']} {record.conditions['version']}",
        "model": lambda record: f"{record.model} ({record.precision})",
        "settings": condition("settings"),
        "in flight": condition("concurrency"),
        "images/s": figure("images_per_s"),
        "p50 ms": figure("p50_ms"),
        "p99 ms": figure("p99_ms"),
        "failed": share("failed_share"),
        "server cores": figure("server_cores", digits=2),
        "MiB": figure("memory_mib", digits=0),
    },
    note=(
        "All servers run the same graph for the same photographs and client, alone on the machine, with the better of "
        "their settings (benchmark/peers/tuning.py). Their predictions were checked against ours."
    ),
)

PAIRS = MeasuredTable(
    kind="pair",
    title="Ours and one other server, side by side",
    columns={
        "server": lambda record: f"{record.conditions['server']} {record.conditions['version']}",
        "model": lambda record: f"{record.model} ({record.precision})",
        "in flight": condition("concurrency"),
        "ours / peer": figure("ratio", digits=2),
        "windows": lambda record: str(record.figures["ratio"].runs),
        "peer: images/s": figure("peer_images_per_s"),
        "ours: images/s": figure("images_per_s"),
        "peer: CPU ms per image": figure("peer_cpu_ms_per_image", digits=2),
        "ours: CPU ms per image": figure("cpu_ms_per_image", digits=2),
    },
    note=(
        "Both servers run, and measurement windows alternate between them. The machine changes little from one window "
        "to the next, so the ratio (median, lowest and highest) resolves smaller differences than the table above. "
        "While the peer is measured, ours still probes its model once a second, which takes about 1 % of the machine."
    ),
)

ACCURACY = MeasuredTable(
    kind="accuracy",
    title="Accuracy, through each path",
    columns={
        "model": model,
        "precision": precision,
        "through": condition("way"),
        "data": lambda record: f"{record.conditions['data']} ({record.conditions['count']})",
        "top-1": percent("top1"),
        "top-5": percent("top5"),
        "ReaL top-1": percent("real_top1"),
        "differs": percent("disagreement"),
        "largest difference": figure("max_difference", scientific=True),
    },
    note=(
        "differs: share of images whose top-1 class is not that of the first row; largest difference: in any "
        "probability."
    ),
)

STRATEGIES = MeasuredTable(
    kind="strategy",
    title="Distillation strategies, measured here",
    columns={
        "comparison": condition("comparison"),
        "arm, read-out": model,
        "top-1": percent("top1"),
        "lowest": percent("top1", "lowest"),
        "highest": percent("top1", "highest"),
        "seeds": condition("seeds"),
        "training images": condition("training_images"),
        "epochs": condition("epochs"),
        "evaluated on": condition("data"),
    },
    note=(
        "Means over seeds. The task is not the paper's, so do not compare the figures with it; docs/results has the "
        "conclusions."
    ),
)


def in_triton(record: Record) -> str:
    """The rate in Triton, for records that have it; gpu-check's engines run alone."""
    return figure("images_per_s")(record) if "alone_images_per_s" in record.figures else ""


def alone(record: Record) -> str:
    return figure("alone_images_per_s" if "alone_images_per_s" in record.figures else "images_per_s")(record)


ENGINES = MeasuredTable(
    kind="engine",
    title="Precisions and engines: in Triton, alone, and the machine's limit",
    columns={
        "model": model,
        "precision": precision,
        "engine": condition("engine"),
        "batch": condition("batch_size"),
        "in Triton: images/s": in_triton,
        "alone: images/s": alone,
        "Triton / alone": share("alone_share"),
        "limit: images/s": figure("limit_images_per_s"),
        "of limit": share("limit_share"),
    },
    note=(
        "In Triton: by perf_analyzer. Alone: the engine in one process with as many instances and threads, in turns "
        "with Triton. The limit, which earlier versions measured, is the rate of matrix products alone in that "
        "precision."
    ),
)

TRAIN = MeasuredTable(
    kind="train",
    title="Training step and loader",
    columns={
        "model": lambda record: " ".join((record.model, str(record.conditions.get("model_arg", "")))).strip(),
        "precision": precision,
        "part": condition("part"),
        "implementation": condition("implementation"),
        "pixels": condition("image_size"),
        "batch size": condition("batch_size"),
        "device": condition("device"),
        "workers": condition("workers"),
        "teacher": condition("teacher"),
        "images/s": figure("images_per_s"),
        "CPU ms per image": figure("cpu_ms", digits=2),
        "load": lambda record: f"{record.environment.load_average:.0f}",
    },
    note="Brackets: lowest to highest run. Load: average when the measurement began; if it is far above the number of "
    "cores, compare only rows that were measured in turns.",
)


def newest(records: Sequence[Record], machine: str) -> list[Record]:
    """The last of each measurement on one machine, in the order in which they were first made."""
    found: dict[tuple[object, ...], Record] = {}
    for record in records:
        if record.environment.machine == machine:
            found[record.kind, record.model, record.precision, *sorted(_key(record).items())] = record
    return list(found.values())


def _key(record: Record) -> dict[str, str]:
    """What distinguishes it from other measurements; a repetition has the same."""
    outcome = ("offered_per_s", "settings", "version", "count")
    # a condition that came later is off in earlier records
    return {name: str(value) for name, value in record.conditions.items() if name not in outcome and value is not False}


def tables(records: Sequence[Record]) -> dict[str, Table]:
    """The tables that the records fill, by name. Records of one machine."""
    return {name: table for name, table in every_table(records).items() if table.rows}


def every_table(records: Sequence[Record]) -> dict[str, Table]:
    """All that there are, in the report's order, also those without rows."""
    return {
        "paper": EAGER.of(records),
        "throughput": THROUGHPUT.of(records),
        "http": HTTP.of(records),
        "cost": COST.of(records),
        "peers": PEERS.of(records),
        "pairs": PAIRS.of(records),
        "accuracy": ACCURACY.of(records),
        "strategies": STRATEGIES.of(records),
        "disagreement": disagreement(records),
        "products": PRODUCTS.of(records),
        "engines": ENGINES.of(records),
        "train": TRAIN.of(records),
    }


def failures(records: Sequence[Record]) -> list[str]:
    return [
        f"{record.kind} {record.model} ({', '.join(f'{k} {v}' for k, v in record.conditions.items())}): "
        f"{record.failure.splitlines()[0][:200]}"
        for record in records
        if record.failure
    ]


def disagreement(records: Sequence[Record]) -> Table:
    """A row for each decider, in the order of its first comparison; the columns are the same deciders by number."""
    shares = {
        (record.conditions["comparison"], record.model, record.conditions["other"]): record
        for record in records
        if record.kind == "disagreement"
    }
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
        "Share of the test images on which two disagree, mean over seeds.",
    )
