#!/usr/bin/env bash
# Everything worth knowing about limrank on one GPU, in at most twelve minutes.
#
#   benchmarks/gpu/check.sh [--dry-run] [--out FOLDER] [--minutes 12] [SECTION …]
#
# Each section is a process with a time limit. It prints one JSON line and adds it to FOLDER/results.jsonl; where
# it ends without one, this script writes the line. Without names all sections run (in a dry run all but
# labels-bfloat16). Exits 1 if one is not ok.
set -uo pipefail

SECTIONS=(machine packing training engine bare labels-float32 labels-bfloat16 memory rates)
declare -A LIMIT=([machine]=45 [packing]=45 [training]=120 [engine]=170 [bare]=150 [labels-float32]=75
                  [labels-bfloat16]=75 [memory]=15 [rates]=15)
declare -A RUNS=([labels-float32]="labels float32" [labels-bfloat16]="labels bfloat16"
                 [memory]="summary memory" [rates]="summary rates")

root=$(cd "$(dirname "$0")/../.." && pwd)
out=gpu-check minutes=12 dry=()
chosen=()
while [ $# -gt 0 ]; do
    case $1 in
        --dry-run) dry=(--dry-run) ;;
        --out | --minutes)
            [ $# -gt 1 ] || { echo "check.sh: $1 needs a value" >&2; exit 2; }
            if [ "$1" = --out ]; then out=$2; else minutes=$2; fi
            shift ;;
        *)
            [ -n "${LIMIT[$1]-}" ] || { echo "check.sh: no section $1; there are: ${SECTIONS[*]}" >&2; exit 2; }
            chosen+=("$1") ;;
    esac
    shift
done
[[ $minutes =~ ^[1-9][0-9]*$ ]] || { echo "check.sh: --minutes: a whole number, not $minutes" >&2; exit 2; }
if [ ${#chosen[@]} -eq 0 ]; then
    for name in "${SECTIONS[@]}"; do
        # A processor's bfloat16 says nothing of a GPU's, and the section differs from its neighbour in one word.
        [ ${#dry[@]} -gt 0 ] && [ "$name" = labels-bfloat16 ] || chosen+=("$name")
    done
fi
mkdir -p "$out" || exit 2
out=$(cd "$out" && pwd)
export PYTHONPATH="$root:$root/benchmarks:$root/tests${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
end=$((SECONDS + 60 * minutes)) failed=0 running=
trap '[ -z "$running" ] || kill "$running" 2>/dev/null; exit 143' TERM INT

fails() { # SECTION, ERROR: the line of a section that wrote none
    printf '{"section": "%s", "ok": false, "error": "%s"}\n' "$1" "$2" | tee -a "$out/results.jsonl"
}

lines() { # SECTION: the number of its lines
    grep -c "^{\"section\": \"$1\"," "$out/results.jsonl" 2>/dev/null || true
}

for name in "${chosen[@]}"; do
    limit=${LIMIT[$name]} left=$((end - SECONDS))
    # A busy processor takes its time to start an engine.
    [ ${#dry[@]} -eq 0 ] || limit=$left
    [ "$left" -ge "$limit" ] || limit=$left
    if [ "$limit" -le 0 ]; then
        fails "$name" "not run: the $minutes minutes were over"
        failed=1
        continue
    fi
    before=$(lines "$name")
    read -ra module <<<"${RUNS[$name]-$name}"
    echo "== $name, at most $limit s" >>"$out/log.txt"
    # What libraries say goes to the log, and the line to standard output, too.
    timeout -k 10 "$limit" "${PYTHON:-python3}" -m "gpu.${module[0]}" "${module[@]:1}" --out "$out" "${dry[@]}" \
        >>"$out/log.txt" 2>&1 &
    running=$!
    wait "$running"
    rc=$?
    if [ "$(lines "$name")" = "$before" ]; then
        why="ended with exit status $rc"
        [ $rc -ne 124 ] && [ $rc -ne 137 ] || why="stopped after its $limit s"
        said=$(tail -n 1 "$out/log.txt" | tr -cd '[:print:]' | tr -d '"\\' | cut -c 1-300)
        [[ $said == "== $name,"* ]] || why="$why: $said"
        fails "$name" "$why"
    else
        grep "^{\"section\": \"$name\"," "$out/results.jsonl" | tail -n 1
    fi
    tail -n 1 "$out/results.jsonl" | grep -q '"ok": true' || failed=1
done
exit $failed
