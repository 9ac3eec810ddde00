"""A command whose options are the fields of a frozen dataclass: name, type, default and help are declared once.

A field is declared as `epochs: Annotated[int, typer.Option(help="...")] = 300`, and the option has its name unless
`Option("--another")` gives one. A field that holds another such dataclass adds the options of that one, so commands
share options by holding the same dataclass. The dataclass checks the values in `__post_init__` with ValueError, which
becomes a usage error (exit status 2).

With a prefix each option has an environment variable too: DEIT_MAX_IMAGES for --max-images. A flag overrides the
variable, and the variable the default.
"""

import ctypes
import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import typer
from typer.models import ParameterInfo

Config = TypeVar("Config")

MODEL_SOURCES = "a checkpoint folder, a weights file, a timm name with tag or hf-hub:OWNER/NAME"
"""What every option that names a trained model accepts; training.opening reads it."""

SERVING = "DEIT"
"""Prefix of the environment variables of `deit serve` and `deit triton`."""


class Secret:
    """Text that no log may show.

    A field of this type is not an option, because every user of the machine can read a command line. It is read from
    its environment variable, which is then removed, so that neither child processes nor /proc have it.
    """

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return "hidden"


def command_of(
    config_class: type[Config], prefix: str | None = None
) -> Callable[[Callable[[Config], None]], Callable[..., None]]:
    """Decorates `run(config)` so that typer sees one option for each field of `config_class`.

    Args:
        prefix: of the environment variables; None for no variables.
    """

    def decorate(run: Callable[[Config], None]) -> Callable[..., None]:
        def command(**values: Any) -> None:
            try:
                config = _construct(config_class, values, prefix)
            except ValueError as error:
                raise typer.BadParameter(str(error)) from error
            run(config)

        parameters = [option.parameter(prefix) for option in _options(config_class) if not option.is_secret]
        command.__doc__ = run.__doc__
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return command

    return decorate


def resolved(config: Any) -> dict[str, Any]:
    """Each option with its value as plain data, for the log. Secrets are hidden."""
    values: dict[str, Any] = {}
    for name, member in _members(type(config)).items():
        value = getattr(config, name)
        if isinstance(member, type):
            values |= resolved(value)
        else:
            values[member.name] = str(value) if isinstance(value, Path | Secret) else value
    return values


def variable_of(option: str, prefix: str = SERVING) -> str:
    """The environment variable of an option, such as DEIT_MAX_IMAGES for --max-images or max_images."""
    return f"{prefix}_{option.removeprefix('--').replace('-', '_').upper()}"


def named(option: str) -> str:
    """An option of `deit serve` or `deit triton` in a message, with its variable: --port (DEIT_PORT)."""
    return f"{option} ({variable_of(option)})"


def wrong(option: str, value: object, remedy: str) -> ValueError:
    """The error for an impossible value: it names the option, the variable and the value, and says what to do."""
    return ValueError(f"{named(option)} is {value}: {remedy}")


@dataclass(frozen=True)
class _Option:
    """One option as its field declares it."""

    name: str
    type: Any
    info: ParameterInfo
    default: Any

    @property
    def is_secret(self) -> bool:
        return Secret in get_args(self.type)

    def parameter(self, prefix: str | None) -> inspect.Parameter:
        """What typer reads."""
        info = copy(self.info)
        if prefix is not None:
            info.envvar = variable_of(self.name, prefix)
        return inspect.Parameter(
            self.name, inspect.Parameter.KEYWORD_ONLY, default=self.default, annotation=Annotated[self.type, info]
        )


def _members(config_class: type) -> dict[str, _Option | type]:
    """By field, its option or the dataclass of options that it holds."""
    hints = get_type_hints(config_class, include_extras=True)
    return {
        field.name: hint if isinstance(hint, type) and is_dataclass(hint) else _option(field, hint)
        for field in fields(config_class)
        for hint in (hints[field.name],)
    }


def _options(config_class: type) -> Iterator[_Option]:
    for member in _members(config_class).values():
        if isinstance(member, type):
            yield from _options(member)
        else:
            yield member


def _option(field: Field[Any], hint: Any) -> _Option:
    plain, *notes = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    info = next((note for note in notes if isinstance(note, ParameterInfo)), typer.Option())
    # typer keeps the first name of Annotated[..., Option("--name")] where a default would be
    names = [str(name) for name in (info.default, *(info.param_decls or ())) if name is not ...]
    name = names[0].partition("/")[0].removeprefix("--").replace("-", "_") if names else field.name
    if field.default_factory is not MISSING:
        return _Option(name, plain, info, field.default_factory())
    return _Option(name, plain, info, inspect.Parameter.empty if field.default is MISSING else field.default)


def _construct(config_class: type[Config], values: Mapping[str, Any], prefix: str | None) -> Config:
    """The dataclass with the ones that it holds. Raises ValueError when values contradict each other."""
    arguments: dict[str, Any] = {}
    for name, member in _members(config_class).items():
        if isinstance(member, type):
            arguments[name] = _construct(member, values, prefix)
        elif member.is_secret:
            text = None if prefix is None else _take(variable_of(member.name, prefix))
            arguments[name] = None if text is None else Secret(text)
        else:
            arguments[name] = values[member.name]
    return config_class(**arguments)


def _take(variable: str) -> str | None:
    """The value of a variable, which is then removed.

    Also from /proc/PID/environ, which shows the memory that the program began with; unsetting leaves that as it is.
    """
    text = os.environ.get(variable)
    if text is not None:
        getenv = ctypes.CDLL(None).getenv
        getenv.restype = ctypes.c_void_p
        ctypes.memset(getenv(os.fsencode(variable)), 0, len(os.fsencode(text)))
        del os.environ[variable]
    return text
