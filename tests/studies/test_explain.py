from pathlib import Path

from studies.explain import explain_epoch
from tests.training.test_loop import config


def test_the_explanation_counts_what_an_epoch_reads(colours_data: Path, tmp_path: Path) -> None:
    asked = config(colours_data, tmp_path, name="run", batch_size=20, device_batch_size=2, repeated_augmentation=3)
    text = explain_epoch(asked, processes=2)
    assert "192 images to train on, 3 draws of an image, batches of 20" in text
    assert "an epoch: 9 steps, 180 draws of 60 distinct images (31.2%); 12 draws that fill no batch are dropped" in text
    assert "a step: 20 draws = 2 on a device x 2 processes x 5 in turn" in text
    assert (
        "each of 2 processes 0 draws: it rounds the 192 down to a multiple of 256, which leaves an empty epoch" in text
    )
    assert "go to 3 device batches of the same step" in text
    assert not (tmp_path / "run").exists()
