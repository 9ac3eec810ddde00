"""Settings refuse what cannot work, in words that say what to do."""

from pathlib import Path

import pytest

from serving.settings import Limits, ServeSettings, TritonPorts


def settings(**changes):
    return ServeSettings(model_repository=Path("models"), **changes)


@pytest.mark.parametrize("url", ["triton:8001", "127.0.0.1:8001", "[::1]:8001", "triton.models.svc.cluster.local:1"])
def test_an_address_of_a_triton_elsewhere(url):
    assert settings(triton_url=url).triton_url == url


@pytest.mark.parametrize("url", ["triton", "http://triton:8001", "triton:grpc", "", ":8001", "a b:1"])
def test_what_is_no_address_is_refused(url):
    with pytest.raises(ValueError, match=r"--triton-url .* HOST:PORT"):
        settings(triton_url=url)


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_outside_the_range_is_refused(port):
    with pytest.raises(ValueError, match="--port"):
        settings(port=port)
    with pytest.raises(ValueError, match="--triton-grpc-port"):
        TritonPorts(grpc=port)


def test_two_services_on_one_port_are_refused():
    with pytest.raises(ValueError, match="share a port"):
        TritonPorts(grpc=8002, metrics=8002)
    with pytest.raises(ValueError, match="--port 8001"):
        settings(port=8001)


def test_the_embedded_tritons_http_port_needs_the_embedded_triton():
    with pytest.raises(ValueError, match="drop either"):
        settings(triton_url="triton:8001", triton_ports=TritonPorts(http=8000))


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


@pytest.mark.parametrize("origin", ["*", "example.org", "https://a.example/path", "https://*.example.org", "null"])
def test_what_is_no_origin_of_a_page_is_refused(origin):
    with pytest.raises(ValueError, match="--cors-origins"):
        settings(cors_origins=(origin,))


@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf")])
def test_a_rate_limit_that_is_none_is_refused(rate):
    with pytest.raises(ValueError, match="--rate-limit"):
        settings(rate_limit=rate)


def test_metrics_on_a_port_of_their_own_need_another_one():
    with pytest.raises(ValueError, match="--metrics-port 8080 is also --port"):
        settings(metrics_port=8080)
    with pytest.raises(ValueError, match="--metrics-port"):
        settings(metrics_port=0)
