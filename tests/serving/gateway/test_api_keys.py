"""Keys: from a file of hashes and from the environment, several at once."""

import hashlib

import pytest

from deit.errors import ServingError
from serving.gateway.api_keys import load_api_keys

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
        ("", "holds no key"),
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
    with pytest.raises(ServingError, match="holds no key"):
        load_api_keys(None, " , ")
