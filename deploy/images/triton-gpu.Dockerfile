# NVIDIA's Triton, 26.07 or later, with the files that prepare the models and start it here. It has its native onnxruntime and tensorrt
# backends, so nothing of ours is installed.
ARG TRITON_IMAGE
FROM ${TRITON_IMAGE}
ARG VERSION=0.1.0 REVISION=unknown
LABEL org.opencontainers.image.title="deit-server Triton for GPUs" \
      org.opencontainers.image.description="NVIDIA's Triton with TensorRT plans built on the machine" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY deploy/gpu deit/tensorrt_plan.py /gpu/
# volumes that are mounted here take the owner over
RUN install --directory --owner 1000 --group 1000 /plans /cache
USER 1000:1000
ENTRYPOINT ["/gpu/start"]
