#!/bin/sh
# Rolls a changed template out, one whole group at a time: n - 1 groups serve all the while, and no group is ever mixed.
#
#   k8s/rollout.sh INSTANCE [kubectl options]
#   k8s/rollout.sh llama-405b -n inference
#
# INSTANCE  the label app.kubernetes.io/instance of the sets (models/ and `launcher render` set it)
# TIMEOUT   seconds for one group to serve again, loading the model included      [3600]
# POLL      seconds between looks                                                 [5]
# DRY_RUN=1 only says what would be done
#
# It may be stopped and started again at any point: it looks at what is there. Groups that don't serve go first, since that
# costs nothing; if another group fails meanwhile it stops, and replaces no further one.
set -eu
[ $# -ge 1 ] || { sed -n '2,14s/^# \{0,1\}//p' "$0" >&2; exit 64; }
instance=$1
shift
timeout=${TIMEOUT:-3600} poll=${POLL:-5}

say() { echo "$(date -u +%H:%M:%S) $*"; }
# kubectl's answer. Where it has none three times (no rights, no API server) nothing can be said of any group, and the
# script ends. Never in a pipeline or $( ): there no answer would be taken for an empty one.
ask() {
    for try in 1 2 3; do
        answer=$(kubectl "$@") && return 0
        [ "$try" = 3 ] || sleep "$poll"
    done
    say "stopped: kubectl $1 $2 failed, and without it nothing is known of the groups" >&2
    exit 69
}

# One field of a set.
field() { path=$1 name=$2; shift 2; ask get statefulset "$name" "$@" -o "jsonpath={$path}"; }
# name revision ready, a line a pod; those on their way out have a time after that
pods() {
    name=$1
    shift
    ask get pods "$@" -l "inference-group=$name" -o 'jsonpath={range .items[*]}{.metadata.name} {.metadata.labels.controller-revision-hash} {.status.conditions[?(@.type=="Ready")].status} {.metadata.deletionTimestamp}{"\n"}{end}'
}

# Whether the leader of a group is ready and stays: callers are served.
serves() {
    pods "$@"
    echo "$answer" | while read -r name _ ready leaving; do
        [ "$name" = "$1-0" ] && [ "$ready" = True ] && [ -z "$leaving" ] && echo yes
    done | grep -q yes
}
idle() { field .spec.replicas "$@"; [ "$answer" = 0 ]; }
# Whether any pod of a group is of another revision than the set's newest.
outdated() {
    field .status.updateRevision "$@"
    newest=$answer
    pods "$@"
    echo "$answer" | while read -r name revision _; do
        [ -z "$name" ] || [ "$revision" = "$newest" ] || echo yes
    done | grep -q yes
}
# Whether every pod is there, of the newest revision, and the group serves; or nobody wants it any more: the scaler has put
# it to sleep meanwhile, and it wakes with new pods.
renewed() {
    field .spec.replicas "$@"
    wanted=$answer
    [ "$wanted" = 0 ] && return 0
    pods "$@"
    [ "$(echo "$answer" | grep -c .)" = "$wanted" ] && ! outdated "$@" && serves "$@"
}
# The controller has seen the newest template; before that updateRevision is the old one.
observed() {
    field .metadata.generation "$@"
    newest=$answer
    field .status.observedGeneration "$@"
    [ "$answer" = "$newest" ]
}

wait_until() { # SECONDS WHAT CONDITION...
    end=$(($(date +%s) + $1)) what=$2
    shift 2
    until "$@"; do
        [ "$(date +%s)" -lt "$end" ] || { say "gave up waiting: $what" >&2; return 1; }
        sleep "$poll"
    done
}

ask get statefulset "$@" -l "app.kubernetes.io/instance=$instance" -o 'jsonpath={range .items[*]}{.metadata.name}{"\n"}{end}'
all=$answer
[ -n "$all" ] || { echo "rollout.sh: no StatefulSet has the label app.kubernetes.io/instance=$instance" >&2; exit 66; }
first="" later=""
for group in $all; do
    wait_until 60 "the controller has not seen the change of $group" observed "$group" "$@"
    if idle "$group" "$@"; then
        say "$group: no pods; the next ones are new anyway"
    elif ! outdated "$group" "$@"; then
        say "$group: is new"
    elif serves "$group" "$@"; then
        later="$later $group"
    else
        first="$first $group"
    fi
done

for group in $first $later; do
    for other in $all; do
        if [ "$other" != "$group" ] && ! idle "$other" "$@" && serves "$group" "$@" && ! serves "$other" "$@"; then
            say "stopped: $other does not serve, and replacing $group too would leave fewer than n - 1 groups" >&2
            exit 1
        fi
    done
    if [ "${DRY_RUN:-0}" = 1 ]; then
        say "$group: would be replaced"
        continue
    fi
    say "$group: replacing all of its pods; requests in flight are finished first"
    ask delete pods "$@" -l "inference-group=$group" --wait=false
    wait_until "$timeout" "$group does not serve with its new pods (\`launcher status\` in one of them says why)" \
        renewed "$group" "$@"
    if [ "$wanted" = 0 ]; then say "$group: put to sleep meanwhile; its next pods are new"; else say "$group: serves"; fi
done
say "done"
