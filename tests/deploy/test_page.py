"""Every command of docs/deploy.md runs in a test; those that cannot run here have their options checked."""

import re
import shlex

import pytest

from tests.conftest import REPOSITORY_ROOT
from tests.short_commands import deit

PAGE = (REPOSITORY_ROOT / "docs" / "deploy.md").read_text()

KUBERNETES = "deploy/test_kubernetes.py::test_the_page_is_followed"

# How a command begins, and the test that runs it on a real engine, in a real process, or on a copy of the files.
TESTS = {
    r"docker compose (--file \S+ --file \S+ )?up --detach --wait( --no-recreate)?": "deploy/conftest.py::stack",
    r"docker compose rm --force": "deploy/test_compose.py::test_a_triton_of_two_that_is_stopped_fails_no_request",
    r"docker compose --profile observability up": "deploy/test_compose.py::test_prometheus_sees_gateway_and_triton",
    r"curl ": "deploy/test_compose.py::test_a_photograph_is_classified_through_the_proxy",
    r"docker compose down": "deploy/test_compose.py::test_down_leaves_nothing",
    r"deploy/update-models": "deploy/test_compose.py::test_models_are_updated_and_rolled_back_without_a_failed_request",
    r"deit models rollback": "deploy/test_compose.py::test_models_are_updated_and_rolled_back_without_a_failed_request",
    r"deploy/restart-gateways": "deploy/test_compose.py::test_a_rolling_restart_of_the_gateway_fails_no_request",
    r"docker compose kill --signal HUP (gateway|proxy)": (
        "deploy/test_compose.py::test_keys_and_tls_are_a_matter_of_two_variables"
    ),
    r"docker compose --profile benchmark run": (
        "deploy/test_compose.py::test_perf_analyzer_measures_the_stack_and_the_results_stay"
    ),
    r"docker compose build": KUBERNETES,
    r"docker build": "deploy/test_compose.py::test_models_become_an_image_only_if_they_are_sound",
    r"(export|docker compose push|docker push|cp|sed|kubectl) ": KUBERNETES,
    r"deit classify-dataset --images (pictures|…)": (
        "bulk/test_classify_dataset.py::test_a_folder_is_classified_and_little_is_said"
    ),
    r"docker images": "deploy/test_compose.py::test_images_stay_below_the_sizes_that_the_docs_state",
    # no object storage, no weights from the Hub
    r"deit classify-dataset --images s3:": "deploy/test_page.py::test_options_exist",
    r"(DEIT_UID=.*)?docker compose run --rm export": "deploy/test_page.py::test_options_exist",
}


def commands() -> list[str]:
    blocks = "\n".join(re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL))
    shown = re.findall(r"^\$ ((?:.*\\\n)*.*)", blocks, re.MULTILINE)
    inline = re.findall(r"`((?:docker|kubectl|deploy/|deit models|deit classify-)[^`]* [^`]*|deploy/[a-z-]+)`", PAGE)
    return [re.sub(r"\\\n *", "", re.sub(r" +# .*", "", each)) for each in [*shown, *inline]]


def test_each_command_has_a_test():
    found = commands()
    assert len(found) > 20
    for command in found:
        (test,) = {test for start, test in TESTS.items() if re.match(start, command)} or [None]
        assert test, f"no test runs {command}"
        file, name = test.split("::")
        assert f"def {name}(" in (REPOSITORY_ROOT / "tests" / file).read_text()


@pytest.mark.parametrize("start", ["deit classify-dataset --images s3:", "DEIT_UID="])
def test_options_exist(start):
    (command,) = [each for each in commands() if each.startswith(start)]
    arguments = shlex.split(command.replace("docker compose run --rm export", "deit export"))
    arguments = arguments[arguments.index("deit") + 1 :]
    done = deit(*arguments, "--help")
    assert done.returncode == 0, done.stderr
