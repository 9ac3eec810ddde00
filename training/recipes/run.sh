#!/bin/sh
# Start a run, or continue it where it was stopped; finished runs are left alone.
#
#     training/recipes/run.sh NAME OPTION...      options of deit train; DEIT_TRAIN_DATA and DEIT_TRAIN_RUNS count too,
#                                                 and DEIT, the command, where it is another than deit
set -eu
name=$1
shift
runs=${DEIT_TRAIN_RUNS:-runs}
folder=$runs/$name
# held by the training itself, also after this script was killed
mkdir -p "$runs"
exec 9> "$runs/.$name.lock"
flock -n 9 || { echo "run.sh: $folder is being trained: wait for it, or stop it" >&2; exit 255; }
if [ -f "$folder/config.json" ]; then
    set -- "$@" --resume
elif [ -d "$folder" ]; then # killed before it had written its settings
    rm -f "$folder"/provenance.json "$folder"/.provenance.json.* "$folder"/.config.json.*
    rmdir "$folder"
fi
${DEIT:-deit} train --name "$name" "$@" || exit 255 # at which xargs starts no other run
