"""Recipes as TOML files: option names with values, and the source of each number. Ours are in `presets/`."""

import tomllib
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).with_name("presets")


def preset_titles() -> dict[str, str]:
    """Our presets by name, with the first line of each."""
    return {
        file.stem: file.read_text().partition("\n")[0].removeprefix("# ")
        for file in sorted(FOLDER.glob("*.toml"), key=lambda file: file.stem)
    }


def read_preset(name: str) -> dict[str, Any]:
    """The option values of one of our presets, or of the TOML file at a path.

    Raises ValueError if the preset does not exist or is not TOML.
    """
    file = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    try:
        return tomllib.loads(file.read_text())
    except OSError as error:
        raise ValueError(
            f"--preset {name}: not found. Ours are {', '.join(preset_titles())}; or give the path of a .toml file"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"--preset {name}: not a TOML file: {error}") from error
