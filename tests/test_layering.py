"""Who may import whom: the promise behind `make serve` without torch, and behind stages that talk through files."""

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from deit.cli import SUBCOMMANDS
from tests.conftest import REPOSITORY_ROOT

PACKAGES = ("deit", "training", "export", "serving", "benchmark", "bulk", "studies")
HEAVY = {"torch", "torchvision", "timm", "onnx", "onnxscript", "onnxruntime", "tensorrt", "pyarrow", "ray"}

# package -> what of ours it may import besides itself; the longest name that fits an importing file counts
ALLOWED = {
    "deit": (),
    "training": ("deit",),
    "export": (
        "deit",
        "training.model",
        "training.checkpoint",
        "training.opening",
        "training.images",
        "training.data",
        "training.columns",
    ),
    "serving": ("deit",),
    "serving.gateway": ("deit", "serving.settings"),
    "serving.embedded": ("deit", "serving.settings", "serving.gateway"),
    "serving.client": ("deit",),
    "bulk": ("deit",),
    "benchmark": ("deit", "training", "export", "serving"),
    "studies": ("deit", "training", "export", "serving", "benchmark"),
}
# Packages that stay free of heavy libraries, and what runs in Triton's own process rather than in ours.
LIGHT = ("deit", "serving")
IN_TRITON = ("serving.embedded.backends", "serving.embedded.jpeg_process", "deit.cuda_provider")

COMMAND_LINE = ("deit.cli", "deit.__main__")


class Import(NamedTuple):
    """`module` names `name` in a line, also inside a function."""

    module: str
    line: int
    name: str


def sources() -> dict[str, str]:
    """Every file of ours by its module's name."""
    files = (file for package in PACKAGES for file in sorted((REPOSITORY_ROOT / package).rglob("*.py")))
    return {module_of(file): file.read_text() for file in files}


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(REPOSITORY_ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(modules: dict[str, str]) -> list[Import]:
    """What the sources import; of ours always the name of a file."""
    return [
        Import(module, line, name)
        for module, source in modules.items()
        for line, name in imported_names(source, modules)
    ]


@functools.cache
def import_statements(source: str) -> list[ast.stmt]:
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import | ast.ImportFrom)]


def imported_names(source: str, modules: dict[str, str]) -> Iterator[tuple[int, str]]:
    for node in import_statements(source):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, "relative imports hide who imports whom"
            assert node.level == 0, "relative imports hide who imports whom"
            whole = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from ((node.lineno, name if name in modules else node.module) for name in whole)


def is_in(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def is_forbidden(found: Import) -> bool:
    """Whether an import breaks a rule: a direction, a heavy library, or a command outside the command line."""
    if found.name.partition(".")[0] in HEAVY:
        return is_in(found.module, LIGHT) and not is_in(found.module, IN_TRITON)
    if not is_in(found.name, PACKAGES):
        return False
    if re.search(r"(^|[._])command$", found.name) or found.name in COMMAND_LINE:
        return found.module not in COMMAND_LINE
    own = max((package for package in ALLOWED if is_in(found.module, (package,))), key=len)
    if own == "serving":  # its files at the top put the parts together
        return not is_in(found.name, ("serving", *ALLOWED[own]))
    return not is_in(found.name, (own, *ALLOWED[own]))


def circles(found: list[Import], modules: dict[str, str]) -> list[list[str]]:
    """Files that import each other, directly or through others."""
    graph = {module: {each.name for each in found if each.module == module} & modules.keys() for module in modules}
    reached = {module: reachable(module, graph) for module in graph}
    together = ({other for other in reached[module] if module in reached[other]} for module in graph)
    return sorted({tuple(sorted(circle)) for circle in together if circle})


def reachable(start: str, graph: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    to_visit = [start]
    while to_visit:
        new = graph[to_visit.pop()] - found
        found |= new
        to_visit += new
    return found


MODULES = sources()


def test_imports_go_down_and_only_the_command_line_imports_commands() -> None:
    assert [each for each in imports(MODULES) if is_forbidden(each)] == []


def test_no_files_import_each_other() -> None:
    assert circles(imports(MODULES), MODULES) == []


@pytest.mark.parametrize(
    ("module", "line", "name"),
    [
        ("serving.launcher", "import torch", "torch"),
        ("serving.launcher", "def f():\n    from timm.data import Mixup", "timm.data"),
        ("serving.gateway.app", "from serving.embedded.reload import Reloader", "serving.embedded.reload"),
        ("deit.labels", "from training.model import Teacher", "training.model"),
        ("export.joint", "from training import loop", "training.loop"),
        ("training.loop", "from deit.cli import main", "deit.cli"),
        ("training.evaluate_checkpoint", "from training.evaluate_command import app", "training.evaluate_command"),
        ("benchmark.load", "from studies.compare import compare", "studies.compare"),
    ],
)
def test_a_planted_violation_is_found(module: str, line: str, name: str) -> None:
    planted = {**MODULES, module: f"{MODULES[module]}\n{line}\n"}
    assert [(each.module, each.name) for each in imports(planted) if is_forbidden(each)] == [(module, name)]


def test_a_planted_circle_is_found() -> None:
    modules = {"a": "from b import x", "b": "def f():\n    import c", "c": "from a import y", "d": "import a"}
    assert circles(imports(modules), modules) == [("a", "b", "c")]


def test_no_two_classes_have_one_name() -> None:
    places: dict[str, list[str]] = {}
    for module, source in MODULES.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ClassDef) and node.name != "TritonPythonModel":  # the name is Triton's
                places.setdefault(node.name, []).append(module)
    assert {name: modules for name, modules in places.items() if len(modules) > 1} == {}


NOT_FOR_HELP = {"fastapi", "grpc", "numpy", "PIL", "tritonclient", "uvicorn"}
HELP = ["", *SUBCOMMANDS, "benchmark http"]


def test_help_loads_no_heavy_library() -> None:
    program = (
        "import sys\n"
        "from deit.cli import main\n"
        "for command in sys.argv[1:]:\n"
        "    sys.argv = ['deit', *command.split(), '--help']\n"
        "    try: main()\n"
        "    except SystemExit: pass\n"
        f"    print('loaded by', command, sorted({HEAVY | NOT_FOR_HELP!r} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program, *HELP], capture_output=True, text=True, check=True)
    loaded = [line for line in done.stdout.splitlines() if line.startswith("loaded by")]
    assert loaded == [f"loaded by {command} []" for command in HELP]
