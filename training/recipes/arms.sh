# Read by the recipes that compare arms with several seeds, after they set `here`, their folder; $1 is DATA, $2 and $3 the
# teachers, if they are given.
# Stopped at any point they go on when started again. JOBS=2 trains two arms at a time, each on half of the cores.
# shellcheck shell=sh disable=SC2034,SC2154  # the recipes set and use these
if [ $# -ne 1 ] && [ $# -ne 3 ]; then
    echo "${0##*/}: give DATA alone, or DATA and both teachers" >&2
    exit 2
fi
export DEIT_TRAIN_DATA="$1" DEIT_TRAIN_WORKERS="${DEIT_TRAIN_WORKERS:-1}"
runs=${DEIT_TRAIN_RUNS:-runs}
jobs=${JOBS:-1}
seeds=${SEEDS:-0 1 2}
# one thread count for all arms, because another number sums in another order
threads=${OMP_NUM_THREADS:-$(($(nproc) / jobs))}

# The arms on standard input, a line NAME OPTION... each.
train_arms() {
    OMP_NUM_THREADS=$threads xargs -P "$jobs" -L 1 "$here/run.sh"
}

# NAME: the comparison that NAME.toml describes, as Markdown.
compare() {
    OMP_NUM_THREADS=$threads "$(dirname "$(command -v deit)")/python" -m studies.compare "$here/$1.toml" \
        --data "$DEIT_TRAIN_DATA" --runs "$runs" --output "$runs/$1.md"
}
