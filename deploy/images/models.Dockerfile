# A model repository in an image, for Kubernetes; its folder is the context of the build:
#
#     docker build --file deploy/images/models.Dockerfile --tag localhost/deit-server/models:1 model_repository
#
# The doctor looks at it first, so that a broken version becomes no image.
ARG TRITON=localhost/deit-server/triton:0.1.0 DEBIAN_IMAGE=debian:bookworm-slim
FROM ${TRITON} AS checked
COPY . /models
RUN ["python", "-m", "deit", "models", "doctor", "--repository", "/models"]

FROM ${DEBIAN_IMAGE}
LABEL org.opencontainers.image.title="deit-server models" \
      org.opencontainers.image.description="A model repository, copied to /to"
COPY --from=checked /models /models
RUN chmod -R a+rX /models
USER 10001:10001
CMD ["cp", "--recursive", "/models/.", "/to"]
