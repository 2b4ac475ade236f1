#!/bin/sh
# Reruns rows of the quality table with `mohawk distill` and prints what they reach next to the numbers to reach: KL divergences
# measured with the method in PyTorch. 3 M tokens a row and seed; with several seeds the table shows mean and range.
#
#   tools/quality.sh TEACHER_DIR DATA_DIR [OUT_DIR]
#
# TEACHER_DIR is the bundled teacher (examples/tiny); DATA_DIR holds text/stories_train.txt, text/children_train.txt and
# text/children_valid.txt; OUT_DIR (default build/quality) receives a folder a row. Stopped with Ctrl-C, the same command goes on.
#
# Variables: ROWS    which rows, of: alone staged staged-high attention rotary hybrid hybrid-best (the paper's and what was added),
#                    best state-128 (constant memory), window-8 window-16 window-32 windows windows-auto (an exact window),
#                    heads window-16-heads window-32-heads (kept heads)
#            SEEDS   which seeds (default "1 2 3")
#            JOBS    how many runs at once, each on THREADS threads (default 1 run on all the machine has)
#            MOHAWK  the program (default build/mohawk)
#            SCALE   tokens of each stage in thousands are 500, 1000, 1500 (from best on 250, 750, 2000) times this over 100
#                    (default 100)
set -eu

if [ $# -lt 2 ] || [ $# -gt 3 ]; then
  sed -n '2,17s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
teacher=$1
data=$2
out=${3:-build/quality}
rows=${ROWS:-alone staged attention rotary hybrid best window-16 windows heads window-16-heads}
mohawk=${MOHAWK:-build/mohawk}
scale=${SCALE:-100}
seeds=${SEEDS:-1 2 3}
jobs=${JOBS:-1}
threads=${THREADS:-}

for file in stories_train children_train children_valid; do
  if [ ! -f "$data/text/$file.txt" ]; then
    echo "quality.sh: $data/text/$file.txt is missing" >&2
    exit 1
  fi
done

# name of a row -> what it is | options | cross-entropy, KL, same next token to reach
staged="--tokens $((5 * scale))k,$((10 * scale))k,$((15 * scale))k --batch 8"
plain="--no-gates --no-bias --no-calibrate" # what the default recipe had before
default="--tokens $((5 * scale / 2))k,$((15 * scale / 2))k,$((20 * scale))k"
row() {
  case $1 in
    alone) echo "stage 3 alone|--recipe paper --tokens 0,0,$((30 * scale))k --batch 8 --lr 2e-3|3.161|0.308|0.643" ;;
    staged) echo "0.5 + 1 + 1.5 M|--recipe paper $staged --lr 3e-3,3e-3,1e-3|3.131|0.205|0.703" ;;
    staged-high) echo "0.5 + 1 + 1.5 M, stage 1 at 1e-2|--recipe paper $staged --lr 1e-2,3e-3,1e-3|3.108|0.186|0.713" ;;
    attention) echo "attention initialization, decay over the last half|--rotary none --own-stream 0 $plain $staged --lr 1e-2,5e-3,5e-4|3.095|0.161|0.731" ;;
    rotary) echo "the same with rotary and own-stream alignment|--own-stream 0.03 $plain $staged --lr 1e-2,5e-3,1e-3|3.086|0.134|0.753" ;;
    hybrid) echo "hybrid, layer 2 kept|--recipe paper --keep-attention 2 $staged --lr 3e-3,3e-3,1e-3|3.064|0.137|0.753" ;;
    hybrid-best) echo "hybrid, layer 2 kept, rotary and own-stream|--keep-attention 2 --own-stream 0.03 $plain $staged --lr 1e-2,5e-3,1e-3|3.039|0.087|0.800" ;;
    best) echo "the default|$default|3.076|0.122|0.766" ;;
    state-128) echo "state of 128|--d-state 128 $default|3.065|0.110|0.775" ;;
    window-8) echo "window 8|--window 8 $default|3.064|0.059|0.837" ;;
    window-16) echo "window 16|--window 16 $default|3.064|0.045|0.864" ;;
    window-32) echo "window 32|--window 32 $default|3.059|0.030|0.901" ;;
    windows) echo "windows by head, mean 16|--windows 2.1=64,1.1=32,2.3=32,0.2=32,8 $default|3.047|0.037|0.871" ;;
    windows-auto) echo "windows by head, mean 16, chosen|--windows auto:16 $default|3.047|0.037|0.871" ;;
    heads) echo "four heads kept|--keep-heads 2.1,1.1,2.3,0.2 $default|3.030|0.073|0.817" ;;
    window-16-heads) echo "window 16, four heads kept|--window 16 --keep-heads 2.1,1.1,2.3,0.2 $default|3.027|0.0105|0.926" ;;
    window-32-heads) echo "window 32, two heads kept|--window 32 --keep-heads 2.1,1.1 $default|3.027|0.0075|0.938" ;;
    *)
      echo "quality.sh: there is no row \"$1\"" >&2
      exit 1
      ;;
  esac
}

# one row and seed, into $out/ROW-SEED
run() {
  options=$(row "$1" | cut -d'|' -f2)
  echo "quality.sh: $1, seed $2: $options" >&2
  # shellcheck disable=SC2086 # the options are words
  "$mohawk" distill --teacher "$teacher" --out "$out/$1-$2" $options --seed "$2" ${threads:+--threads $threads} --length 256 --placement random \
    --text "$data/text/stories_train.txt" "$data/text/children_train.txt" --repeat 4,1 --max-document 0,1500 \
    --eval "$data/text/children_valid.txt" --eval-windows 128 --eval-length 256 --json >"$out/$1-$2.jsonl" || {
    echo "quality.sh: $1, seed $2, did not finish" >&2
    return 1
  }
}

for name in $rows; do row "$name" >/dev/null; done
mkdir -p "$out"
running=0
for name in $rows; do
  for seed in $seeds; do
    run "$name" "$seed" &
    running=$((running + 1))
    if [ $running -ge "$jobs" ]; then
      wait
      running=0
    fi
  done
done
wait

# the last evaluation of each seed of a row: "cross-entropy KL agreement", a line each
reached() {
  for seed in $seeds; do
    grep '"event": "evaluation"' "$out/$1-$seed.jsonl" | tail -n 1 |
      sed -n 's/.*"cross_entropy": \([-0-9.eE]*\).*"kl": \([-0-9.eE]*\).*"agreement": \([-0-9.eE]*\).*/\1 \2 \3/p'
  done
}

echo '| recipe | seeds | cross-entropy | to reach | KL to teacher | to reach | same next token | to reach |'
echo '|---|---|---|---|---|---|---|---|'
for name in $rows; do
  reached "$name" | awk -v what="$(row "$name" | cut -d'|' -f1,3-)" '
    function span(c) { return low[c] == high[c] ? "" : sprintf(" (%.3f to %.3f)", low[c], high[c]) }
    { for (c = 1; c <= 3; c++) { sum[c] += $c; if (NR == 1 || $c < low[c]) low[c] = $c; if (NR == 1 || $c > high[c]) high[c] = $c } }
    END {
      split(what, want, "|")
      if (NR == 0) { print "| " want[1] " | 0 | no run finished |"; exit 1 }
      printf "| %s | %d | %.3f%s | %s | %.3f%s | %s | %.3f%s | %s |\n", want[1], NR, sum[1] / NR, span(1), want[2], sum[2] / NR, span(2), want[3],
        sum[3] / NR, span(3), want[4]
    }'
done
