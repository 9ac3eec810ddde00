"""Environment variables that files and documents name are those of the commands."""

import re

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

from deit.options import SERVING, command_of
from serving.settings.serve import ServeSettings
from serving.settings.standalone import StandaloneSettings
from tests.conftest import REPOSITORY_ROOT
from tests.deploy.manifests import COMPOSE_FILES, OVERLAYS, composed, containers, kustomized
from training.command import app as train


def command(settings_class, seen):
    app = typer.Typer(add_completion=False)
    app.command()(command_of(settings_class, SERVING)(seen.append))
    return app


def variables(app):
    return {option.envvar for option in get_command(app).params}


SETTINGS = {"gateway": ServeSettings, "triton": StandaloneSettings}
SERVE = variables(command(ServeSettings, [])) | {"DEIT_API_KEYS", "DEIT_SHARED_MEMORY_KEY"}
TRITON = variables(command(StandaloneSettings, []))
CLIENTS = {"DEIT_URL", "DEIT_API_KEY", "DEIT_PERF_ANALYZER"}


def assert_accepted(service, environment):
    """The command of the service knows each variable and takes its value."""
    ours = {name: str(value or "") for name, value in environment.items() if name.startswith("DEIT_")}
    assert ours.keys() <= {"gateway": SERVE, "triton": TRITON}[service]
    seen = []
    done = CliRunner().invoke(command(SETTINGS[service], seen), [], env=ours)
    assert done.exit_code == 0, done.output
    assert len(seen) == 1


@pytest.mark.parametrize("name", COMPOSE_FILES)
@pytest.mark.parametrize(
    "chosen",
    [{}, {"DEIT_RATE_LIMIT": "5", "DEIT_CORS_ORIGINS": "https://app.example.org", "DEIT_CANARY": "a=b/2:5"}],
)
def test_compose_gives_settings_that_the_commands_take(name, chosen):
    project = composed(name, **chosen)
    for service in SETTINGS:
        assert_accepted(service, project["services"][service].get("environment") or {})


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubernetes_gives_settings_that_the_commands_take(overlay):
    found = {each["name"]: each for each in containers(kustomized(overlay))}
    for service in SETTINGS:
        assert_accepted(service, {each["name"]: each.get("value", "") for each in found[service].get("env", [])})


def test_compose_passes_a_setting_on_under_its_own_name():
    passed = re.findall(r"^ +(DEIT_\w+): \$\{(\w+)", (REPOSITORY_ROOT / "docker-compose.yml").read_text(), re.MULTILINE)
    assert passed
    assert all(inside == outside for inside, outside in passed)


def test_every_variable_that_a_document_names_is_read_by_something():
    explained = set(re.findall(r"^#?(DEIT_\w+)=", (REPOSITORY_ROOT / ".env.example").read_text(), re.MULTILINE))
    known = SERVE | TRITON | CLIENTS | explained | variables(train)
    for document in [*REPOSITORY_ROOT.glob("*.md"), *REPOSITORY_ROOT.glob("docs/*.md"), REPOSITORY_ROOT / "Makefile"]:
        named = set(re.findall(r"\bDEIT_[A-Z][A-Z_]*[A-Z]\b", document.read_text())) - {"DEIT_TRAIN"}
        assert named <= known, document.name
