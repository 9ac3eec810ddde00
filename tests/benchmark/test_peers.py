"""Other servers: refused when they do other work than ours; each of them, really run, does the same."""

from pathlib import Path

import pytest

from benchmark.config import PEERS, PeersConfig
from benchmark.images import read_photographs
from benchmark.load import Load, Response
from benchmark.peers.classifier import PeerClassifier, PeerSettings
from benchmark.peers.compare import Entrant, answers_of, ours_for, refuse_other_answers
from benchmark.peers.entrant import Window
from benchmark.peers.environments import REQUIREMENTS
from benchmark.peers.side_by_side import figures_of_pairs
from benchmark.peers.tuning import shapes
from benchmark.repository import onnx_file
from deit.errors import BenchmarkError
from deit.repository.models import read_version
from tests.conftest import REPOSITORY_ROOT, encoded, photograph

REPOSITORY = REPOSITORY_ROOT / "model_repository"


@pytest.fixture
def photographs_folder(tmp_path: Path) -> Path:
    for seed in range(4):
        (tmp_path / f"{seed}.jpg").write_bytes(encoded(photograph(160, 120, seed)))
    return tmp_path


def test_answers_that_differ_are_refused():
    ours = [{3: 0.6, 5: 0.3, 4: 0.05, 1: 0.03, 0: 0.01}]
    refuse_other_answers("mosec", [{3: 0.60001, 5: 0.3, 4: 0.05, 1: 0.03, 2: 0.01}], ours)
    with pytest.raises(BenchmarkError, match="mosec answers image 0 with"):
        refuse_other_answers("mosec", [{5: 0.6, 3: 0.3, 4: 0.05, 1: 0.03, 0: 0.01}], ours)


def test_what_the_peers_do_with_an_image_is_what_ours_does(photographs_folder):
    """Their common part, in this environment: the gateway's answers, without a server."""
    model = read_version(REPOSITORY / "deit_cifar10")
    settings = PeerSettings(
        onnx_file=str(onnx_file(model)), preprocessing=model.preprocessing.to_json(), port=0, workers=1, threads=1
    )
    classifier = PeerClassifier(settings)
    images = read_photographs(photographs_folder).images
    found = [
        {each["index"]: each["probability"] for each in answer["predictions"]}
        for answer in classifier.answers([classifier.pixels(image) for image in images])
    ]
    refuse_other_answers("peer", found, ours_for(model, images))


def window(answered, cpu_s):
    answers = tuple(Response(image=0, due_s=0.0, sent_s=0.0, done_s=1.0, status=200, body=b"") for _ in range(answered))
    return Window(load=Load(answers=answers, duration_s=2.0, client_cpu_s=0.1), server_cpu_s=cpu_s, memory_mib=100.0)


def test_pairs_tell_apart_what_a_changing_machine_hides():
    """The machine is half as fast in the second pair; ours is always 10 % ahead."""
    found = figures_of_pairs([(window(220, 4.0), window(200, 4.0)), (window(110, 4.0), window(100, 4.0))])
    assert found["ratio"].value == pytest.approx(1.1)
    assert found["ratio"].lowest == pytest.approx(found["ratio"].highest)
    assert found["peer_images_per_s"].lowest == 50
    assert found["cpu_ms_per_image"].highest == pytest.approx(1000 * 4 / 110)


def test_every_peer_has_locked_requirements_and_a_stated_tuning():
    for peer in PEERS:
        lines = (REQUIREMENTS / f"{peer}.txt").read_text().splitlines()
        pinned = [line for line in lines if "==" in line and not line.startswith("#")]
        assert pinned
        assert sum("--hash=sha256:" in line for line in lines) >= len(pinned)
        assert len(set(shapes(peer, cores=4))) == 2


@pytest.mark.soak  # installs a gigabyte of packages for each
@pytest.mark.parametrize("peer", PEERS)
def test_a_peer_answers_as_ours_does(peer, photographs_folder):
    config = PeersConfig(
        images=photographs_folder,
        model="deit_cifar10",
        model_repository=REPOSITORY,
        environments=REPOSITORY_ROOT / ".peers",
    )
    model = read_version(REPOSITORY / "deit_cifar10")
    images = read_photographs(photographs_folder).images
    expected = ours_for(model, images)
    for shape in shapes(peer, cores=2):
        with Entrant(server=peer, model=model, shape=shape).running(config, images[0]) as (url, _):
            refuse_other_answers(peer, answers_of(url, images), expected)
