#!/bin/sh
# Several groups that serve one model: writes a folder with one StatefulSet a group, made from a model's folder.
#
#   k8s/groups.sh MODEL COUNT OUT [LOAD] [COMPONENT...]
#   k8s/groups.sh k8s/models/llama-3.1-405b 3 my-llama
#   k8s/groups.sh k8s/models/llama-3.1-405b 3 my-llama 100 keda roce     # group k wakes at more than k x 100 requests
#
# MODEL      a folder of k8s/models (or your own) that holds one group
# COUNT      how many groups
# OUT        the folder to write; what it holds of an earlier run is replaced, and nothing else
# LOAD       the load that one group carries, for components/keda; any number without it
# COMPONENT  folders of k8s/components, for every group; monitoring, which all groups share, once
set -eu
[ $# -ge 3 ] || { sed -n '2,13s/^# \{0,1\}//p' "$0" >&2; exit 64; }
model=$1 count=$2 out=$3 load=${4:-0}
[ $# -lt 4 ] && shift 3 || shift 4
case $count in ''|*[!0-9]*|0) echo "groups.sh: COUNT $count is not a number from 1 on" >&2; exit 64;; esac
case $load in *[!0-9]*) echo "groups.sh: LOAD $load is not a number" >&2; exit 64;; esac
[ -f "$model/kustomization.yaml" ] || { echo "groups.sh: there is no $model/kustomization.yaml" >&2; exit 66; }
k8s=$(cd "$(dirname "$0")" && pwd)
for component; do
    [ -f "$k8s/components/$component/kustomization.yaml" ] ||
        { echo "groups.sh: there is no component $component in $k8s/components" >&2; exit 66; }
done
case " $* $(grep -v '^ *#' "$model/kustomization.yaml" | tr '\n/' '  ') " in
*" keda-http "*)
    echo "groups.sh: keda-http is for one group: two of its routes can't share a Host; take keda" >&2; exit 64;;
*" packed "* | *" keda-packed "*)
    echo "groups.sh: packed puts several groups into one set, this makes a set of each: take one of both" >&2; exit 64;;
esac

head='# Written by k8s/groups.sh: run it again rather than edit this.
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization'
for old in "$out/kustomization.yaml" "$out"/group-* "$out/shared"; do
    [ -e "$old" ] || continue
    written=$old
    [ ! -d "$old" ] || written=$old/kustomization.yaml
    [ "$(head -n 1 "$written" 2> /dev/null)" = "$(echo "$head" | head -n 1)" ] ||
        { echo "groups.sh: $old is not of an earlier run: name another OUT" >&2; exit 73; }
done
model=$(cd "$model" && pwd)
mkdir -p "$out"
out=$(cd "$out" && pwd)
rm -rf "$out"/group-* "$out/shared"

# kustomize wants paths that are relative to the folder they stand in: `relative TO FROM`, both absolute
relative() {
    common=$2 up=
    while [ "${1#"$common"/}" = "$1" ]; do common=${common%/*} up=../$up; done
    echo "$up${1#"$common"/}"
}

{
    echo "$head"
    echo "resources:"
    echo "- shared"
    k=0; while [ "$k" -lt "$count" ]; do echo "- group-$k"; k=$((k + 1)); done
} > "$out/kustomization.yaml"

mkdir "$out/shared"
{
    echo "$head"
    echo "resources:"
    echo "- $(relative "$model" "$out/shared")"
    echo "components:"
    case " $* " in *" monitoring "*) echo "- $(relative "$k8s/components/monitoring" "$out/shared")";; esac
    echo "- $(relative "$k8s/components/shared-by-groups" "$out/shared")"
} > "$out/shared/kustomization.yaml"

k=0
while [ "$k" -lt "$count" ]; do
    mkdir "$out/group-$k"
    {
        echo "$head"
        echo "resources:"
        echo "- $(relative "$model" "$out/group-$k")"
        echo "components:"
        echo "- $(relative "$k8s/components/group-of-several" "$out/group-$k")"
        for component; do
            [ "$component" = monitoring ] || echo "- $(relative "$k8s/components/$component" "$out/group-$k")"
        done
        echo "nameSuffix: \"-$k\""
        # Without KEDA, here or in the model, there is no ScaledObject and this changes nothing.
        echo "patches:"
        echo "- target: {kind: ScaledObject}"
        echo "  patch: |-"
        echo "    - {op: replace, path: /spec/triggers/0/metadata/activationThreshold, value: \"$((k * load))\"}"
    } > "$out/group-$k/kustomization.yaml"
    k=$((k + 1))
done
echo "written: $out ($count groups; kubectl apply --server-side -k $out)"
