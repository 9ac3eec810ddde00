"""A frozen dataclass as a command line: names, variables, precedence, groups and secrets."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from deit.options import Secret, command_of, resolved, wrong


@dataclass(frozen=True, kw_only=True)
class Oven:
    degrees: Annotated[int, typer.Option(help="Temperature.")] = 180
    racks: Annotated[list[str] | None, typer.Option("--oven-rack", help="Racks.")] = None

    def __post_init__(self) -> None:
        if self.degrees > 300:
            raise wrong("--degrees", self.degrees, "give at most 300")


@dataclass(frozen=True, kw_only=True)
class Bakery:
    oven: Oven = field(default_factory=Oven)
    open: Annotated[bool, typer.Option(help="Open.")] = True
    bread: Annotated[str | None, typer.Option(help="Bread.")] = None
    safe_code: Secret | None = None


def bake(*arguments: str, prefix: str | None = "BAKERY", **environment: str) -> Bakery:
    app, seen = typer.Typer(), []
    app.command()(command_of(Bakery, prefix)(seen.append))
    done = CliRunner().invoke(app, arguments, env=environment, catch_exceptions=False)
    if done.exit_code:
        raise ValueError(done.stderr)
    return seen[0]


def test_without_a_word_everything_is_as_declared() -> None:
    assert bake() == Bakery()


def test_a_flag_beats_the_variable_and_the_variable_the_default() -> None:
    assert bake(BAKERY_DEGREES="200").oven.degrees == 200
    assert bake("--degrees=210", BAKERY_DEGREES="200").oven.degrees == 210
    assert bake("--open", BAKERY_OPEN="0").open
    assert not bake(BAKERY_OPEN="0").open


def test_an_option_that_names_itself_has_the_variable_of_that_name() -> None:
    assert bake("--oven-rack=a", "--oven-rack=b").oven.racks == ["a", "b"]
    assert bake(BAKERY_OVEN_RACK="a").oven.racks == ["a"]
    assert bake(BAKERY_RACKS="a").oven.racks is None


def test_an_empty_variable_is_none() -> None:
    """Compose passes ${NAME:-} on as an empty text."""
    assert bake(BAKERY_DEGREES="", BAKERY_BREAD="", BAKERY_OPEN="") == Bakery()


def test_without_a_prefix_there_are_no_variables() -> None:
    assert bake(prefix=None, BAKERY_DEGREES="200", DEGREES="200") == Bakery()


def test_a_group_checks_its_own_values_and_names_the_option() -> None:
    with pytest.raises(ValueError, match=r"--degrees \(DEIT_DEGREES\) is 301"):
        bake("--degrees=301")


def test_a_value_of_another_type_names_option_and_variable() -> None:
    with pytest.raises(ValueError, match=r"(?s)--degrees.*BAKERY_DEGREES.*integer"):
        bake(BAKERY_DEGREES="hot")


def test_a_secret_comes_from_its_variable_alone_and_no_log_shows_it() -> None:
    bakery = bake(BAKERY_SAFE_CODE="1234")
    assert bakery.safe_code is not None
    assert bakery.safe_code.text == "1234"
    assert "1234" not in f"{bakery} {bakery!r} {resolved(bakery)}"
    assert resolved(bakery)["safe_code"] == "hidden"
    with pytest.raises(ValueError, match="No such option"):
        bake("--safe-code=1234")


def test_a_child_process_does_not_inherit_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BAKERY_SAFE_CODE", "1234")
    bake()
    child = [sys.executable, "-c", "import os; print('BAKERY_SAFE_CODE' in os.environ)"]
    assert subprocess.run(child, env=os.environ, capture_output=True, text=True).stdout == "False\n"


def test_resolved_settings_are_plain_data_by_option() -> None:
    assert json.loads(json.dumps(resolved(bake("--no-open", BAKERY_DEGREES="200")))) == {
        "degrees": 200,
        "oven_rack": None,
        "open": False,
        "bread": None,
        "safe_code": None,
    }
