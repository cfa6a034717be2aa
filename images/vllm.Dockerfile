# vLLM with the launcher inside. Not needed in Kubernetes, where an init container brings the launcher
# (k8s/components/launcher-copy).
#
#   images/build.sh vllm
#
ARG BASE_IMAGE=vllm/vllm-openai:v0.33.0
ARG LAUNCHER_IMAGE=launcher:dev
FROM ${LAUNCHER_IMAGE} AS launcher

FROM ${BASE_IMAGE}
ARG VERSION=dev
LABEL org.opencontainers.image.title="launcher-vllm" \
      org.opencontainers.image.description="vLLM with the launcher as its entrypoint" \
      org.opencontainers.image.version="${VERSION}"
USER 0
# Ray is no part of vLLM any more; WITH_RAY=1 for --backend ray.
ARG WITH_RAY=0
ARG RAY_VERSION=2.60.0
RUN if [ "${WITH_RAY}" = 1 ]; then \
      { command -v uv > /dev/null && uv pip install --system "ray[default]==${RAY_VERSION}"; } \
      || python3 -m pip install --no-cache-dir "ray[default]==${RAY_VERSION}"; \
    fi
# Only /opt/launcher is added: nothing goes into the engine's site-packages. Compiled once more for this image's Python.
# image.env is this image's ENV (nothing named like a secret): `plan` and `doctor` tell it from what a user sets.
COPY --from=launcher /opt/launcher /opt/launcher
RUN python3 -I -S -B -m compileall -q --invalidation-mode unchecked-hash /opt/launcher/lib \
 && ln -s /opt/launcher/launcher /usr/local/bin/launcher \
 && env -0 | grep -zviE '^[^=]*(proxy|index|token|secret|password|key)[^=]*=' > /opt/launcher/image.env
USER 12345:12345
ENTRYPOINT ["/opt/launcher/launcher"]
