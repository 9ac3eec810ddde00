"""Documents agree with the code."""

import re
import tomllib

import pytest

from serving.gateway.errors import PROBLEMS
from tests.conftest import REPOSITORY_ROOT


def read(name: str) -> str:
    return (REPOSITORY_ROOT / name).read_text()


def test_the_error_table_is_the_gateways() -> None:
    documented = re.findall(r"^\| (\d{3}) \| `([a-z-]+)` \|", read("docs/serving.md"), re.MULTILINE)
    assert sorted(documented) == sorted((str(problem.status), name) for name, problem in PROBLEMS.items())


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads(read("pyproject.toml"))
    requirements = project["project"]["dependencies"] + [
        requirement
        for group in (project["project"]["optional-dependencies"], project["dependency-groups"])
        for requirements in group.values()
        for requirement in requirements
    ]
    names = {re.match(r"[A-Za-z0-9_-]+", requirement)[0] for requirement in requirements} - {"deit-server"}
    table = set(re.findall(r"^\| `([A-Za-z0-9_-]+)` \|", read("docs/dependencies.md"), re.MULTILINE))
    assert names == table


def test_the_readme_stays_short() -> None:
    assert len(read("README.md").splitlines()) <= 120


def test_links_between_documents_lead_somewhere() -> None:
    for document in [*REPOSITORY_ROOT.glob("*.md"), *REPOSITORY_ROOT.glob("docs/*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_commands_of_the_makefile_that_documents_name_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))
    for document in [*REPOSITORY_ROOT.glob("*.md"), *REPOSITORY_ROOT.glob("docs/*.md")]:
        named = set(re.findall(r"`make ([a-z-]+)|^\$ make ([a-z-]+)", document.read_text(), re.MULTILINE))
        assert {name for pair in named for name in pair if name} <= targets, document.name


SERVING = ("serving/gateway", "serving/embedded")


@pytest.mark.parametrize(
    ("document", "folders", "at_least"),
    [
        ("docs/architecture.md", ("", "serving"), 40),
        (
            "docs/request.md",
            ("", "serving/gateway", "serving/embedded", "serving/embedded/backends", "tests/serving/gateway"),
            40,
        ),
        ("docs/maintainers.md", ("", "serving/embedded", "tests/serving/gateway"), 30),
        ("docs/leaving-triton-2024.md", ("", "serving/embedded"), 10),
    ],
)
def test_files_that_documents_name_exist(document: str, folders: tuple[str, ...], at_least: int) -> None:
    named = re.findall(r"`((?:[a-z_]+/)+|(?:[a-z_0-9]+/)*[a-z_0-9]+\.(?:py|sh|yml))`", read(document))
    assert len(named) >= at_least
    roots = [REPOSITORY_ROOT / folder for folder in folders]
    assert [name for name in named if not any((root / name).exists() for root in roots)] == []
