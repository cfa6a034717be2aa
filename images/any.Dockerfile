# Any other engine, in five lines; BASE_IMAGE needs a shell and Python 3.10 or later. Then: --engine-file, or --engine NAME.
ARG BASE_IMAGE LAUNCHER_IMAGE=launcher:dev
FROM ${LAUNCHER_IMAGE} AS launcher
FROM ${BASE_IMAGE}
COPY --from=launcher /opt/launcher /opt/launcher
ENTRYPOINT ["/opt/launcher/launcher"]
