"""The OpenAPI description and the gateway agree, whatever is asked: schemathesis against a real server."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving.conftest import running

KEY = "key-of-a-user-0123456789-0123456789"

# Any bytes are an image for the description, and any text a deadline; what they hold decides.
NOT_CHECKED = "positive_data_acceptance"


def explore(url, folder, *arguments, examples):
    """Run schemathesis with all its other checks: no 5xx, no status, type, header or body that is not described."""
    result = subprocess.run(
        [
            *(Path(sys.executable).with_name("st"), "run", f"{url}/openapi.json", "--no-color"),
            *("--generation-deterministic", f"--max-examples={examples}", f"--exclude-checks={NOT_CHECKED}"),
            *("--request-timeout=60", "--suppress-health-check=all", *arguments),
        ],
        cwd=folder,  # it leaves its cache there
        capture_output=True,
        text=True,
        timeout=3000,
        check=False,
    )
    assert result.returncode == 0, result.stdout
    assert "Tested: 0" not in result.stdout


def test_every_answer_is_described(server, tmp_path):
    explore(server.url, tmp_path, examples=5)


@pytest.mark.soak
def test_every_answer_is_described_for_long(server, tmp_path):
    explore(server.url, tmp_path, examples=1000)


@pytest.fixture(scope="module")
def guarded(model_repository):
    with running(
        *("--model-repository", model_repository, "--request-timeout-s=60", "--max-wait-s=60"),
        environment={"DEIT_API_KEYS": KEY},
    ) as process:
        yield process.wait_until_ready()


def test_the_keys_are_described(guarded):
    schema = guarded.get("/openapi.json").json()
    assert set(schema["components"]["securitySchemes"]) == {"bearer", "header"}
    assert "401" in schema["paths"]["/classify"]["post"]["responses"]
    assert "security" not in schema["paths"]["/healthz"]["get"]


@pytest.mark.soak
def test_every_answer_is_described_with_and_without_a_key(guarded, tmp_path):
    explore(guarded.url, tmp_path, examples=100)
    # In the header that is looked at first: a generated value there would hide the right key in the other one.
    explore(guarded.url, tmp_path, f"--header=Authorization: Bearer {KEY}", examples=100)
