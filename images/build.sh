#!/bin/sh
# Builds the images, with podman, buildah or docker, whichever is there (or BUILDER says).
#
#   images/build.sh [launcher] [vllm] [vllm-ray] [sglang] [any]      [launcher]
#
# BASE_IMAGE     what is built on; the default of each Dockerfile without it (`any` needs it)
# LAUNCHER_IMAGE where the engine images take the launcher from          [launcher:dev]
# TAG            tag of what is built                                    [dev]
# BUILDER        podman, buildah or docker                               [the first of them that is there]
# BUILD_ARGS     more options for the builder, as "--isolation chroot"
# MACHINE        x86_64 or aarch64                                       [this machine's]
# OFFLINE=1      build from images/wheels as it is, download nothing
set -eu
cd "$(dirname "$0")/.."

builder=${BUILDER:-}
for candidate in podman buildah docker; do
    [ -n "$builder" ] && break
    command -v "$candidate" > /dev/null 2>&1 && builder=$candidate
done
[ -n "$builder" ] || { echo "build.sh: none of podman, buildah and docker is here" >&2; exit 69; }
tag=${TAG:-dev}
version=$(git describe --always --dirty 2> /dev/null || echo "$tag")

build() { # NAME DOCKERFILE [ARG=VALUE...]
    name=$1 file=$2
    shift 2
    options=""
    for value; do options="$options --build-arg $value"; done
    [ -z "${BASE_IMAGE:-}" ] || options="$options --build-arg BASE_IMAGE=$BASE_IMAGE"
    # Without --layers old ones remove the image of a stage that adds nothing: the launcher's own, after its first use.
    case $builder in buildah*|*/buildah) command="bud --layers" ;; *) command="build" ;; esac
    # shellcheck disable=SC2086 # options are words
    "$builder" $command ${BUILD_ARGS:-} $options --build-arg "VERSION=$version" -f "images/$file" -t "$name:$tag" .
    echo "built: $name:$tag"
}

for image in "${@:-launcher}"; do
    case $image in
    launcher)
        [ "${OFFLINE:-0}" = 1 ] || python3 images/bundle.py --download images/wheels ${MACHINE:+--machine "$MACHINE"}
        build launcher launcher.Dockerfile ;;
    vllm) build launcher-vllm vllm.Dockerfile "LAUNCHER_IMAGE=${LAUNCHER_IMAGE:-launcher:$tag}" ;;
    vllm-ray) build vllm-ray vllm.Dockerfile "LAUNCHER_IMAGE=${LAUNCHER_IMAGE:-launcher:$tag}" WITH_RAY=1 ;;
    sglang) build launcher-sglang sglang.Dockerfile "LAUNCHER_IMAGE=${LAUNCHER_IMAGE:-launcher:$tag}" ;;
    any)
        [ -n "${BASE_IMAGE:-}" ] || { echo "build.sh: any needs BASE_IMAGE" >&2; exit 64; }
        build "${NAME:-launcher-any}" any.Dockerfile "LAUNCHER_IMAGE=${LAUNCHER_IMAGE:-launcher:$tag}" ;;
    *) echo "build.sh: there is no image $image (launcher, vllm, vllm-ray, sglang, any)" >&2; exit 64 ;;
    esac
done
