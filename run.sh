#!/usr/bin/env bash
# Everything to do in a checkout, on Linux with Python >= 3.10. The first call makes a virtual environment in .venv (a minute,
# from PyPI or PIP_INDEX_URL); nothing else on the machine is changed.
#
#   ./run.sh demo [--kill]    two ranks form a group and serve a completion; with --kill one is killed and they come back
#   ./run.sh test [ARGS]      the default tests, a few minutes on two cores (ARGS go to pytest)
#   ./run.sh lint             format, lint and types: ruff, mypy --strict
#   ./run.sh slow [ARGS]      the slow suites, long: network namespaces, real engines, containers, 10,000 strangers,
#                             Prometheus, headless Chromium; -m chaos: long fault runs
#   ./run.sh cluster [OPTIONS]
#                             the manifests on the Kubernetes cluster that kubectl reaches; --help has the options
#   ./run.sh soak [N]         hours: N (100,000) simulated schedules of the group protocol, then 15 minutes of chaos, 30 of
#                             overload, then 10 minutes each of idle, slow, talking and storming strangers, 10,000 on
#                             each port
#   ./run.sh bench NAME       a benchmark beside what people use today; see benchmarks/README.md
#   ./run.sh leader|worker    a Ray cluster with the options of the script that many manifests use; see --help
#
# Every other command is the launcher's own, as in ./run.sh plan --engine vllm --model M --tp 8:
#
#   run           start an engine in this pod's group (the default: ./run.sh --engine reference)
#   local         a whole group on this machine
#   plan          what every rank would run, and why
#   doctor        check whether this pod, or the whole group, is fit for its engine
#   status        a group's state
#   status-token  the token that opens the details of /status
#   wait          wait until a pod is ready, or its group is in a phase
#   logs          the last lines of a rank's engine
#   restart       begin a new epoch of a group at once
#   engines       the engines that can be started
#   render        plain YAML for Kubernetes from an InferenceService
#   completion    the script for your shell's completion
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# The first Python >= 3.10 that can make a virtual environment.
find_python() {
    local name
    for name in ${PYTHON:-} python3.12 python3.11 python3.13 python3.10 python3; do
        if "$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    echo "run.sh: no Python >= 3.10 with venv was found; name one: PYTHON=/path/to/python ./run.sh" >&2
    return 69
}

# $1: extras; each holds those before it: render, dev, bench. The environment is updated when pyproject.toml changes.
set_up() {
    local extra=$1 venv=$here/.venv want
    want=$(cksum <"$here/pyproject.toml" | tr ' ' -)$extra
    exec 9>"$here/.venv.lock"
    if command -v flock >/dev/null && ! flock -n 9; then
        echo "run.sh: waiting for another run.sh that is setting up $venv" >&2
        flock 9
    fi
    if [ ! -x "$venv/bin/launcher" ] || ! grep -qxF -e "$want" -e "${want/%render/dev}" -e "${want/%render/bench}" \
        -e "${want/%dev/bench}" "$venv/.made" 2>/dev/null; then
        make_environment "$extra" "$venv"
        echo "$want" >"$venv/.made"
    fi
    exec 9>&-
    bin=$venv/bin
}

make_environment() {
    local extra=$1 venv=$2 python log
    python=$(find_python)
    echo "run.sh: setting up $venv with $("$python" --version); this takes a minute" >&2
    # What an interrupted run has left has no pip.
    "$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear "$venv"
    log=$(mktemp)
    if ! PIP_RETRIES=${PIP_RETRIES:-2} "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
        --editable "$here[$extra]" >"$log" 2>&1; then
        tail -n 5 "$log" >&2
        rm -f "$log"
        echo "run.sh: pip could not install what the launcher needs (its last lines are above)" >&2
        echo "  fix: the first call needs a package index. Behind a mirror set PIP_INDEX_URL; offline set PIP_NO_INDEX=1 and" >&2
        echo "       PIP_FIND_LINKS=FOLDER with the wheels" >&2
        return 69
    fi
    rm -f "$log"
    "$venv/bin/launcher" --version >/dev/null
}

# Inside an image the launcher is installed already, and there may be no network to install from.
installed() {
    bin=
    if [ -x /opt/launcher/bin/python ]; then
        bin=/opt/launcher/bin
    else
        set_up render
    fi
}

case ${1:-} in
demo)
    set_up render
    shift
    exec "$bin/python" -m launcher.cli.demo "$@"
    ;;
test)
    set_up dev
    shift
    cd "$here"
    exec "$bin/python" -m pytest -n 2 --dist worksteal -m "not pods and not real and not containers and not chaos and not strangers and not mutations and not prometheus and not cluster and not browser" "$@"
    ;;
lint)
    set_up dev
    cd "$here"
    "$bin/ruff" format --check .
    "$bin/ruff" check .
    exec "$bin/mypy"
    ;;
slow)
    set_up dev
    shift
    cd "$here"
    exec "$bin/python" -m pytest -m "(pods or real or containers or strangers or mutations or prometheus or browser) and not chaos" -o timeout=1200 "$@"
    ;;
cluster)
    set_up dev
    shift
    export LAUNCHER_CLUSTER_FROM=$PWD
    cd "$here"
    exec "$bin/python" -m tests.cluster "$@"
    ;;
soak)
    set_up dev
    cd "$here"
    "$bin/python" -m tests.simulation --soak "${2:-100000}"
    LAUNCHER_CHAOS_SECONDS=900 LAUNCHER_OVERLOAD_SECONDS=1800 \
        "$bin/python" -m pytest -m "chaos and not real" -o timeout=2400 -s
    LAUNCHER_STRANGERS_SECONDS=600 exec "$bin/python" -m pytest -m strangers -s
    ;;
bench)
    set_up bench
    shift
    cd "$here"
    exec "$bin/python" -m benchmarks "$@"
    ;;
leader | worker)
    installed
    exec "$bin/python" -m launcher.compat.ray_script "$@"
    ;;
-h | --help | "")
    sed -n '2,/^set/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    [ -n "${1:-}" ] || exit 64
    ;;
*)
    installed
    exec "$bin/launcher" "$@"
    ;;
esac
