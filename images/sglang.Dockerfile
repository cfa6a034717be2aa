# SGLang with the launcher inside. Not needed in Kubernetes, where an init container brings the launcher
# (k8s/components/launcher-copy).
#
#   images/build.sh sglang
#
ARG BASE_IMAGE=lmsysorg/sglang:v0.5.23
ARG LAUNCHER_IMAGE=launcher:dev
FROM ${LAUNCHER_IMAGE} AS launcher

FROM ${BASE_IMAGE}
ARG VERSION=dev
LABEL org.opencontainers.image.title="launcher-sglang" \
      org.opencontainers.image.description="SGLang with the launcher as its entrypoint" \
      org.opencontainers.image.version="${VERSION}"
USER 0
# Only /opt/launcher is added: nothing goes into the engine's site-packages. Compiled once more for this image's Python.
# image.env is this image's ENV (nothing named like a secret): `plan` and `doctor` tell it from what a user sets.
COPY --from=launcher /opt/launcher /opt/launcher
RUN python3 -I -S -B -m compileall -q --invalidation-mode unchecked-hash /opt/launcher/lib \
 && ln -s /opt/launcher/launcher /usr/local/bin/launcher \
 && env -0 | grep -zviE '^[^=]*(proxy|index|token|secret|password|key)[^=]*=' > /opt/launcher/image.env
USER 12345:12345
ENTRYPOINT ["/opt/launcher/launcher"]
