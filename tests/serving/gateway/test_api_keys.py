"""Keys: from a file of hashes and from the environment, several at once."""

import hashlib
import signal

import pytest

from deit.errors import ServingError
from serving.gateway.api_keys import load_api_keys
from tests.serving.conftest import eventually, is_alive

FIRST, SECOND = "first-key-of-32-characters-......", "second-key-of-32-characters-....."


def line(key, name):
    return f"{hashlib.sha256(key.encode()).hexdigest()}  {name}\n"


def test_several_keys_live_at_once(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# old and new\n\n" + line(FIRST, "page-2025") + line(SECOND, "page-2026"))
    keys = load_api_keys(file, None)
    assert (keys.name_of(FIRST), keys.name_of(SECOND)) == ("page-2025", "page-2026")
    for wrong in ("", FIRST + ".", FIRST[:-1], hashlib.sha256(FIRST.encode()).hexdigest(), "\udcff"):
        assert keys.name_of(wrong) is None


def test_keys_of_the_environment_and_of_the_file_are_joined(tmp_path):
    file = tmp_path / "keys"
    file.write_text(line(FIRST, "file"))
    keys = load_api_keys(file, f"{SECOND}, {SECOND}x")
    assert [keys.name_of(key) for key in (FIRST, SECOND, SECOND + "x")] == ["file", "environment-1", "environment-2"]


def test_without_either_there_are_no_keys():
    assert load_api_keys(None, None) is None


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "does not contain a key"),
        (FIRST, "line 1 is not a SHA-256"),
        (line(FIRST, "a") + line(SECOND, "a"), "line 2: the name a is taken"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused_without_repeating_it(tmp_path, content, reason):
    file = tmp_path / "keys"
    file.write_text(content)
    with pytest.raises(ServingError, match=reason) as error:
        load_api_keys(file, None)
    assert FIRST not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ServingError, match="no-keys"):
        load_api_keys(tmp_path / "no-keys", None)


def test_an_empty_variable_is_a_mistake_and_not_an_open_door():
    with pytest.raises(ServingError, match="does not contain a key"):
        load_api_keys(None, " , ")


def test_a_hangup_reads_the_file_anew_and_a_broken_file_changes_nothing(deit_serve, model_repository, tmp_path):
    file = tmp_path / "keys"
    file.write_text(line(FIRST, "old"))
    server = deit_serve("--model-repository", model_repository, f"--api-keys-file={file}", "--rate-limit=100")
    server.wait_until_ready()

    def status(key):
        return server.get("/models", headers={"X-API-Key": key}).status_code

    def hang_up(content, said):
        file.write_text(content)
        server.process.send_signal(signal.SIGHUP)
        eventually(lambda: said in server.output)

    assert (status(FIRST), status(SECOND)) == (200, 401)
    hang_up(line(FIRST, "old") + line(SECOND, "new"), "2 API keys; new: new; gone: none")
    assert (status(FIRST), status(SECOND)) == (200, 200)
    hang_up("nonsense", "the API keys are unchanged")
    assert (status(FIRST), status(SECOND)) == (200, 200)
    hang_up(line(SECOND, "new"), "1 API keys; new: none; gone: old")
    assert (status(FIRST), status(SECOND)) == (401, 200)


def test_a_hangup_without_a_file_of_keys_ends_it_in_order(deit_serve, model_repository):
    server = deit_serve("--model-repository", model_repository).wait_until_ready()
    children = server.children()
    server.process.send_signal(signal.SIGHUP)
    assert server.wait() == 0, server.output
    assert "stopped" in server.output
    assert not any(map(is_alive, children))
