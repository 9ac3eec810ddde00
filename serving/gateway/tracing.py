"""Traces for OpenTelemetry: a span for each request, its stages and the call to Triton, which continues it.

Off unless the standard environment variables name a collector (OTEL_EXPORTER_OTLP_ENDPOINT or its form for traces), and
then all of them apply, such as OTEL_SERVICE_NAME and OTEL_TRACES_SAMPLER:
https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
The library is loaded only if tracing is on.
"""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from deit.errors import ServingError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer

SERVICE_NAME = "deit-server"


def traces_url(environment: Mapping[str, str]) -> str | None:
    """Where spans are sent, or None when tracing is off.

    Raises:
        ServingError: the environment asks for a protocol that is not spoken here.
    """
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true" or environment.get("OTEL_TRACES_EXPORTER") == "none":
        return None
    url = environment.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    if url is None and (base := environment.get("OTEL_EXPORTER_OTLP_ENDPOINT")):
        url = f"{base.rstrip('/')}/v1/traces"
    protocol = environment.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", environment.get("OTEL_EXPORTER_OTLP_PROTOCOL"))
    if url and protocol not in (None, "", "http/protobuf"):
        raise ServingError(f"traces go by http/protobuf (port 4318), and OTEL_EXPORTER_OTLP_PROTOCOL is {protocol}")
    return url or None


class Tracing:
    """Makes spans and sends them, in a thread of the library."""

    def __init__(self) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        # the environment overrides this default
        named = "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
        resource = Resource.create({} if named else {"service.name": SERVICE_NAME})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("serving")

    def begin(self, headers: Mapping[str, str], method: str) -> "RequestTrace":
        """The trace of a request: the caller's, when its header `traceparent` names one."""
        return RequestTrace(self._tracer, headers, method)

    def close(self) -> None:
        """Send what is left; may take as long as the exporter's timeout."""
        self._provider.shutdown()


class RequestTrace:
    """The spans of one request."""

    def __init__(self, tracer: "Tracer", headers: Mapping[str, str], method: str) -> None:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._tracer = tracer
        self._method = method
        self._propagator = TraceContextTextMapPropagator()
        caller = self._propagator.extract(headers)
        self._span: Span = tracer.start_span(method, context=caller, kind=trace.SpanKind.SERVER)
        self._span.set_attribute("http.request.method", method)
        self._context: Context = trace.set_span_in_context(self._span)

    @property
    def trace_id(self) -> str:
        """In hexadecimal, as collectors show it."""
        return f"{self._span.get_span_context().trace_id:032x}"

    def stages(self, stages_s: Mapping[str, float]) -> None:
        """Spans for stages that have just ended, one after the other."""
        end_ns = time.time_ns()
        start_ns = end_ns - int(sum(stages_s.values()) * 1e9)
        for stage, seconds in stages_s.items():
            span = self._tracer.start_span(stage, context=self._context, start_time=start_ns)
            start_ns += int(seconds * 1e9)
            span.end(start_ns)

    @contextmanager
    def model_call(self, model: str) -> Iterator[dict[str, str]]:
        """Around a call to Triton; the headers by which Triton continues the trace."""
        from opentelemetry import trace

        span = self._tracer.start_span("model", context=self._context, kind=trace.SpanKind.CLIENT)
        span.set_attribute("deit.model", model)
        headers: dict[str, str] = {}
        self._propagator.inject(headers, trace.set_span_in_context(span))
        try:
            yield headers
        except Exception as error:
            span.set_status(trace.StatusCode.ERROR, type(error).__name__)
            raise
        finally:
            span.end()

    def end(self, *, route: str, status: int, request_id: str) -> None:
        from opentelemetry.trace import StatusCode

        self._span.update_name(f"{self._method} {route}")
        self._span.set_attributes(
            {"http.route": route, "http.response.status_code": status, "deit.request_id": request_id}
        )
        if status >= 500:
            self._span.set_status(StatusCode.ERROR)
        self._span.end()
