#!/bin/sh
# Reruns rows of the quality table with `mohawk distill` and prints what they reach next to the numbers to reach: KL divergences
# measured with the method in PyTorch. One seed each, 3 M tokens each.
#
#   tools/quality.sh TEACHER_DIR DATA_DIR [OUT_DIR]
#
# TEACHER_DIR is the bundled teacher (examples/tiny); DATA_DIR holds text/stories_train.txt, text/children_train.txt and
# text/children_valid.txt; OUT_DIR (default build/quality) receives a folder a row. Stopped with Ctrl-C, the same command goes on.
#
# Variables: ROWS    which rows, of: alone staged staged-high attention rotary hybrid hybrid-best
#            MOHAWK  the program (default build/mohawk)
#            SCALE   tokens of each stage in thousands are 500, 1000, 1500 times this over 100 (default 100)
set -eu

if [ $# -lt 2 ] || [ $# -gt 3 ]; then
  sed -n '2,13s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
teacher=$1
data=$2
out=${3:-build/quality}
rows=${ROWS:-alone staged attention rotary hybrid}
mohawk=${MOHAWK:-build/mohawk}
scale=${SCALE:-100}

for file in stories_train children_train children_valid; do
  if [ ! -f "$data/text/$file.txt" ]; then
    echo "quality.sh: $data/text/$file.txt is missing" >&2
    exit 1
  fi
done

# name of a row -> what it is | options | cross-entropy, KL, same next token to reach
staged="--tokens $((5 * scale))k,$((10 * scale))k,$((15 * scale))k"
row() {
  case $1 in
    alone) echo "distillation alone|--recipe paper --tokens 0,0,$((30 * scale))k --lr 2e-3|3.161|0.308|0.643" ;;
    staged) echo "0.5 + 1 + 1.5 M|--recipe paper $staged --lr 3e-3,3e-3,1e-3|3.131|0.205|0.703" ;;
    staged-high) echo "0.5 + 1 + 1.5 M, stage 1 at 1e-2|--recipe paper $staged --lr 1e-2,3e-3,1e-3|3.108|0.186|0.713" ;;
    attention) echo "attention initialisation, decay over the last half|--rotary none --own-stream 0 $staged --lr 1e-2,5e-3,5e-4|3.095|0.161|0.731" ;;
    rotary) echo "the same with rotary and own-stream alignment|$staged --lr 1e-2,5e-3,1e-3|3.086|0.134|0.753" ;;
    hybrid) echo "hybrid, layer 2 kept|--recipe paper --keep-attention 2 $staged --lr 3e-3,3e-3,1e-3|3.064|0.137|0.753" ;;
    hybrid-best) echo "hybrid, layer 2 kept, rotary and own-stream|--keep-attention 2 $staged --lr 1e-2,5e-3,1e-3|3.039|0.087|0.800" ;;
    *)
      echo "quality.sh: there is no row \"$1\"" >&2
      exit 1
      ;;
  esac
}

# number after a key in one line of JSON
value() { printf '%s\n' "$1" | sed -n "s/.*\"$2\": \([-0-9.eE]*\).*/\1/p"; }

for name in $rows; do row "$name" >/dev/null; done
mkdir -p "$out"
for name in $rows; do
  options=$(row "$name" | cut -d'|' -f2)
  echo "quality.sh: $name: $options" >&2
  # shellcheck disable=SC2086 # the options are words
  "$mohawk" distill --teacher "$teacher" --out "$out/$name" $options --batch 8 --length 256 --windows random \
    --text "$data/text/stories_train.txt" "$data/text/children_train.txt" --repeat 4,1 --max-document 0,1500 \
    --eval "$data/text/children_valid.txt" --eval-windows 128 --eval-length 256 --json >"$out/$name.jsonl" || {
    echo "quality.sh: $name did not finish" >&2
    exit 1
  }
done

echo '| recipe | cross-entropy | to reach | KL to teacher | to reach | difference | same next token | to reach |'
echo '|---|---|---|---|---|---|---|---|'
for name in $rows; do
  line=$(grep '"event": "evaluation"' "$out/$name.jsonl" | tail -n 1)
  row "$name" | awk -F'|' -v ce="$(value "$line" cross_entropy)" -v kl="$(value "$line" kl)" -v same="$(value "$line" agreement)" \
    '{ printf "| %s | %.3f | %s | %.4f | %s | %+.1f %% | %.3f | %s |\n", $1, ce, $3, kl, $4, 100 * (kl / $4 - 1), same, $5 }'
done
