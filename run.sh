#!/usr/bin/env bash
# One door to the project. It sets itself up: a virtual environment in .venv, nothing else on the machine is touched.
#
#   ./run.sh demo [--kill]    two ranks find each other, serve a completion, and say what happened
#   ./run.sh test [ARGS]      the default tests (ARGS go to pytest)
#   ./run.sh lint             format, lint and types: ruff, mypy --strict
#   ./run.sh slow [ARGS]      the slow suites: network namespaces, real engines, containers, 10,000 strangers, Prometheus,
#                             headless Chromium; -m chaos: long fault runs
#   ./run.sh cluster [OPTIONS] the manifests on the Kubernetes cluster that kubectl reaches; --help has the options
#   ./run.sh soak [N]         N (100,000) simulated schedules of the group protocol, then 15 minutes of chaos, 30 of
#                             overload, then 10 minutes each of idle, slow, talking and storming strangers, 10,000 on
#                             each port
#   ./run.sh bench NAME       a benchmark beside what people use today; see benchmarks/README.md
#   ./run.sh leader|worker    a Ray cluster with the options of the script that many manifests use; see --help
#   ./run.sh ANYTHING ELSE    is handed to `launcher`: ./run.sh plan --engine vllm ...
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

# $1: extras. The environment is made anew when pyproject.toml changes; one run at a time makes it.
set_up() {
    local extra=$1 venv=$here/.venv want python
    want=$(cksum <"$here/pyproject.toml" | tr ' ' -)$extra
    exec 9>"$here/.venv.lock"
    command -v flock >/dev/null && flock 9
    # Each kind holds those before it: core, dev, bench.
    if [ ! -x "$venv/bin/launcher" ] || ! grep -qxF -e "$want" -e "${want/%core/dev}" -e "${want/%core/bench}" \
        -e "${want/%dev/bench}" "$venv/.made" 2>/dev/null; then
        python=$(find_python)
        echo "run.sh: making $venv with $("$python" --version)" >&2
        [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
        local what=$here
        [ "$extra" = core ] || what="$here[$extra]"
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable "$what" 2>&1 | grep -v ^WARNING >&2 || true
        "$venv/bin/launcher" --version >/dev/null
        echo "$want" >"$venv/.made"
    fi
    exec 9>&-
    bin=$venv/bin
}

# Inside an image the launcher is installed already, and there may be no network to install from.
installed() {
    bin=
    if [ -x /opt/launcher/bin/python ]; then
        bin=/opt/launcher/bin
    else
        set_up core
    fi
}

case ${1:-} in
demo)
    set_up core
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
