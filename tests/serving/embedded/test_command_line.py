"""Triton's command line, by version."""

from pathlib import Path

from serving.embedded.command_line import triton_options
from serving.settings.triton import TritonPorts

PLACES = {
    "model_repository": Path("/models"),
    "backend_directory": Path("/backends"),
    "shared_memory_prefix": "deit-",
}


def options_of(version, *, control_key=None, **ports):
    options = triton_options(version, **PLACES, ports=TritonPorts(**ports), control_key=control_key, traces_url=None)
    return dict(option.partition("=")[::2] for option in options if not option.startswith("--backend-config"))


def test_everything_listens_on_loopback_and_nothing_can_be_loaded_from_outside():
    options = options_of((2, 51), grpc=1001, metrics=1002, http=1003)
    addresses = {name: value for name, value in options.items() if name.endswith("-address")}
    assert addresses == dict.fromkeys(["--grpc-address", "--metrics-address", "--http-address"], "127.0.0.1")
    assert (options["--grpc-port"], options["--metrics-port"], options["--http-port"]) == ("1001", "1002", "1003")
    assert options["--model-control-mode"] == "none"
    assert options["--allow-sagemaker"] == options["--allow-vertex-ai"] == "false"
    assert "--disable-auto-complete-config" in options


def test_http_is_closed_unless_asked_for():
    options = options_of((2, 51))
    assert options["--allow-http"] == "false"
    assert not [name for name in options if name.startswith("--http")]


def test_an_option_goes_only_to_a_triton_that_knows_it():
    assert "--allow-client-shm" not in options_of((2, 51))
    assert "--allow-client-shm" not in options_of((2, 67))
    assert options_of((2, 68))["--allow-client-shm"] == "false"


def test_the_header_that_opens_shared_memory_is_another_one_each_time():
    first, second = (options_of((2, 51))["--grpc-restricted-protocol"] for _ in range(2))
    assert first.startswith("shared-memory,trace,logging:")
    assert first != second


def test_shared_memory_can_be_registered_only_by_who_knows_the_key():
    options = triton_options(
        (2, 68), **PLACES, ports=TritonPorts(), control_key=None, traces_url=None, shared_memory_key="secret"
    )
    assert "--grpc-restricted-protocol=shared-memory:shared-memory=secret" in options
    assert "--allow-client-shm=true" in options
    assert not [option for option in options if ":closed=" in option and "shared-memory" in option]


def test_models_can_be_loaded_only_by_who_knows_the_key_on_every_port():
    options = triton_options((2, 51), **PLACES, ports=TritonPorts(http=1003), control_key="secret", traces_url=None)
    assert "--model-control-mode=explicit" in options
    assert "--grpc-restricted-protocol=model-repository:control=secret" in options
    assert "--http-restricted-api=model-repository:control=secret" in options


def test_gateways_elsewhere_reach_grpc_and_metrics():
    options = dict(
        option.partition("=")[::2]
        for option in triton_options(
            (2, 51), **PLACES, ports=TritonPorts(http=1003), host="0.0.0.0", control_key=None, traces_url=None
        )
    )
    assert options["--grpc-address"] == options["--metrics-address"] == "0.0.0.0"
    assert options["--http-address"] == "127.0.0.1"


def test_thread_pools_do_not_grow_with_the_machine_and_a_broken_model_ends_nothing():
    options = options_of((2, 51), http=1003)
    assert int(options["--model-load-thread-count"]) <= 8
    assert int(options["--http-thread-count"]) <= 8
    assert options["--exit-on-error"] == options["--strict-readiness"] == "false"
