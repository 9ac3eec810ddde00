"""No version is ever asked with the pixels of another, whatever is restarted, in whatever order: real Tritons."""

import random
import signal

import pytest

from tests.serving.conftest import eventually
from tests.serving.versions import PREPROCESSING, Repository, running_stack


@pytest.fixture
def repository(tmp_path):
    return Repository(tmp_path / "models")


@pytest.fixture
def stack(repository):
    """Tritons that serve version 1, with version 3 as its canary."""
    repository.canary(3)
    with running_stack(repository, tritons=2, gateways=1) as stack:
        yield stack


def test_a_triton_that_comes_back_with_another_version_is_learnt_anew(repository):
    with running_stack(repository, tritons=1, gateways=1) as stack:
        (triton,) = stack.tritons
        with stack.load():
            eventually(lambda: stack.answers, 60)  # of the version that it starts with
            for version in (3, 2):
                repository.serve(version)
                triton.end(signal.SIGKILL)
                triton.start()
                eventually(lambda version=version: stack.versions(1) == {str(version)}, 60)
    stack.check()
    assert {version for _, version, _ in stack.answers} == {"1", "2", "3"}


def test_tritons_that_differ_each_get_pixels_of_their_own_and_a_stop_fails_no_request(stack, repository):
    """As a new version is rolled out, which ends a canary; then an operator stops one of two, the kernel the other."""
    one, other = stack.tritons
    with stack.load():
        assert stack.versions() == {"1", "3"}
        repository.serve(2)
        one.end(signal.SIGTERM)  # gracefully, as `docker stop` does
        one.start()
        stack.asked(2)
        assert stack.versions() == {"1", "2"}
        other.end(signal.SIGKILL)
        assert stack.versions() == {"2"}
        other.start()
        stack.asked(2)
    stack.check()
    assert stack.refusals == []
    assert {version for _, version, _ in stack.answers} == {"1", "2", "3"}


def play(stack, sequence):
    """Whatever an operator or a fault may do; each step is followed by some answers, or by refusals."""
    for action, which in sequence:
        if action in ("serve", "canary"):
            getattr(stack.repository, action)(which)
        elif action == "start":
            if not stack.tritons[which].runs:
                stack.tritons[which].start()
        else:
            stack.tritons[which].end(signal.SIGKILL if action == "kill" else signal.SIGTERM)
        stack.versions(2)
    for triton in stack.tritons:  # all is well again
        if not triton.runs:
            triton.start()
    stack.asked(len(stack.tritons))
    assert "none" not in stack.versions(4)


def random_sequence(seed, length):
    chance = random.Random(seed)
    actions = [(action, version) for action in ("serve", "canary") for version in PREPROCESSING]
    actions += [(action, which) for action in ("kill", "stop", "start") for which in (0, 1)]
    return [chance.choice(actions) for _ in range(length)]


def sequences(stack, seeds, length):
    for seed in seeds:
        sequence = random_sequence(seed, length)
        with stack.load(threads=1):
            play(stack, sequence)
        try:
            stack.check()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {sequence}") from error
        stack.answers.clear()
        stack.refusals.clear()


def test_a_random_sequence_gives_no_wrong_answer(stack):
    sequences(stack, [7], 6)


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_200_random_sequences_give_no_wrong_answer(repository):
    with running_stack(repository, tritons=2, gateways=2) as stack:
        sequences(stack, range(200), 8)
