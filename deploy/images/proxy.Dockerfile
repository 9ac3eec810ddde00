# nginx from Debian's packages, as user 10002 on a read-only root.
ARG DEBIAN_IMAGE=debian:bookworm-slim
FROM ${DEBIAN_IMAGE}
# Not pinned to a package version: Debian's mirrors keep only the newest, which has the security fixes.
RUN apt-get update -qq \
    && apt-get install -qq --no-install-recommends nginx-light curl openssl >/dev/null \
    && rm -rf /var/lib/apt/lists/* /var/log/nginx/* \
    && groupadd --gid 10002 proxy-user && useradd --uid 10002 --gid proxy-user --no-create-home --home-dir /tmp proxy-user
ARG VERSION=0.1.0 REVISION=unknown
LABEL org.opencontainers.image.title="deit-server proxy" \
      org.opencontainers.image.description="nginx in front of the gateway: slow clients, body limits, TLS" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY deploy/proxy /etc/deit-proxy
USER 10002:10002
EXPOSE 8080
STOPSIGNAL SIGQUIT
ENTRYPOINT ["/etc/deit-proxy/start"]
