import re
from pathlib import Path

import pytest
import timm
import typer

from tests.conftest import REPOSITORY_ROOT
from training.command import app
from training.config import TrainConfig
from training.preset import preset_titles, read_preset

VITKD = {"vitkd-ti": "vitkd-ti-baseline", "vitkd-s": "vitkd-s-baseline", "vitkd-b": "vitkd-b-baseline"} | {
    "vitkd-miniature": "miniature"
}
"""Pairs of teacher and student, and the recipe of the same student without a teacher."""

NEEDED = ("--data", "data", "--name", "run")


def parsed(*arguments: str) -> TrainConfig:
    context = typer.main.get_command(app).make_context("train", [*NEEDED, *arguments])
    return TrainConfig(**context.params)


@pytest.mark.parametrize("name", preset_titles())
def test_every_preset_is_a_recipe_that_can_run(name: str) -> None:
    needs_teacher = name in ("small-32-distilled", "vitkd-miniature")
    config = parsed("--preset", name, *(("--teacher", "runs/convnet/checkpoint") if needs_teacher else ()))
    assert timm.is_model(config.model)
    assert ("_distilled" in config.model) == ("distilled" in name)
    assert (config.distillation != "none" or config.features != "none") == (
        "distilled" in name or name == "deit-paper-soft" or name in VITKD
    )
    for key, value in read_preset(name).items():
        assert getattr(config, key) == value
    for model in (config.initial_checkpoint, config.teacher):
        assert model is None or "/" in model or timm.models.is_model_pretrained(model)


def test_every_preset_is_known_here() -> None:
    sizes = {f"deit-{size}{suffix}" for size in ("ti", "s", "b") for suffix in ("", "-distilled", "-distilled-1000")}
    transfers = {f"transfer-{data}" for data in ("cifar10", "cifar100", "flowers", "cars", "inat")}
    others = {"deit-b-384", "deit-b-384-distilled", "small-32", "small-32-distilled", "deit-paper-soft", "fine-tune"}
    assert preset_titles().keys() == sizes | transfers | others | set(VITKD) | set(VITKD.values())


@pytest.mark.parametrize(("pair", "baseline"), VITKD.items())
def test_a_pair_and_its_baseline_differ_in_the_losses_alone(pair: str, baseline: str) -> None:
    recipe = read_preset(pair)
    losses = {name for name in recipe if name in ("distillation", "token", "features", "teacher")}
    losses |= {name for name in recipe if name.startswith(("vitkd_", "nkd_"))}
    assert {name: value for name, value in recipe.items() if name not in losses} == read_preset(baseline)


def test_each_arm_of_a_pair_is_one_option_away() -> None:
    assert parsed("--preset", "vitkd-s", "--features", "none").has_teacher
    assert parsed("--preset", "vitkd-s", "--distillation", "none").features == "vitkd"


@pytest.mark.parametrize("title", ["1000 epochs", "Ablation", "Fine-tuning resolutions"])
def test_the_options_of_the_papers_tables_exist_and_each_changes_the_recipe(title: str) -> None:
    section = (REPOSITORY_ROOT / "docs" / "paper.md").read_text().partition(f"## {title}\n")[2].partition("\n## ")[0]
    recipes = {options: parsed(*options.split()) for options in re.findall(r"\| `(--.+)` \|$", section, re.MULTILINE)}
    assert len(recipes) > 2
    assert all(timm.is_model(recipe.model) for recipe in recipes.values())
    assert len({str(recipe.settings) for recipe in recipes.values()}) == len(recipes)


def test_a_flag_beats_the_environment_beats_the_preset_beats_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEIT_TRAIN_EPOCHS", "7")
    monkeypatch.setenv("DEIT_TRAIN_WARMUP_EPOCHS", "3")
    config = parsed("--preset", "small-32", "--warmup-epochs", "2")
    assert (config.warmup_epochs, config.epochs, config.batch_size, config.seed) == (2, 7, 512, 0)
    assert config.settings["preset"] == "small-32"


def test_a_recipe_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("epochs = 12\nmodel_arg = ['depth=3', 'embed_dim=96']\n")
    config = parsed("--preset", str(tmp_path / "mine.toml"))
    assert (config.epochs, config.model_args) == (12, {"depth": 3, "embed_dim": 96})


@pytest.mark.parametrize(
    ("content", "finding"),
    [
        (None, "not found. Ours are deit-b, .* or give the path"),
        ("epochs = ", "not a TOML file"),
        ("epoch = 3", "no option is called epoch"),
    ],
)
def test_a_recipe_that_is_none_is_named(tmp_path: Path, content: str | None, finding: str) -> None:
    if content is not None:
        (tmp_path / "mine.toml").write_text(content)
    with pytest.raises(typer.BadParameter, match=finding):
        parsed("--preset", str(tmp_path / "mine.toml"))


def test_the_presets_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit):
        parsed("--preset", "list")
    assert "deit-ti-distilled           DeiT-Ti on ImageNet distilled from" in capsys.readouterr().out
