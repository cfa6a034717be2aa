# The launcher by itself: what the init container copies into the pods of unmodified engine images, what the engine images
# below take it from, and, with its own small engine, a complete image for tries and tests (--engine reference).
#
#   images/build.sh launcher
#
# BASE_IMAGE: any with Python 3.10 or later, a shell and cp.
ARG BASE_IMAGE=python:3.12-slim
FROM ${BASE_IMAGE} AS bundle
COPY images /src/images
COPY launcher /src/launcher
# images/wheels is there when build.sh downloaded them before: then the build needs no network.
RUN python3 /src/images/bundle.py $([ -d /src/images/wheels ] && echo --wheels /src/images/wheels) /opt/launcher

FROM ${BASE_IMAGE}
ARG VERSION=dev
LABEL org.opencontainers.image.title="launcher" \
      org.opencontainers.image.description="The entrypoint of every pod of a multi-node inference engine, with its reference engine" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=bundle /opt/launcher /opt/launcher
RUN ln -s /opt/launcher/launcher /usr/local/bin/launcher
# Any other user id works too, without an entry in /etc/passwd; nothing outside of volumes is written.
USER 12345:12345
ENTRYPOINT ["/opt/launcher/launcher"]
CMD ["--engine", "reference"]
