# Our own Python images, one target each: gateway, triton, export, benchmark. Everything that is installed is in uv.lock
# or requirements/, by hash; our packages are copied as they are, so nothing is built. User 10001, read-only root.
#
#     docker build --file deploy/images/python.Dockerfile --target gateway --tag localhost/deit-server/gateway:0.1.0 .

# Pin by digest where builds must be repeatable: --build-arg PYTHON_IMAGE=python:3.11-slim-bookworm@sha256:...
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS runtime
# All stages have the same interpreter in the same place, so an environment made in one runs in the other.
ENV PATH=/opt/deit/bin:$PATH PYTHONPATH=/srv PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
RUN groupadd --gid 10001 deit && useradd --uid 10001 --gid deit --no-create-home --home-dir /tmp deit
WORKDIR /srv
ARG VERSION=0.1.0 REVISION=unknown
LABEL org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

FROM ${PYTHON_IMAGE} AS build
RUN apt-get update -qq && apt-get install -qq --no-install-recommends binutils >/dev/null && rm -rf /var/lib/apt/lists/*
COPY requirements/uv.txt requirements/
RUN python3 -m venv /uv \
    && /uv/bin/python -m pip install --no-cache-dir --require-hashes --only-binary :all: --requirement requirements/uv.txt
ENV UV_PROJECT_ENVIRONMENT=/opt/deit UV_LINK_MODE=copy UV_NO_CACHE=1 UV_PYTHON=python3
COPY deploy/images/install-extra /usr/local/bin/
WORKDIR /source
COPY pyproject.toml uv.lock ./

FROM build AS build-gateway
RUN install-extra gateway tracing

FROM build AS build-triton
RUN install-extra serving

FROM build AS build-export
RUN install-extra export

FROM build AS build-benchmark
RUN install-extra benchmark

# perf_analyzer wants an older tritonclient than ours, so it has a separate environment, and Debian's libb64.
FROM build AS build-perf-analyzer
COPY requirements/perf-analyzer.txt requirements/
RUN python3 -m venv /opt/perf-analyzer \
    && /opt/perf-analyzer/bin/python -m pip install --no-cache-dir --require-hashes --only-binary :all: --no-deps \
       --requirement requirements/perf-analyzer.txt \
    && cd /tmp && apt-get update -qq && apt-get download -qq libb64-0d \
    && dpkg-deb --extract libb64-0d_*.deb /opt/perf-analyzer/libb64 && rm libb64-0d_*.deb

FROM runtime AS gateway
LABEL org.opencontainers.image.title="deit-server gateway" \
      org.opencontainers.image.description="HTTP gateway in front of a Triton; has no model and no torch"
COPY --from=build-gateway /opt/deit /opt/deit
COPY deit deit
COPY serving serving
RUN python -m compileall -q .
USER 10001:10001
EXPOSE 8080 9100
ENTRYPOINT ["python", "-m", "deit", "serve"]

FROM runtime AS triton
LABEL org.opencontainers.image.title="deit-server Triton for CPUs" \
      org.opencontainers.image.description="Triton 2.51 of October 2024, for internal networks only"
COPY --from=build-triton /opt/deit /opt/deit
COPY deit deit
COPY serving serving
RUN python -m compileall -q .
USER 10001:10001
EXPOSE 8001 8002
ENTRYPOINT ["python", "-m", "deit", "triton"]

FROM runtime AS export
LABEL org.opencontainers.image.title="deit-server export" \
      org.opencontainers.image.description="Turns a checkpoint into a verified model in a model repository"
COPY --from=build-export /opt/deit /opt/deit
COPY deit deit
COPY training training
COPY export export
RUN python -m compileall -q .
USER 10001:10001
ENTRYPOINT ["python", "-m", "deit", "export"]

FROM runtime AS benchmark
LABEL org.opencontainers.image.title="deit-server benchmark" \
      org.opencontainers.image.description="deit benchmark with NVIDIA's perf_analyzer"
COPY --from=build-perf-analyzer /opt/perf-analyzer /opt/perf-analyzer
COPY --from=build-benchmark /opt/deit /opt/deit
COPY deit deit
COPY serving serving
COPY benchmark benchmark
RUN python -m compileall -q .
ENV DEIT_PERF_ANALYZER=/opt/perf-analyzer
USER 10001:10001
ENTRYPOINT ["python", "-m", "deit", "benchmark"]
