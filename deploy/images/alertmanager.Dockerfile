# Alertmanager from Debian's packages, as user 10005 on a read-only root.
ARG DEBIAN_IMAGE=debian:bookworm-slim
FROM ${DEBIAN_IMAGE}
RUN apt-get update -qq \
    && apt-get install -qq --no-install-recommends prometheus-alertmanager curl >/dev/null \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10005 alerts && useradd --uid 10005 --gid alerts --no-create-home --home-dir /tmp alerts
ARG VERSION=0.1.0 REVISION=unknown
LABEL org.opencontainers.image.title="deit-server Alertmanager" \
      org.opencontainers.image.description="Debian's Alertmanager, which sends the alerts of deit-server to a webhook" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY deploy/alertmanager /etc/deit-alertmanager
USER 10005:10005
EXPOSE 9093
ENTRYPOINT ["/etc/deit-alertmanager/start"]
