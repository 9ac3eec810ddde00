"""The commands of docs/own-pictures.md, word for word, with a smaller model."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch

from deit.cli import app
from tests.conftest import REPOSITORY_ROOT, encoded, photograph
from training.model import create_model

SMALL = ("embed_dim=24", "num_heads=3", "depth=7", "patch_size=8")


def commands() -> list[list[str]]:
    """The page's calls of `deit`."""
    blocks = re.findall(r"```bash\n(.*?)```", (REPOSITORY_ROOT / "docs" / "own-pictures.md").read_text(), re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.startswith("deit ")]


def test_the_page_leads_from_a_folder_to_a_published_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for label, name in enumerate(("bird", "dog", "vehicle")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(10):
            file = tmp_path / "photos" / name / f"{number:04}.jpg"
            file.write_bytes(encoded(photograph(50, 40, seed=100 * label + number)))
    arguments = dict(argument.split("=") for argument in SMALL)
    model = create_model(
        "deit_tiny_patch16_224",
        num_classes=7,
        image_size=32,
        drop_path=0,
        model_args={name: int(value) for name, value in arguments.items()},
    )
    torch.save({"model": model.state_dict()}, "weights.pth")
    smaller = [word for argument in SMALL for word in ("--model-arg", argument)]
    smaller += ["--initial-checkpoint", "weights.pth", "--image-size", "32", "--batch-size", "8", "--epochs", "2"]

    asked = commands()
    assert [command[1] for command in asked] == ["train", "train", "evaluate", "export", "serve"]
    for command in asked[:-1]:  # tests/serving start servers
        app([*command[1:], *(smaller if command[1] == "train" else [])], standalone_mode=False)
    report = json.loads(Path("report.json").read_text())
    assert report["evaluation"]["images"] == 6
    assert report["evaluation"]["deciders"][:3] == ["label", "teacher", "class"]
    for name in ("teacher", "student"):
        assert (tmp_path / "runs" / name / "report.md").is_file()
    settings = json.loads((tmp_path / "runs" / "student" / "config.json").read_text())
    assert (settings["freeze_blocks"], settings["balanced_sampling"], settings["val_share"]) == ("6", True, 0.2)
    assert Path("model_repository/mine/labels.txt").read_text().split() == ["bird", "dog", "vehicle"]
