"""The highest version number that each model ever had, so that none is reused."""

import json
from pathlib import Path

from deit.durable import write_file
from deit.errors import RepositoryError
from deit.repository.models import version_numbers

NUMBERS_FILE = ".version_numbers.json"
"""File in the repository, where Triton looks only at folders: the highest number of each model that lost a version."""


def newest_number(model: Path) -> int:
    """The highest number that a version of this model ever had; 0 if there never was one.

    Raises:
        RepositoryError: the file of numbers cannot be read.
    """
    present = version_numbers(model) if model.is_dir() else []
    return max([*present, _remembered(model.parent).get(model.name, 0)], default=0)


def remember_newest_number(model: Path) -> None:
    """Call before a version, or the whole model, is removed."""
    numbers = _remembered(model.parent) | {model.name: newest_number(model)}
    write_file(model.parent / NUMBERS_FILE, json.dumps(numbers, indent=1, sort_keys=True) + "\n")


def _remembered(repository: Path) -> dict[str, int]:
    file = repository / NUMBERS_FILE
    try:
        return {str(name): int(number) for name, number in json.loads(file.read_text()).items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError) as error:
        raise RepositoryError(
            f"{file} does not hold the highest version number of each model ({error}): write it as JSON, such as "
            '{"deit_cifar10": 3}, or remove it if no version was ever removed'
        ) from error
