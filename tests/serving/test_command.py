"""The command lines of `deit serve` and `deit triton`: help, environment, exit status. No Triton is started."""

import json
import os

import pytest
from typer.main import get_command

from serving import command, triton_command
from serving.launcher import choose_default
from tests.serving.conftest import write_model
from tests.short_commands import deit

SERVE, TRITON = ({option.name: option for option in get_command(each.app).params} for each in (command, triton_command))


def run(*arguments, name="serve", **environment):
    return deit(name, *arguments, environment={**os.environ, **environment})


@pytest.mark.parametrize("options", [SERVE, TRITON], ids=["serve", "triton"])
def test_every_option_has_an_environment_variable_and_a_help_line(options):
    for name, option in options.items():
        assert option.opts == ["--" + name.replace("_", "-")]
        assert option.envvar == "DEIT_" + name.upper()
        assert option.help.endswith(".")


def test_a_model_that_explains_another_is_the_default_only_where_it_is_named():
    names = ["mine_explain", "mine_int8"]
    assert choose_default(None, names) == "mine_int8"
    assert choose_default("mine_explain", names) == "mine_explain"


def test_an_option_of_both_commands_is_the_same_in_both():
    """But for the address: Triton takes IPv4 only and checks no API keys."""
    shared = SERVE.keys() & TRITON.keys()
    assert shared >= {"model_repository", "start_timeout_s", "triton_grpc_port", "log_format"}
    for name in shared:
        assert SERVE[name].default == TRITON[name].default
        assert SERVE[name].help == TRITON[name].help or name in ("host", "insecure")


@pytest.mark.parametrize(("name", "options"), [("serve", SERVE), ("triton", TRITON)])
def test_help_fits_80_columns(name, options):
    text = run("--help", name=name, COLUMNS="80").stdout
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    for option in options.values():
        assert {*option.opts, option.envvar} <= set(text.replace("]", " ").split())


@pytest.mark.parametrize(("name", "options"), [("serve", SERVE), ("triton", TRITON)])
def test_the_resolved_settings_are_logged_first(name, options, tmp_path):
    """The start fails, because there is no model repository."""
    given = ["--log-format=json", f"--model-repository={tmp_path / 'none'}"]
    result = run(*given, name=name, DEIT_TRITON_GRPC_PORT="9001", DEIT_START_TIMEOUT_S="")
    settings = json.loads(result.stderr.splitlines()[0])
    assert settings["event"] == "settings"
    assert options.keys() <= settings.keys()
    assert settings["model_repository"] == str(tmp_path / "none")
    assert settings["triton_grpc_port"] == 9001
    assert settings["start_timeout_s"] == 120


def test_no_log_holds_an_api_key():
    key = "a-key-of-more-than-20-characters"
    arguments = ("--port=0", "--triton-url=127.0.0.1:1", "--start-timeout-s=0.1")
    for log_format in ("text", "json"):
        result = run(*arguments, f"--log-format={log_format}", DEIT_API_KEYS=key)
        assert "hidden" in result.stderr
        assert key not in result.stderr


@pytest.mark.parametrize(
    "argument",
    ["--port=99999", "--port=x", "--triton-url=http://a:1", "--log-format=xml", "--nope", "--api-keys=in-sight-of-all"],
)
def test_wrong_usage_is_status_2(argument):
    result = run(argument)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr


def test_the_flag_goes_before_the_environment():
    assert "99999" in run(DEIT_PORT="99999").stderr
    assert "88888" in run("--port=88888", DEIT_PORT="99999").stderr


def assert_failed(result, *words):
    assert result.returncode == 1, result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("deit: ")]
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in line


def test_a_missing_model_repository_is_one_line(tmp_path):
    assert_failed(run("--port=0", f"--model-repository={tmp_path / 'none'}"), str(tmp_path / "none"), "deit export")


def test_an_empty_model_repository_is_one_line(tmp_path):
    assert_failed(run("--port=0", f"--model-repository={tmp_path}"), "does not contain a model", "deit export")


def test_a_model_without_config_is_one_line(tmp_path):
    (tmp_path / "half").mkdir()
    assert_failed(run("--port=0", f"--model-repository={tmp_path}"), "half", "config.pbtxt")


def test_a_config_that_triton_does_not_read_is_one_line(tmp_path):
    write_model(tmp_path / "spoilt")
    (tmp_path / "spoilt" / "config.pbtxt").write_text("input [")
    assert_failed(run("--port=0", f"--model-repository={tmp_path}"), "spoilt", "config.pbtxt")


def test_a_model_without_a_version_is_one_line(tmp_path):
    write_model(tmp_path / "spoilt", versions=0)
    assert_failed(run("--port=0", f"--model-repository={tmp_path}"), "spoilt", "serves no version")


def test_a_folder_that_is_no_models_name_is_one_line(tmp_path):
    (tmp_path / "a; reboot").mkdir()
    assert_failed(run("--port=0", f"--model-repository={tmp_path}"), "a; reboot")


def test_a_default_model_that_is_not_there_is_one_line(model_repository):
    result = run("--port=0", f"--model-repository={model_repository}", "--default-model=big")
    assert_failed(result, "--default-model (DEIT_DEFAULT_MODEL) is big, which is not served; choose from: tiny")
    assert "starting Triton" not in result.stderr


def test_a_triton_that_cannot_be_reached_is_one_line():
    result = run("--port=0", "--triton-url=127.0.0.1:1", "--start-timeout-s=0.5")
    assert_failed(result, "127.0.0.1:1", "--start-timeout-s")


def test_a_taken_port_is_one_line_and_names_the_flag(taken_port, model_repository):
    assert_failed(run(f"--port={taken_port}"), str(taken_port), "--port")
    repository = f"--model-repository={model_repository}"
    result = run("--port=0", repository, f"--triton-grpc-port={taken_port}")
    assert_failed(result, str(taken_port), "--triton-grpc-port")


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_other_machines_are_not_admitted_without_keys(host):
    assert_failed(run("--port=0", f"--host={host}"), host, "--api-keys-file", "--insecure")


def test_a_rate_limit_without_keys_is_one_line():
    assert_failed(run("--port=0", "--rate-limit=5"), "--rate-limit", "--api-keys-file")


def test_a_key_that_can_be_guessed_is_one_line_that_does_not_repeat_it():
    result = run("--port=0", DEIT_API_KEYS="hunter2")
    assert_failed(result, "DEIT_API_KEYS", "openssl")
    assert "hunter2" not in result.stderr


def test_a_host_that_is_not_ours_is_one_line():
    assert_failed(run("--host=192.0.2.1", "--insecure"), "192.0.2.1", "--host")
    assert_failed(run("--host=no.such.host.invalid"), "no.such.host.invalid", "--host")
