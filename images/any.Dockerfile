# Any other engine, in five lines; BASE_IMAGE needs a shell and Python 3.10 or later. Then: --engine-file, or --engine NAME.
# For brevity it leaves out what vllm.Dockerfile has besides: labels, USER (it stays the base's), the launcher compiled for
# this image's Python (done at the first start instead), and image.env (`plan` and `doctor` then take the image's own ENV
# for a user's).
ARG BASE_IMAGE LAUNCHER_IMAGE=launcher:dev
FROM ${LAUNCHER_IMAGE} AS launcher
FROM ${BASE_IMAGE}
COPY --from=launcher /opt/launcher /opt/launcher
ENTRYPOINT ["/opt/launcher/launcher"]
