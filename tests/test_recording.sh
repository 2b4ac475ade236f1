#!/bin/sh
# mohawk record, and distill --recording: the bits of a run with the teacher, a recording that was stopped, and what does not belong together.
mohawk=${BUILD:-build}/mohawk
name=test_recording work=${BUILD:-build}/test/recording
rm -rf "$work"
mkdir -p "$work"
. tests/check.sh
tiny=examples/tiny story=examples/story.txt
says() { check "it says \"$1\"" grep -qF -- "$1" "$work/said"; }
sizes="--text $story --batch 2 --length 48"
record() { "$mohawk" record --teacher $tiny $sizes --tokens 0,1k,1k "$@" >"$work/said" 2>&1; }
distill() { "$mohawk" distill $sizes --tokens 0,1k,1k --no-eval --fresh "$@" >"$work/said" 2>&1; }
play() { distill --from "$work/begun/student" "$@"; }
same() { check "$1: the same bits" cmp "$work/$2/student/model.safetensors" "$work/$3/student/model.safetensors"; }
losses() { cut -d, -f1-7 "$work/$1/log.csv"; }

# help and the manual page name the same options
check "record --help" "$mohawk" record --help
for option in $("$mohawk" record --help | sed -n 's/^  --\([a-z0-9-]*\).*/\1/p' | grep -vxE 'help|settings'); do
  check "mohawk.1: record --$option" sh -c "sed -n '/^\\.Ss record\$/,/^\\.S[sh] /p;' tools/mohawk.1 | sed 's/\\\\-/-/g' | grep -qE -- '^\\.It Fl -$option( |\$)'"
done

# all logits: the same bits, with and without the teacher's folder, in hybrids, packed, layer by layer of another length
check "stage 1" "$mohawk" distill --teacher $tiny $sizes --tokens 1k,0,0 --no-eval --out "$work/begun"
check "with the teacher" distill --teacher $tiny --from "$work/begun/student" --out "$work/taught"
check "a recording" record --top 10k --out "$work/all"
says "on the disk of"
check "from the recording" play --recording "$work/all" --out "$work/played" --threads 1
says "stage 3   predictions"
same "from a recording" taught played
check "the same losses" sh -c "cut -d, -f1-7 '$work/taught/log.csv' >'$work/x'; cut -d, -f1-7 '$work/played/log.csv' | cmp - '$work/x'"
check "with the teacher, packed, three stages" distill --teacher $tiny --placement packed --tokens 1k,1k,1k --update-tokens 192 --keep-attention 1 --out "$work/taught3"
check "that recorded" record --placement packed --tokens 1k,1k,1k --update-tokens 192 --top 10k --keep-attention 1 --out "$work/all3"
check "and played" distill --teacher $tiny --recording "$work/all3" --placement packed --tokens 1k,1k,1k --update-tokens 192 --keep-attention 1 --out "$work/played3"
same "three stages of a hybrid, packed" taught3 played3
code 1 "a student whose MLPs have changed" distill --teacher $tiny --recording "$work/all" --from "$work/taught/student" --out "$work/none"
says "are no longer the teacher's"
check "stage 2 alone" distill --teacher $tiny --from "$work/begun/student" --tokens 0,500,0 --out "$work/taught2"
check "stage 2 alone, of a recording with more" play --recording "$work/all" --tokens 0,500,0 --out "$work/played2"
same "stage 2 alone" taught2 played2
check "without hidden states in stage 3" record --top 10k --own-stream 0 --out "$work/short"
check "with the teacher" distill --teacher $tiny --from "$work/begun/student" --own-stream 0 --out "$work/taught0"
check "and without" play --recording "$work/short" --own-stream 0 --out "$work/played0"
same "without hidden states in stage 3" taught0 played0
code 1 "a run that needs them" play --recording "$work/short" --out "$work/none"
says "give --own-stream 0, or record without it"

# fewer logits
check "the largest 8" record --top 8 --out "$work/top"
says "the 8 largest of 1024 logits, which leave out "
mass=$(sed -n 's/.*which leave out \([0-9.]*\) .*/\1/p' "$work/said")
check "a mass between 0 and 100 %: $mass" awk -v m="$mass" 'BEGIN { exit !(m > 1 && m < 90) }'
check "recording.json has it" awk -v m="$mass" -F'[:,]' '/mass_left_out/ { found = $2 * 100 } END { exit !(found > m * 0.99 && found < m * 1.01) }' "$work/top/recording.json"
check "a run on them" play --recording "$work/top" --out "$work/played8"
check "stage 2 as with all" sh -c "grep '^2,' '$work/played8/log.csv' | cut -d, -f1-7 >'$work/x'; grep '^2,' '$work/taught/log.csv' | cut -d, -f1-7 | cmp - '$work/x'"
check "stage 3 not" sh -c "! cmp -s '$work/played8/student/model.safetensors' '$work/taught/student/model.safetensors'"
check "an evaluation without a teacher" "$mohawk" distill --from "$work/begun/student" --recording "$work/top" $sizes --tokens 0,1k,1k --fresh --eval $story --eval-windows 4 \
  --json --out "$work/measured"
cp "$work/output" "$work/said"
says '"cross_entropy": '
check "has no divergence" sh -c "! grep -q '\"kl\"' '$work/said'"
check "how large, beforehand" record --top 8 --dry-run --json --out "$work/none"
bytes=$(sed -n 's/.*"bytes": \([0-9]*\).*/\1/p' "$work/said")
took=$(cat "$work"/top/*.safetensors | wc -c)
check "$bytes bytes, and it took $took" awk -v a="$bytes" -v b="$took" 'BEGIN { exit !(b > 0.9 * a && b < 1.05 * a) }' # at the end of stage 3 there is no own stream

# a recording that was stopped goes on; what is damaged is named, and written again
for signal in INT KILL; do
  "$mohawk" record --teacher $tiny $sizes --tokens 0,1k,1k --top 10k --threads 1 --out "$work/stopped" >"$work/said" 2>&1 &
  process=$!
  for i in $(seq 300); do [ -e "$work/stopped/stage2-000002.safetensors" ] && break; sleep 0.01; done
  kill -$signal $process 2>/dev/null
  wait $process 2>/dev/null
  check "going on after $signal" record --top 10k --json --out "$work/stopped"
  check "not from the start" sh -c "grep -q '\"batches_kept\": [1-9]' '$work/said'"
  for file in "$work"/all/*; do check "the same $(basename "$file")" cmp "$file" "$work/stopped/$(basename "$file")"; done
  rm -rf "$work/stopped"
done
damaged() { rm -rf "$work/damaged"; cp -r "$work/all" "$work/damaged"; }
one=stage3-000001.safetensors
damaged
rm "$work/damaged/$one"
code 1 "a file that is missing" play --recording "$work/damaged" --out "$work/none"
says "$one: it is missing"
damaged
head -c 5000 "$work/all/$one" >"$work/damaged/$one"
code 1 "half a file" play --recording "$work/damaged" --out "$work/none"
says "$one"
damaged
bytes=$(wc -c <"$work/all/$one")
for at in 3000 $((bytes / 2)) $((bytes - 9)); do
  cp "$work/all/$one" "$work/damaged/$one"
  printf '\125' | dd of="$work/damaged/$one" bs=1 seek=$at conv=notrunc 2>/dev/null
  cmp -s "$work/all/$one" "$work/damaged/$one" && continue
  code 1 "another byte at $at" play --recording "$work/damaged" --out "$work/none"
  says "$one"
done
cp "$work/all/stage3-000002.safetensors" "$work/damaged/$one"
code 1 "another batch" play --recording "$work/damaged" --out "$work/none"
says "it has other windows of text"
cp "$work/top/$one" "$work/damaged/$one"
code 1 "a batch of another recording" play --recording "$work/damaged" --out "$work/none"
says "it belongs to another recording"
check "what is damaged is written again" record --top 10k --out "$work/damaged"
check "as it was" cmp "$work/all/$one" "$work/damaged/$one"
for text in '' '[]' '{"format": "mohawk recording 1"}' '{"format": "mohawk recording 2"}' '{'; do
  printf '%s' "$text" >"$work/damaged/recording.json"
  code 1 "recording.json is $text" play --recording "$work/damaged" --out "$work/none"
done
sed 's/"top": "1024"/"top": "99999999999"/' "$work/all/recording.json" >"$work/damaged/recording.json"
code 1 "a top that is none" play --recording "$work/damaged" --out "$work/none"
says "not 1 to 1024"

# a run that was stopped goes on from the recording, and not from another one
check "a run to be stopped" play --recording "$work/all" --checkpoint-seconds 0.01 --out "$work/half" --keep-stages
check "whose checkpoint was that after stage 2" sh -c "cp '$work/half/stage2/checkpoint.safetensors' '$work/half/' && rm -r '$work/half/student' '$work/half/checkpoint.previous.safetensors' '$work/half/results.json'"
again() { "$mohawk" distill $sizes --tokens 0,1k,1k --no-eval --from "$work/begun/student" --out "$work/half" "$@" >"$work/said" 2>&1; }
code 1 "going on from another recording" again --recording "$work/top"
says "teacher's outputs"
check "going on" again --recording "$work/all"
says "resuming from the checkpoint"
same "a run that went on" taught half

# what does not belong together, by name
wrong() {
  text=$1
  shift
  code 1 "$*" play --recording "$work/all" --out "$work/none" "$@"
  says "$text"
}
wrong "was recorded with --seed 1, but this run has 2" --seed 2
wrong "was recorded with --placement random, but" --placement packed
wrong "was recorded with --batch 2, but" --batch 1 --update-tokens 96
wrong "was recorded with --length 48, but" --length 32
wrong "with 960 --tokens in stage 2, but this run has 480" --tokens 0,500,1k
wrong "with 0 --tokens in stage 1" --tokens 100,1k,1k
wrong "--text whose tokens have XXH64" --text README.md
wrong "is no recording" --recording "$work/begun"
code 1 "another text" record --top 10k --text README.md --out "$work/all"
code 1 "fewer logits in the same folder" record --top 9 --out "$work/all"
says "was recorded with --top 1024, but this run has 9"
code 2 "neither teacher nor student" distill --recording "$work/all"
says "needs --teacher DIR or --from DIR"
code 2 "no text" "$mohawk" distill --recording "$work/all" --from "$work/begun/student"
code 2 "no teacher" distill
says "needs --teacher DIR"
code 1 "nothing to record" record --tokens 1k,0,0 --out "$work/none"
says "stage 2 or 3 needs tokens"

echo "$name: $passed passed, $failed failed"
[ "$failed" -eq 0 ]
