"""The command line of `deit serve`: help, environment, exit status. No Triton is started."""

import os
import subprocess
import sys

import pytest
from typer.main import get_command

from serving.command import app
from tests.conftest import REPOSITORY_ROOT


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "deit", "serve", *arguments],
        cwd=REPOSITORY_ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_every_option_has_an_environment_variable_and_a_help_line():
    for option in get_command(app).params:
        assert option.envvar == "DEIT_" + option.name.upper()
        assert option.help.endswith(".")


def test_help_loads_no_heavy_library():
    code = (
        "import sys; sys.argv = ['deit', 'serve', '--help']\n"
        "import deit.cli\n"
        "try: deit.cli.main()\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'timm', 'fastapi', 'uvicorn', 'grpc', 'tritonclient', 'numpy', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY_ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "--triton-url" in result.stdout


@pytest.mark.parametrize(
    "argument", ["--port=99999", "--port=x", "--triton-url=http://a:1", "--log-format=xml", "--nope"]
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
    assert_failed(run("--port=0", f"--model-repository={tmp_path}"), "holds no model", "deit export")


def test_a_model_without_config_is_one_line(tmp_path):
    (tmp_path / "half").mkdir()
    assert_failed(run("--port=0", f"--model-repository={tmp_path}"), "half", "config.pbtxt")


def test_a_folder_that_is_no_models_name_is_one_line(tmp_path):
    (tmp_path / "a; reboot").mkdir()
    assert_failed(run("--port=0", f"--model-repository={tmp_path}"), "a; reboot")


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
