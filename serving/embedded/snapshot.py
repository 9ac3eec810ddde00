"""The model repository as Triton sees it: links to the versions to serve, and separate configurations.

So a restarted Triton does not pick up an export in progress, an edited file or a refused version: the served versions
change only when `deit serve` starts or reloads.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from tritonclient.grpc import model_config_pb2

from deit.durable import write_file
from deit.errors import RepositoryError
from deit.repository.config import config_text
from deit.repository.layout import CONFIG_FILE
from deit.repository.models import model_names, nothing_served, read_loaded


@dataclass(frozen=True)
class Offer:
    """One model as the repository offers it.

    Attributes:
        versions: those that the model's version policy chooses, oldest first, a candidate among them.
        files: name, inode and time of their files and of those next to them; another value means other contents.
    """

    config: model_config_pb2.ModelConfig
    versions: tuple[int, ...]
    files: tuple[tuple[str, int, int], ...]


class Snapshot:
    """A model repository for Triton in `folder`, made of links into `repository`."""

    def __init__(self, repository: Path, folder: Path) -> None:
        self._repository = repository.absolute()
        self.folder = folder

    def offers(self) -> dict[str, Offer]:
        """By the name of the model. Raises RepositoryError when the repository or a model in it cannot be read."""
        return {name: self._offer(name) for name in model_names(self._repository)}

    def show(self, name: str, offer: Offer, versions: tuple[int, ...]) -> None:
        """Show Triton these versions of a model, from its next start or load on."""
        model, shown = self._repository / name, self.folder / name
        shown.mkdir(exist_ok=True)
        for entry in shown.iterdir():
            if entry.is_symlink():
                entry.unlink()
        for entry in model.iterdir():
            if entry.name != CONFIG_FILE and not entry.name.isdigit():  # labels, warm-up data
                (shown / entry.name).symlink_to(entry)
        for version in versions:
            (shown / str(version)).symlink_to(model / str(version))
        write_file(shown / CONFIG_FILE, config_text(offer.config, versions))

    def hide(self, name: str) -> None:
        shutil.rmtree(self.folder / name)

    def exists(self, name: str, version: int) -> bool:
        """Whether the version is still in the repository."""
        return (self._repository / name / str(version)).is_dir()

    def _offer(self, name: str) -> Offer:
        model = self._repository / name
        config, versions = read_loaded(model)
        if not versions:
            raise RepositoryError(nothing_served(model, config))
        files = [entry for entry in model.iterdir() if not entry.name.isdigit()]
        files += [file for version in versions for file in (model / str(version)).rglob("*")]
        found = ((file.name, file.stat()) for file in sorted(files))
        return Offer(config, versions, tuple((name, status.st_ino, status.st_mtime_ns) for name, status in found))
