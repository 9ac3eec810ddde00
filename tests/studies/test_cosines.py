from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from studies.cosines import app, token_cosines
from tests.training.test_evaluate import CPU, TINY, tiny_student
from training.checkpoint import save_checkpoint
from training.data import evaluation_batches
from training.images import open_images
from training.model import Normalize


def test_cosines_are_those_of_the_tokens_in_each_block(colours_data: Path) -> None:
    model = tiny_student().eval()
    with torch.no_grad():
        model.dist_token.copy_(model.cls_token)
        model.pos_embed[:, 1] = model.pos_embed[:, 0]
        model.head_dist.weight.copy_(-model.head.weight)
    batches = evaluation_batches(open_images(colours_data, "test"), TINY, batch_size=16, workers=0)
    found = token_cosines(model, batches, Normalize(TINY), CPU)
    assert (found.tokens, found.tokens_with_positions) == pytest.approx((1, 1))
    assert len(found.blocks) == 2
    assert all(cosine == pytest.approx((1, 0), abs=1e-3) for cosine in (*found.blocks, found.final_norm))
    assert found.heads == pytest.approx((-1, 0), abs=1e-6)


def test_cosines_of_blocks_match_a_hook(colours_data: Path) -> None:
    model, seen = tiny_student().eval(), []
    model.blocks[0].register_forward_hook(lambda block, inputs, output: seen.append(output))
    batches = list(evaluation_batches(open_images(colours_data, "test"), TINY, batch_size=16, workers=0))
    found = token_cosines(model, batches, Normalize(TINY), CPU)
    tokens = torch.cat(seen)
    cosines = nn.functional.cosine_similarity(tokens[:, 0], tokens[:, 1], dim=-1)
    assert found.blocks[0] == pytest.approx((cosines.mean().item(), cosines.std(correction=0).item()), abs=1e-5)


def test_cosines_are_plotted(colours_data: Path, tmp_path: Path) -> None:
    names = open_images(colours_data, "test").label_names
    save_checkpoint(tmp_path / "checkpoint", tiny_student(), label_names=names, preprocessing=TINY, deit={})
    arguments = ["--data", colours_data, "--checkpoint", tmp_path / "checkpoint", "--output", tmp_path / "cosines.svg"]
    done = CliRunner().invoke(app, [*map(str, arguments), "--workers", "0", "--device", "cpu"])
    assert done.exit_code == 0, done.output
    assert "after block  2" in done.stdout
    assert "final norm" in (tmp_path / "cosines.svg").read_text()
