#!/bin/sh
# mohawk train and mohawk tokenizer: mistakes, one small run of each kind, stopped runs that go on, and a student of a teacher that was trained here.
mohawk=${BUILD:-build}/mohawk
name=test_train work=${BUILD:-build}/test/train
rm -rf "$work"
mkdir -p "$work"
. tests/check.sh
story=examples/story.txt
says() { check "it says \"$1\"" grep -qF -- "$1" "$work/said"; }
tokenizer() { "$mohawk" tokenizer --text "$story" "$@" >"$work/said" 2>&1; }
small="--d-model 32 --layers 2 --heads 2 --vocab-size 300 --length 32 --batch 2 --eval-windows 8"
train() { "$mohawk" train --text "$story" $small "$@" >"$work/said" 2>&1; }

# help and the manual page name the same options
for command in train tokenizer; do
  check "$command --help" "$mohawk" $command --help
  for option in $("$mohawk" $command --help all | sed -n 's/^  --\([a-z0-9-]*\).*/\1/p' | grep -vxE 'help|settings'); do
    check "mohawk.1: $command --$option" sh -c "sed -n '/^\\.Ss $command\$/,/^\\.S[sh] /p;' tools/mohawk.1 | sed 's/\\\\-/-/g' | grep -qE -- '^\\.It Fl -$option( |\$)'"
  done
done

# tokenizers
check "a tokenizer" tokenizer --vocab-size 400 --out "$work/a.json"
says "400 tokens"
check "into a folder" tokenizer --vocab-size 400 --out "$work"
check "the same text, the same tokenizer" cmp "$work/a.json" "$work/tokenizer.json"
check "the same text in two files" sh -c "head -n 20 $story >'$work/1.txt'; tail -n +21 $story >'$work/2.txt'"
check "a tokenizer of a pipe" sh -c "cat $story | '$mohawk' tokenizer --text - --vocab-size 400 --out '$work/b.json' 2>/dev/null >'$work/said'"
check "text from a pipe" cmp "$work/a.json" "$work/b.json"
printf 'ab ab<|endoftext|>ab abc abc' >"$work/tiny.txt"
"$mohawk" tokenizer --text "$work/tiny.txt" --out "$work/c.json" >"$work/said" 2>&1
says "pairs for only 260 tokens, not 2048" # ab, Gab, Gabc: "ab" 2, "Gab" 3, "Gabc" 2
check "the most frequent pair first, then the lower ids" grep -qF '"merges":["a b","Ġ ab","Ġab c"]' "$work/c.json"
check "<|endoftext|> is one token" grep -qF '{"<|endoftext|>":0,"!":1' "$work/c.json"
code 2 "no text" "$mohawk" tokenizer --out "$work/d.json"
code 2 "too few tokens" "$mohawk" tokenizer --text "$story" --vocab-size 100
code 1 "no such text" "$mohawk" tokenizer --text "$work/nothing" --out "$work/d.json"
: >"$work/empty"
"$mohawk" tokenizer --text "$work/empty" --out "$work/d.json" >"$work/said" 2>&1
says "no text to train a tokenizer on"
head -c 4000 "$mohawk" >"$work/binary"
code 1 "a program as text" "$mohawk" tokenizer --text "$work/binary" --out "$work/d.json"
check "nothing was written" [ ! -e "$work/d.json" ]
code 1 "a folder that is not there" "$mohawk" tokenizer --text "$story" --out "$work/no/such/d.json"

# mistakes
code 2 "train on nothing" "$mohawk" train
code 2 "a width that heads do not divide" train --d-model 50 --heads 4
says "make --d-model 56, or choose --heads"
code 2 "options of another architecture" train --d-state 8
says "need --arch phi-mamba"
code 2 "a layer that is not there" train --arch phi-mamba --keep-attention 2
says "there is no layer 2; --layers 2 are 0 to 1"
code 1 "no such tokenizer" train --tokenizer "$work/nothing"
says "--tokenizer takes a tokenizer.json or the folder of a model"
code 1 "a tokenizer that is text" train --tokenizer "$story"
code 1 "a tokenizer that is a program" train --tokenizer "$mohawk"
head -c 3000 "$work/a.json" >"$work/half.json"
code 1 "half a tokenizer" train --tokenizer "$work/half.json"
says "half.json"
code 1 "a folder without one" train --tokenizer tests
says "has no tokenizer.json"
code 1 "a short text" train --length 4096
says "give more --text, a smaller --length, or --no-eval"
code 2 "fewer tokens than an update" train --tokens 63 --out "$work/none"
says "--tokens 63 are fewer than the 64 of one update"
code 1 "no memory for it" train --length 1M --batch 1k --tokens 4G --no-eval --out "$work/none"
check "it says what would fit" grep -qE "try( --recompute)? --batch 1 " "$work/said"
code 1 "no learning rate" train --tokens 20k --lr 9 --out "$work/diverged"
says "--fresh and a lower --lr, for example --lr 2.2"
code 1 "an odd update" train --update-tokens 100 --out "$work/none"
says "not a whole number of batches"

# runs
check "a Phi" train --tokens 16k --lr 5e-3 --out "$work/phi" --threads 1 --checkpoint-seconds 0.02
says "held-out tokens"
says "saved     $work/phi/model"
loss() { sed -n 's/.*cross-entropy \([0-9.]*\).*/\1/p' "$1"; }
check "it learned" awk -v x="$(loss "$work/said")" 'BEGIN { exit !(x > 2 && x < 5.2) }' # log 300 is 5.7
check "the log has every update" [ "$(wc -l <"$work/phi/log.csv")" -eq 251 ]
check "the first loss is that of knowing nothing" awk -F, 'NR == 2 { exit !($4 > 5.5 && $4 < 6) }' "$work/phi/log.csv"
check "again, on more threads" train --tokens 16k --lr 5e-3 --out "$work/again" --threads 3 --json
check "the same bits" cmp "$work/phi/model/model.safetensors" "$work/again/model/model.safetensors"
says '"event": "start", "out": "'"$work/again"'", "model": "Phi", "parameters": '
says '"event": "evaluation", "cross_entropy": '
says '"event": "saved", "path": "'"$work/again/model"'"'
check "a held-out text of its own" train --tokens 1k --eval README.md --tokenizer "$work/phi/model" --out "$work/other"
code 1 "another learning rate does not go on" train --tokens 16k --lr 4e-3 --out "$work/phi"
says "belongs to another run"
check "a hybrid" train --arch phi-mamba --keep-attention 1 --window 4 --tokens 4k --placement packed --out "$work/hybrid"
says "Phi-Mamba with attention in layer 1: cross-entropy"
check "the released mixer" train --arch phi-mamba --recipe paper --d-state 8 --tokens 4k --dtype bf16 --out "$work/mamba"
"$mohawk" inspect "$work/mamba/model" --names >"$work/said"
check "no gates" sh -c "! grep -q gates '$work/said'"
train --arch phi-mamba --tokens 4M --dry-run --out "$work/dry"
says "of memory, 4.00 M tokens at "
check "a dry run writes nothing" [ ! -e "$work/dry" ]

# Ctrl-C, a kill, and going on to the same bits
for signal in INT KILL; do
  "$mohawk" train --text "$story" $small --tokens 16k --lr 5e-3 --out "$work/stopped" --threads 2 --checkpoint-seconds 0.02 >"$work/said" 2>&1 &
  process=$!
  for i in $(seq 200); do [ -e "$work/stopped/checkpoint.safetensors" ] && break; sleep 0.02; done
  kill -$signal $process 2>/dev/null
  wait $process 2>/dev/null
  [ $signal = KILL ] || says "To resume, run:"
  check "going on after $signal" train --tokens 16k --lr 5e-3 --out "$work/stopped"
  says "resuming from the checkpoint"
  check "the same bits after $signal" cmp "$work/phi/model/model.safetensors" "$work/stopped/model/model.safetensors"
  # a kill may come between a checkpoint and the line of its update
  [ $signal = KILL ] || check "the same log after $signal" sh -c "cut -d, -f1-7 '$work/phi/log.csv' >'$work/x'; cut -d, -f1-7 '$work/stopped/log.csv' | cmp - '$work/x'"
  rm -rf "$work/stopped"
done

# the same again, from what it wrote down
rerun() { "$mohawk" rerun "$@" >"$work/said" 2>&1; }
check "rerun" rerun "$work/again" --threads 1
check "the same bits from run.json" cmp "$work/phi/model/model.safetensors" "$work/again.rerun/model/model.safetensors"
check "another width" rerun "$work/again" --d-model 48 --tokens 1k --out "$work/wide"
check "is in its run.json" grep -q '"d-model": 48' "$work/wide/run.json"
cp "$story" "$work/story.txt"
check "a run on a copy" "$mohawk" train --text "$work/story.txt" $small --tokens 1k --out "$work/copy"
printf 'One more.' >>"$work/story.txt"
code 1 "a text that changed" rerun "$work/copy"
says "story.txt is not what it was"
check "anyway" rerun "$work/copy" --anyway
check "a tokenizer of its own" "$mohawk" train --text "$story" $small --tokenizer "$work/phi/model" --tokens 1k --out "$work/given"
check "is an input" grep -q '"option": "tokenizer", "path": "[^"]*tokenizer.json"' "$work/given/run.json"
check "that again" rerun "$work/given"
check "the same bits" cmp "$work/given/model/model.safetensors" "$work/given.rerun/model/model.safetensors"
code 2 "an option of neither" rerun "$work/again" --d-mode 4
says "did you mean --d-model?"

# a teacher of its own
check "a student of it" "$mohawk" distill --teacher "$work/phi/model" --text "$story" --tokens 1k,1k,2k --batch 2 --length 32 --eval "$story" --eval-windows 8 \
  --out "$work/student"
check "which speaks" "$mohawk" generate --model "$work/student/student" --prompt "Once" --tokens 5

echo "$name: $passed passed, $failed failed"
[ "$failed" -eq 0 ]
