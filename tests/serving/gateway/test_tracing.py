"""Traces as a collector gets them: from the gateway and from Triton, in one tree."""

import base64
import gzip
import json
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from deit.errors import ServingError
from serving.gateway.tracing import traces_url
from tests.conftest import encoded, photograph
from tests.serving.conftest import eventually, running

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


@dataclass(frozen=True)
class Span:
    service: str
    name: str
    trace: str
    id: str
    parent: str
    start_ns: int
    end_ns: int
    attributes: dict[str, object]


class Collector(BaseHTTPRequestHandler):
    """Takes OTLP over HTTP, as protobuf (OpenTelemetry's Python) and as JSON (Triton's), and keeps the spans."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        if self.headers["Content-Type"] == "application/json":
            request = json.loads(body)
        else:
            request = MessageToDict(ExportTraceServiceRequest.FromString(body))
            for span in spans_of(request):
                for key in span.keys() & {"traceId", "spanId", "parentSpanId"}:  # JSON of OTLP has them in hexadecimal
                    span[key] = base64.b64decode(span[key]).hex()
        for resource in request["resourceSpans"]:
            service = values(resource["resource"]["attributes"])["service.name"]
            self.server.spans += [
                Span(
                    service=service,
                    name=span["name"],
                    trace=span["traceId"],
                    id=span["spanId"],
                    parent=span.get("parentSpanId", ""),
                    start_ns=int(span["startTimeUnixNano"]),
                    end_ns=int(span["endTimeUnixNano"]),
                    attributes=values(span.get("attributes", [])),
                )
                for span in spans_of({"resourceSpans": [resource]})
            ]
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def spans_of(request):
    return [span for each in request["resourceSpans"] for scope in each["scopeSpans"] for span in scope["spans"]]


def values(attributes):
    return {each["key"]: next(iter(each["value"].values())) for each in attributes}


@pytest.fixture(scope="module")
def collector():
    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        server.spans = []
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def traced(model_repository, collector):
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_port}",
        "OTEL_BSP_SCHEDULE_DELAY": "100",  # milliseconds
    }
    with running("--model-repository", model_repository, environment=environment) as server:
        yield server.wait_until_ready()


def test_a_request_is_one_trace_from_the_caller_through_the_gateway_into_triton(traced, collector):
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-ID": "find-me"}
    traced.post("/classify", content=encoded(photograph(96, 64)), headers=headers)

    def ours(service, trace=TRACE):
        return [span for span in collector.spans if span.trace == trace and span.service == service]

    eventually(lambda: any(span.name == "POST /classify" for span in ours("deit-server")))
    spans = {span.name: span for span in ours("deit-server")}
    assert set(spans) == {"POST /classify", "wait", "decode", "preprocess", "model"}
    request = spans.pop("POST /classify")
    assert request.parent == PARENT
    assert request.attributes["deit.request_id"] == "find-me"
    assert int(request.attributes["http.response.status_code"]) == 200
    for span in spans.values():
        assert span.parent == request.id
        assert request.start_ns <= span.end_ns <= request.end_ns
    eventually(lambda: any(f"trace_id={TRACE}" in line and "find-me" in line for line in traced.lines))

    # Triton's exporter (OpenTelemetry C++) sends a batch of spans once and drops it if that fails, as it does now and
    # then on a busy machine. So requests are made until the spans of one come, and they must be in its trace.
    sent: list[str] = []

    def one_more_is_continued():
        sent.append(f"{len(sent) + 1:032x}")
        headers = {"traceparent": f"00-{sent[-1]}-{PARENT}-01"}
        traced.post("/classify", content=encoded(photograph(96, 64)), headers=headers)
        asked = {span.id for trace in sent for span in ours("deit-server", trace) if span.name == "model"}
        return any(span.parent in asked for trace in sent for span in ours("triton", trace))

    eventually(one_more_is_continued, 100)


def test_a_request_without_a_caller_starts_a_trace_and_health_has_none(traced, collector):
    traced.get("/readyz")
    traced.get("/models")
    eventually(lambda: any(span.name == "GET /models" for span in collector.spans))
    assert not [span for span in collector.spans if "readyz" in span.name]


@pytest.mark.parametrize(
    ("environment", "url"),
    [
        ({}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:4318/"}, "http://a:4318/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://a:4318/x"}, "http://a:4318/x"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:4318", "OTEL_SDK_DISABLED": "true"}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:4318", "OTEL_TRACES_EXPORTER": "none"}, None),
    ],
)
def test_the_standard_variables_switch_it_on(environment, url):
    assert traces_url(environment) == url


def test_another_protocol_is_an_error():
    with pytest.raises(ServingError, match="http/protobuf"):
        traces_url({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})
