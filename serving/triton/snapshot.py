"""What Triton sees of the model repository: links to the versions that are to be served, and its own configuration.

So an export in progress, an edited file or a version that was refused does not reach a Triton that is started again:
what is served changes when `deit serve` starts and when it is asked to reload, and at no other time.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from deit.durable import write_file
from deit.errors import RepositoryError
from deit.model import CONFIG_FILE
from deit.repository.models import model_names


@dataclass(frozen=True)
class Offer:
    """What the repository offers of one model.

    Attributes:
        versions: those that the model's version policy chooses, oldest first.
        files: name, inode and time of their files and of those beside them; another value means other contents.
    """

    config: str
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
        """Let Triton see these versions of a model, at its next start or load."""
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
        config = text_format.Parse(offer.config, model_config_pb2.ModelConfig())
        config.version_policy.specific.versions[:] = versions
        write_file(shown / CONFIG_FILE, text_format.MessageToString(config))

    def hide(self, name: str) -> None:
        shutil.rmtree(self.folder / name)

    def exists(self, name: str, version: int) -> bool:
        """The version is still in the repository."""
        return (self._repository / name / str(version)).is_dir()

    def _offer(self, name: str) -> Offer:
        folder = self._repository / name
        text = (folder / CONFIG_FILE).read_text()
        try:
            config = text_format.Parse(text, model_config_pb2.ModelConfig())
        except text_format.ParseError as error:
            raise RepositoryError(f"{folder / CONFIG_FILE} is no configuration of a model: {error}") from error
        there = sorted(int(entry.name) for entry in folder.iterdir() if entry.is_dir() and entry.name.isdigit())
        versions = _chosen(there, config.version_policy)
        if not versions:
            raise RepositoryError(
                f"the model {name} in {self._repository} has no version to serve: its folder holds "
                f"{', '.join(map(str, there)) or 'none'}, and version_policy in {CONFIG_FILE} says which"
            )
        files = [entry for entry in folder.iterdir() if not entry.name.isdigit()]
        files += [file for version in versions for file in (folder / str(version)).rglob("*")]
        found = ((file.name, file.stat()) for file in sorted(files))
        return Offer(text, versions, tuple((name, status.st_ino, status.st_mtime_ns) for name, status in found))


def _chosen(there: list[int], policy: model_config_pb2.ModelVersionPolicy) -> tuple[int, ...]:
    """As Triton chooses: the latest one when nothing is said."""
    match policy.WhichOneof("policy_choice"):
        case "all":
            return tuple(there)
        case "specific":
            return tuple(version for version in there if version in policy.specific.versions)
        case _:
            return tuple(there[-max(1, policy.latest.num_versions) :])
