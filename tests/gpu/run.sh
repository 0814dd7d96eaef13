#!/usr/bin/env bash
# Proves on a machine with a card what can be proven nowhere else, in ten minutes at most:
#
#     tests/gpu/run.sh CARRIED OUT [OPTION…]
#
# CARRIED is the folder into which tests/gpu/unpack.py has unpacked everything; or "-", where packages and the checkpoint
# are installed and in place. What is found goes into OUT; it ends in one line of JSON and a table, and with 0 when all
# passed. Options are those of tests/gpu/run.py: --bundles FOLDER keeps the exported bundles for the next time,
# --only export,verify runs those stages alone, --device cpu --quick rehearses without a card.
set -euo pipefail
if [ $# -lt 2 ]; then
    echo "usage: $0 CARRIED OUT [OPTION…]" >&2
    exit 2
fi
carried=$1 out=$2
shift 2
root=$(cd "$(dirname "$0")/../.." && pwd)
options=()
path=$root
if [ "$carried" != - ]; then
    if [ ! -d "$carried" ]; then
        echo "there is no folder $carried: name the one that tests/gpu/unpack.py has unpacked into, or -" >&2
        exit 2
    fi
    carried=$(cd "$carried" && pwd)
    if [ ! -e "$carried/ready" ] || [ ! -d "$carried/site" ] || [ ! -d "$carried/checkpoint" ]; then
        echo "$carried is not complete: run tests/gpu/unpack.py until it says that it is ready" >&2
        exit 2
    fi
    path=$root:$carried/site
    options+=(--checkpoint "$carried/checkpoint")
fi
# The project itself comes first, then what was carried, then what the machine has.
export PYTHONPATH=$path${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
# -P: nothing is looked for in the folder that this is called from, which may have tests of its own.
python=("${PYTHON:-python3}" -P)
if ! said=$("${python[@]}" -c "import tests.gpu.run" 2>&1); then
    echo "the checks cannot be imported from $root with ${python[0]}: ${said##*$'\n'}" >&2
    exit 2
fi
exec "${python[@]}" -m tests.gpu.run "$out" "${options[@]}" "$@"
