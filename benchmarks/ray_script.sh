#!/bin/sh
# The steps by which people make a Ray cluster of pods today, as in the example script of vLLM that many have copied:
# the leader starts a head and counts nodes with a new interpreter every 5 s, the worker tries to join every 5 s.
#
#   ray_script.sh leader SIZE PORT 'RAY START OPTIONS' COMMAND...
#   ray_script.sh worker HOST PORT 'RAY START OPTIONS'
role=$1 what=$2 port=$3 options=$4
shift 4
tries=60
if [ "$role" = leader ]; then
    # shellcheck disable=SC2086
    ray start --head --port="$port" $options
    while [ "$tries" -gt 0 ]; do
        active=$(python3 -c 'import ray; ray.init(); print(sum(node["Alive"] for node in ray.nodes()))')
        [ "$active" = "$what" ] && exec "$@"
        sleep 5
        tries=$((tries - 1))
    done
    exit 1
fi
while [ "$tries" -gt 0 ]; do
    # shellcheck disable=SC2086
    ray start --address="$what:$port" --block $options && exit 0
    echo "waiting until the ray worker is active"
    sleep 5
    tries=$((tries - 1))
done
exit 1
