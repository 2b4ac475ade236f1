#!/bin/sh
# What somebody meets who uses mohawk for the first time: messages that name the remedy, numbers that leave the program, runs that say what they do.
mohawk=${BUILD:-build}/mohawk
tiny=examples/tiny
name=test_first_steps work=${BUILD:-build}/test/first_steps
rm -rf "$work"
mkdir -p "$work"
. tests/check.sh

says() { check "it says \"$1\"" grep -qF -- "$1" "$work/said"; }
silent() { check "it does not say \"$1\"" sh -c "! grep -qF -- '$1' '$work/said'"; }
run() { "$mohawk" "$@" >"$work/said" 2>&1; }

# names of files that promise what they do not hold
code 2 "a picture as PDF" "$mohawk" matrix --teacher "$tiny" --prompt "Once upon a time" --out "$work/m.pdf"
check "no picture as PDF" [ ! -e "$work/m.pdf" ]
code 2 "numbers as text" "$mohawk" matrix --teacher "$tiny" --prompt "Once upon a time" --out "$work/m.svg" --save "$work/m.txt"

# models that are none
run generate --model phi-1.5 --prompt x
says "download the model"
run distill --teacher phi-1.5 --out "$work/none"
says "download the model"
run inspect phi-1.5
says "805 MB"
mkdir "$work/gpt2"
echo '{"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": 64, "n_layer": 2, "n_head": 2, "vocab_size": 100}' >"$work/gpt2/config.json"
code 1 "a GPT-2" "$mohawk" generate --model "$work/gpt2" --prompt x
cp "$work/output" "$work/said"
says "GPT2LMHeadModel"
silent "model.safetensors"
cp -r "$tiny" "$work/wrong"
sed -i.bak 's/"intermediate_size": *[0-9]*/"intermediate_size": 100/' "$work/wrong/config.json"
run inspect "$work/wrong"
says "(intermediate_size 100), as 11 more do"
check "one wrong number is told once" [ "$(grep -o "asks for" "$work/said" | wc -l)" -eq 1 ]
cp -r "$tiny" "$work/mute"
rm "$work/mute/tokenizer.json"
run generate --model "$work/mute" --prompt x
silent "its teacher"
code 2 "groups of 128" "$mohawk" quantize --model "$tiny" --out "$work/q.safetensors" --group 128
cp "$work/output" "$work/said"
says "it must be 32 or 64"

# what is scored, and what its error means
printf '{"query": "Once upon a time there was", "choices": ["a rabbit", "a stone"], "gold": 0}\n%.0s' 1 2 3 4 5 6 7 8 9 10 11 12 >"$work/rows.jsonl"
run eval --model "$tiny" --text "$work/rows.jsonl" --length 64
says "--task $work/rows.jsonl"
run eval --model "$tiny" --teacher "$tiny" --text examples/story.txt --windows 1
silent "+-"
says "one window of 256 tokens: too few for a standard error"
run eval --model "$tiny" --text examples/story.txt --windows 1 --json
says '"cross_entropy_error": null'
run eval --model "$tiny" --text examples/story.txt --windows 2
says "+-"
code 2 "--top-p 7" "$mohawk" generate --model "$tiny" --top-p 7

# a process has the program's name, also where it started itself again
if [ -e /proc/self/comm ]; then
  (unset OMP_WAIT_POLICY GOMP_SPINCOUNT KMP_BLOCKTIME; exec "$mohawk" generate --model "$tiny" --prompt - <"/dev/zero" >/dev/null 2>&1) &
  process=$!
  sleep 0.3
  check "the process is called mohawk" [ "$(cat /proc/$process/comm)" = mohawk ]
  kill -9 $process
  wait $process 2>/dev/null
fi

# matrices of all heads as numbers
run distill --teacher "$tiny" --text examples/story.txt --out "$work/run" --tokens 256,0,0 --batch 2 --length 64 --no-eval --threads 1
run matrix --teacher "$tiny" --model "$work/run/student" --prompt "Once upon a time" --out "$work/m.svg" --save "$work/m.csv" --json
tokens=$(sed -n 's/.*"tokens": \([0-9]*\),.*/\1/p' "$work/said")
says '"relative_error_of_heads": {'
check "a line for each weight" [ "$(wc -l <"$work/m.csv")" -eq $((1 + 2 * 4 * 4 * tokens * (tokens + 1) / 2)) ]
check "rows of attention sum to 1" awk -F, '$1 == "\"teacher\"" { sum[$2 "," $3 "," $4] += $6 }
  END { for (i in sum) { n++; if (sum[i] < 0.9999 || sum[i] > 1.0001) bad = 1 } exit bad || n == 0 }' "$work/m.csv"
run matrix --teacher "$tiny" --model "$work/run/student" --prompt "Once upon a time" --out "$work/m.svg" --save "$work/m.npy"
check "an array of NumPy's: magic, version, header" sh -c "head -c 8 '$work/m.npy' | od -An -c | grep -q '223   N   U   M   P   Y 001  *.0'"
check "its shape and size" sh -c "head -c 128 '$work/m.npy' | tr -d '\0' | grep -aq \"'shape': (2, 4, 4, $tokens, $tokens)\" &&
  [ \$(wc -c <'$work/m.npy') -eq $((128 + 4 * 2 * 4 * 4 * tokens * tokens)) ]"
python=${PYTHON:-python3}
if "$python" -c 'import numpy' >/dev/null 2>&1; then
  check "NumPy reads the numbers of the CSV" "$python" -c "
import csv, numpy
a = numpy.load('$work/m.npy')
b = numpy.zeros_like(a)
for model, *at, weight in list(csv.reader(open('$work/m.csv')))[1:]:
    b[(int(model != 'teacher'), *map(int, at))] = float(weight)
assert a.shape == (2, 4, 4, $tokens, $tokens) and (a == b).all() and abs(a[0].sum(-1) - 1).max() < 1e-5"
fi

# a state that attention does not fit into
run distill --teacher "$tiny" --text examples/story.txt --out "$work/small" --tokens 256,0,0 --batch 2 --length 64 --no-eval --d-state 16 --threads 1
says "B and C start at random"
run distill --teacher "$tiny" --text examples/story.txt --out "$work/large" --tokens 256,0,0 --batch 2 --length 64 --no-eval --d-state 40 --threads 1
silent "start at random"

# what a run says beforehand, and what it keeps
small="--teacher $tiny --text examples/story.txt --batch 2 --length 64 --threads 1"
run distill $small --tokens 1k,0,0 --lr 2e-4,-,- --out "$work/plan" --eval examples/story.txt --eval-windows 8
says "student Phi-Mamba, 1.14 M parameters, 84.0 kB of state after 64 tokens"
says "stage 1: 7 updates of 128 tokens, 896 in all of the 1000 asked for: whole updates; learning rate 0.0002"
silent "stage 2:"
silent "further from its teacher"
silent "in all on 1 thread"
check "teacher, student at the start and after the stage" [ "$(grep -cE '^(teacher|untrained|after stage 1)  .* \+- ' "$work/said")" -eq 3 ]
check "they are kept" sh -c "grep -q '\"teacher\": {\"cross_entropy\": [0-9]' '$work/plan/results.json' &&
  [ \$(grep -o '\"stage\": [01],' '$work/plan/results.json' | wc -l) -eq 2 ]"
run distill $small --tokens 1k,1k,0 --lr 2e-4,-,- --out "$work/plan" --eval examples/story.txt --eval-windows 8
check "a finished run is not another one" grep -q -- "--from $work/plan/student" "$work/said"
run distill $small --tokens 1k,0,0 --lr 2e-4,-,- --out "$work/plan" --eval examples/story.txt --eval-windows 8
check "the teacher is not measured again, and not forgotten" sh -c "! grep -q ^teacher '$work/said' && grep -q '\"teacher\": {\"cross' '$work/plan/results.json'"
"$mohawk" distill $small --tokens 1k,0,0 --lr 2e-4,-,- --out "$work/json" --json >"$work/said" 2>&1
says '"student_parameters": 1135904, "stages": [{"updates": 7, "tokens": 896, "learning_rate": 0.0002}, {"updates": 0,'
says '{"event": "teacher", "cross_entropy": '
says '{"event": "evaluation", "stage": 0, '
says '{"event": "evaluation", "stage": 1, '
run distill $small --tokens 0,40k,0 --no-eval --out "$work/long" --every 0.1 --dry-run
check "a dry run that is as long" grep -q '^stage 2 .* of memory, 39.9 k tokens at ' "$work/said"
run distill --from "$work/plan/student" $small --tokens 0,2k,0 --dry-run --out "$work/dry"
check "a dry run of a student that is there" grep -q '^stage 2 ' "$work/said"

# a stage that does harm says so, and one that diverges fails, also at the next start
run distill $small --tokens 1k,0,0 --lr 1e-2,-,- --out "$work/worse" --eval examples/story.txt --eval-windows 8
says "stage 1 left its loss higher than it found it"
says "stage 1 left the student further from its teacher than it was: KL "
for start in first second; do
  code 1 "a learning rate of 10, $start start" "$mohawk" distill $small --tokens 3k,3k,3k --lr 10 --no-eval --out "$work/diverged"
  cp "$work/output" "$work/said"
  says "stage 1 diverged: its loss was "
  says "for example 0.01"
  check "nothing is saved" [ ! -e "$work/diverged/student" ]
done

# runs that change nothing
code 1 "nothing trains in stage 1" "$mohawk" distill $small --tokens 1k,0,0 --keep-attention 0,1,2,3 --no-eval --out "$work/nothing"
code 1 "nothing trains in stage 3" "$mohawk" distill $small --tokens 1k,0,1k --train mixers --keep-attention 0,1,2,3 --no-eval --out "$work/nothing"
check "attention trains in stage 3" "$mohawk" distill $small --tokens 1k,0,1k --keep-attention 0,1,2,3 --no-eval --out "$work/attention"
code 1 "nothing trains in a student of attention" "$mohawk" distill $small --tokens 1k,0,0 --from "$work/attention/student" --no-eval --out "$work/nothing"

# the help of a command with many options
run distill --help
says "--help all"
silent "--hard-labels"
check "it fits on a screen or two" [ "$(wc -l <"$work/said")" -lt 60 ]
run distill --help all
says "--hard-labels"

echo "$name: $passed passed, $failed failed"
[ "$failed" -eq 0 ]
