"""A look at the model repository before Triton starts, for what Triton would report late or not at all."""

from pathlib import Path

from deit.errors import RepositoryError
from deit.model import CONFIG_FILE, MODEL_NAME


def model_names(repository: Path) -> list[str]:
    """Names of the models in the folder, sorted.

    Raises:
        RepositoryError: the folder is missing or holds no model, or a name is not one. Triton passes the name to a
            command line (CVE-2025-23316), so only MODEL_NAME reaches it.
    """
    if not repository.is_dir():
        raise RepositoryError(
            f"the model repository {repository} does not exist; "
            "write one with `deit export`, or name another with --model-repository"
        )
    names = sorted(entry.name for entry in repository.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise RepositoryError(f"the model repository {repository} holds no model; write one with `deit export`")
    for name in names:
        if not MODEL_NAME.fullmatch(name):
            raise RepositoryError(
                f"{repository / name} is not a model's name: use letters, digits, '.', '_' and '-'; rename the folder"
            )
        if not (repository / name / CONFIG_FILE).is_file():
            raise RepositoryError(
                f"the model {name} in {repository} has no {CONFIG_FILE}; "
                "export it again with `deit export`, or remove the folder"
            )
    return names
