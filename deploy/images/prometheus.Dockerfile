# Prometheus from Debian's packages, as user 10003 on a read-only root.
ARG DEBIAN_IMAGE=debian:bookworm-slim
FROM ${DEBIAN_IMAGE}
RUN apt-get update -qq \
    && apt-get install -qq --no-install-recommends prometheus curl >/dev/null \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10003 metrics && useradd --uid 10003 --gid metrics --no-create-home --home-dir /tmp metrics \
    && install --directory --owner 10003 --group 10003 /data
ARG VERSION=0.1.0 REVISION=unknown
LABEL org.opencontainers.image.title="deit-server Prometheus" \
      org.opencontainers.image.description="Debian's Prometheus with the scrape configuration and alerts of deit-server" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY deploy/prometheus /etc/deit-prometheus
USER 10003:10003
EXPOSE 9090
ENTRYPOINT ["prometheus", "--config.file=/etc/deit-prometheus/prometheus.yml", "--storage.tsdb.path=/data", \
            "--storage.tsdb.retention.time=15d", "--web.console.templates=", "--web.console.libraries="]
