#!/bin/sh
# Several groups that serve one model: writes a folder with one StatefulSet a group, made from a model's folder.
#
#   k8s/groups.sh MODEL COUNT OUT [LOAD] [COMPONENT...]
#   k8s/groups.sh k8s/models/llama-3.1-405b 3 my-llama
#   k8s/groups.sh k8s/models/llama-3.1-405b 3 my-llama 100 keda roce     # group k wakes at more than k x 100 requests
#
# MODEL      a folder of k8s/models (or your own) that holds one group
# COUNT      how many groups
# OUT        the folder to write; what it holds of an earlier run is replaced
# LOAD       the load that one group carries, for components/keda; any number without it
# COMPONENT  folders of k8s/components, for every group
set -eu
[ $# -ge 3 ] || { sed -n '2,13s/^# \{0,1\}//p' "$0" >&2; exit 64; }
model=$1 count=$2 out=$3 load=${4:-0}
[ $# -lt 4 ] && shift 3 || shift 4
case $count in ''|*[!0-9]*|0) echo "groups.sh: COUNT $count is not a number from 1 on" >&2; exit 64;; esac
case $load in *[!0-9]*) echo "groups.sh: LOAD $load is not a number" >&2; exit 64;; esac
case " $* " in *" keda-http "*)
    echo "groups.sh: keda-http is for one group: two of its routes can't share a Host; take keda" >&2; exit 64;;
esac
[ -f "$model/kustomization.yaml" ] || { echo "groups.sh: there is no $model/kustomization.yaml" >&2; exit 66; }

k8s=$(cd "$(dirname "$0")" && pwd)
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

head='# Written by k8s/groups.sh: run it again rather than edit this.
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization'
{
    echo "$head"
    echo "resources:"
    echo "- shared"
    k=0; while [ "$k" -lt "$count" ]; do echo "- group-$k"; k=$((k + 1)); done
} > "$out/kustomization.yaml"

mkdir "$out/shared"
cat > "$out/shared/kustomization.yaml" <<EOF
$head
resources:
- $(relative "$model" "$out/shared")
components:
- $(relative "$k8s/components/shared-by-groups" "$out/shared")
EOF

k=0
while [ "$k" -lt "$count" ]; do
    mkdir "$out/group-$k"
    {
        echo "$head"
        echo "resources:"
        echo "- $(relative "$model" "$out/group-$k")"
        echo "components:"
        echo "- $(relative "$k8s/components/group-of-several" "$out/group-$k")"
        for component; do echo "- $(relative "$k8s/components/$component" "$out/group-$k")"; done
        echo "nameSuffix: \"-$k\""
        case " $* " in *" keda "*)
            echo "patches:"
            echo "- target: {kind: ScaledObject}"
            echo "  patch: |-"
            echo "    - {op: replace, path: /spec/triggers/0/metadata/activationThreshold, value: \"$((k * load))\"}"
        esac
    } > "$out/group-$k/kustomization.yaml"
    k=$((k + 1))
done
echo "written: $out ($count groups; kubectl apply -k $out)"
