"""A command whose options are the fields of a frozen dataclass: name, type, default and help stand in one place.

A field is declared as `epochs: Annotated[int, typer.Option(help="...")] = 300`; the dataclass checks the values in
`__post_init__` with ValueError, which becomes a usage error (exit status 2).
"""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, get_type_hints

import typer

Config = TypeVar("Config")


def command_of(config_class: type[Config]) -> Callable[[Callable[[Config], None]], Callable[..., None]]:
    """Decorates `run(config)` so that typer sees one option for each field of `config_class`."""

    def decorate(run: Callable[[Config], None]) -> Callable[..., None]:
        def command(**values: Any) -> None:
            try:
                config = config_class(**values)
            except ValueError as error:
                raise typer.BadParameter(str(error)) from error
            run(config)

        command.__doc__ = run.__doc__
        command.__annotations__ = get_type_hints(config_class, include_extras=True)
        command.__signature__ = _signature(config_class)  # type: ignore[attr-defined]
        return command

    return decorate


def _signature(config_class: type[Any]) -> inspect.Signature:
    """The constructor's, with the value of a default that each object has for itself, such as a list."""
    signature = inspect.signature(config_class)
    factories = {
        field.name: field.default_factory
        for field in dataclasses.fields(config_class)
        if field.default_factory is not dataclasses.MISSING
    }
    parameters = [
        parameter.replace(default=factories[name]()) if name in factories else parameter
        for name, parameter in signature.parameters.items()
    ]
    return signature.replace(parameters=parameters)
