"""No version is ever asked with the pixels of another, whatever is restarted, in whatever order: real Tritons."""

import random
import signal

import pytest

from tests.serving.conftest import eventually
from tests.serving.versions import Repository, running_stack


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
            for version in (1, 3, 2):
                if version != 1:  # which it starts with
                    repository.serve(version)
                    triton.end(signal.SIGKILL)
                    triton.start()
                eventually(lambda version=version: str(version) in {each for _, each, _ in stack.answers}, 100)
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


ACTIONS = ("publish", "roll back", "canary", "kill", "stop", "start", "restart", "wait", "replace a gateway")


def play(stack, sequence):
    """Whatever an operator or a fault may do; each step is followed by some answers, or by refusals."""
    repository, tritons, gateways = stack.repository, stack.tritons, stack.gateways
    for action, number in sequence:
        triton = tritons[number % len(tritons)]
        match action:
            case "publish":
                repository.publish_another()
            case "roll back" | "canary":
                change = repository.serve if action == "roll back" else repository.canary
                change(repository.versions[number % len(repository.versions)])
            case "kill" | "stop" | "restart":
                triton.end(signal.SIGTERM if action == "stop" else signal.SIGKILL)
            case "wait" if any(each.runs for each in tritons):  # a gateway does not start without one
                stack.asked(sum(each.runs for each in tritons))
            case "replace a gateway":
                stack.replace_gateway(number % len(gateways))
        if action in ("start", "restart") and not triton.runs:
            triton.start()
        stack.versions(2)
    for triton in tritons:  # all is well again
        if not triton.runs:
            triton.start()
    stack.asked(len(tritons))
    assert "none" not in stack.versions(4)


def random_sequence(seed, length):
    chance = random.Random(seed)
    return [(chance.choice(ACTIONS), chance.randrange(1000)) for _ in range(length)]


def play_all(stack, seeds, length):
    for seed in seeds:
        sequence = random_sequence(seed, length)
        print(seed, sequence)  # noqa: T201  pytest shows it when a check fails
        with stack.load(threads=1):
            play(stack, sequence)
        stack.check()
        stack.answers.clear()
        stack.refusals.clear()


def test_a_random_sequence_gives_no_wrong_answer(stack):
    play_all(stack, [7], 6)


@pytest.mark.soak
@pytest.mark.timeout(3 * 3600)
def test_200_random_sequences_give_no_wrong_answer(repository):
    """Each takes 4 seconds on two idle cores, and under a minute on busy ones."""
    with running_stack(repository, tritons=2, gateways=2) as stack:
        play_all(stack, range(200), 6)
