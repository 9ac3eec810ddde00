"""Settings refuse what cannot work, in words that say what to do."""

import os

import pytest

from deit.options import Secret
from serving.settings.capture import CaptureSettings
from serving.settings.decoding import Decoding
from serving.settings.limits import Limits
from serving.settings.serve import ServeSettings
from serving.settings.standalone import StandaloneSettings
from serving.settings.triton import TritonPorts, TritonSettings


@pytest.mark.parametrize("url", ["triton:8001", "127.0.0.1:8001", "[::1]:8001", "triton.models.svc.cluster.local:1"])
def test_an_address_of_a_triton_elsewhere(url):
    assert ServeSettings(triton_url=url).triton_url == url


@pytest.mark.parametrize("url", ["triton", "http://triton:8001", "triton:grpc", "", ":8001", "a b:1"])
def test_what_is_no_address_is_refused(url):
    with pytest.raises(ValueError, match=r"--triton-url .* HOST:PORT"):
        ServeSettings(triton_url=url)


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_outside_the_range_is_refused(port):
    with pytest.raises(ValueError, match="--port"):
        ServeSettings(port=port)
    with pytest.raises(ValueError, match="--triton-grpc-port"):
        TritonPorts(grpc=port)


def test_two_services_on_one_port_are_refused():
    with pytest.raises(ValueError, match="share a port"):
        TritonPorts(grpc=8002, metrics=8002)
    with pytest.raises(ValueError, match=r"--port \(DEIT_PORT\) is 8001"):
        ServeSettings(port=8001)


def test_the_embedded_tritons_http_port_needs_the_embedded_triton():
    embedded = TritonSettings(ports=TritonPorts(http=8000))
    with pytest.raises(ValueError, match=r"--triton-http-port \(DEIT_TRITON_HTTP_PORT\) .*--triton-url .*drop either"):
        ServeSettings(triton_url="triton:8001", triton=embedded)
    with pytest.raises(ValueError, match=r"--allow-reload .*--triton-url .*drop either"):
        ServeSettings(triton_url="triton:8001", allow_reload=True)


def test_shared_memory_with_an_external_triton_needs_its_key():
    shared = {"triton_url": "127.0.0.1:8001", "shared_memory": True}
    ServeSettings(**shared, shared_memory_key=Secret("secret"))
    with pytest.raises(ValueError, match=r"--shared-memory .*--triton-url .*DEIT_SHARED_MEMORY_KEY"):
        ServeSettings(**shared)
    for half in ({"triton_url": "127.0.0.1:8001"}, {"shared_memory": True}):
        with pytest.raises(ValueError, match=r"DEIT_SHARED_MEMORY_KEY is for --shared-memory .*set both, or drop it"):
            ServeSettings(**half, shared_memory_key=Secret("secret"))


def test_candidates_are_named_by_either_option():
    settings = ServeSettings(shadow="a=b:50", canary="c=d/2:5,e=f:0")
    assert {name: str(each) for name, each in settings.candidates.items()} == {
        "a": "shadow b with 50 %",
        "c": "canary d version 2 with 5 %",
        "e": "canary f with 0 %",
    }
    with pytest.raises(ValueError, match=r"--canary \(DEIT_CANARY\) is 'a': give MODEL=CANDIDATE:PERCENT"):
        ServeSettings(canary="a")
    with pytest.raises(ValueError, match=r"a is in --shadow .*and in --canary"):
        ServeSettings(shadow="a=b:50", canary="a=c:5")


@pytest.mark.parametrize(("name", "value"), [("percent", 0), ("percent", 101), ("max_images", 0), ("max_bytes", 0)])
def test_a_capture_that_could_keep_nothing_is_refused(name, value):
    with pytest.raises(ValueError, match="--capture-" + name.replace("_", "-")):
        CaptureSettings(**{name: value})


@pytest.mark.parametrize("images", [0, 65])
def test_a_request_carries_no_fewer_images_than_one_and_no_more_than_a_message_holds(images):
    with pytest.raises(ValueError, match=r"--images-per-request .*give 1 to 64"):
        ServeSettings(images_per_request=images)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_body_bytes", 0),
        ("max_image_pixels", 0),
        ("max_image_pixels", 10**9),
        ("max_images", 0),
        ("max_wait_s", 0),
        ("max_in_flight_bytes", 0),
        ("max_in_flight_pixels", 0),
        ("request_timeout_s", 0),
        ("request_timeout_s", float("nan")),
        ("request_timeout_s", float("inf")),
    ],
)
def test_limits_that_cannot_hold_are_refused(name, value):
    with pytest.raises(ValueError, match="--" + name.replace("_", "-")):
        Limits(**{name: value})


@pytest.mark.parametrize(
    ("cores", "decoders"), [(1, 2), (2, 3), (16, 17), (31, 32), (32, 32), (64, 32), (128, 32), (224, 32), (300, 32)]
)
def test_decoders_follow_the_cores_up_to_a_limit(monkeypatch, cores, decoders):
    """Machines that are not here. Their settings are valid, however large they are."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    assert Decoding().processes == decoders


@pytest.mark.parametrize("processes", [0, 257])
def test_a_number_of_decoders_that_cannot_run_is_refused(processes):
    with pytest.raises(ValueError, match=r"--decoders \(DEIT_DECODERS\) is"):
        Decoding(processes=processes)


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf")])
def test_a_start_that_never_ends_is_refused(timeout):
    with pytest.raises(ValueError, match="--start-timeout-s"):
        TritonSettings(start_timeout_s=timeout)


@pytest.mark.parametrize("host", ["localhost", "::", "0.0.0.0", "192.0.2.1"])
def test_triton_alone_listens_on_loopback_or_says_insecure(host):
    with pytest.raises(ValueError, match=r"--host \(DEIT_HOST\) is"):
        StandaloneSettings(host=host)


def test_origins_are_separated_by_commas():
    settings = ServeSettings(cors_origins="https://a.example, http://b.example:8080,")
    assert settings.origins == ("https://a.example", "http://b.example:8080")
    assert ServeSettings().origins == ()


@pytest.mark.parametrize("origin", ["*", "example.org", "https://a.example/path", "https://*.example.org", "null"])
def test_what_is_no_origin_of_a_page_is_refused(origin):
    with pytest.raises(ValueError, match="--cors-origins"):
        ServeSettings(cors_origins=f"https://app.example.org, {origin}")


@pytest.mark.parametrize("path", ["vision", "/", "/vision/", "/a b", "/a//b", "https://a.example/vision"])
def test_what_is_no_root_path_is_refused(path):
    with pytest.raises(ValueError, match="--root-path"):
        ServeSettings(root_path=path)


@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf")])
def test_a_rate_limit_that_is_none_is_refused(rate):
    with pytest.raises(ValueError, match="--rate-limit"):
        ServeSettings(rate_limit=rate)


def test_metrics_on_a_port_of_their_own_need_another_one():
    with pytest.raises(ValueError, match=r"--metrics-port \(DEIT_METRICS_PORT\) is 8080: --port has it too"):
        ServeSettings(metrics_port=8080)
    with pytest.raises(ValueError, match="--metrics-port"):
        ServeSettings(metrics_port=0)
