#!/bin/sh
# Settings in files, run folders that reproduce, and tables of experiments.
mohawk=${BUILD:-build}/mohawk
tiny=examples/tiny
name=test_ablate work=${BUILD:-build}/test/ablate
rm -rf "$work"
mkdir -p "$work"
. tests/check.sh

says() { check "it says \"$1\"" grep -qF -- "$1" "$work/said"; }
# try N WHAT COMMAND...: its exit code must be N; what it says stays in $work/said
try() {
  code "$@"
  cp "$work/output" "$work/said"
}
same() { check "the same bits: $1, $2" cmp "$work/$1/student/model.safetensors" "$work/$2/student/model.safetensors"; }
other() { code 1 "other bits: $1, $2" cmp -s "$work/$1/student/model.safetensors" "$work/$2/student/model.safetensors"; }

# ---- settings in files
cat >"$work/run.txt" <<'END'
# a small run
teacher = examples/tiny
text = examples/story.txt
tokens = 1k,1k,1k
lr = 1e-2,-,3e-4
batch=2
length = 64
  threads = 1
no-eval = yes
no-gates = yes
END
check "options" "$mohawk" distill --teacher $tiny --text examples/story.txt --tokens 1k,1k,1k --lr 1e-2,-,3e-4 --batch 2 --length 64 --threads 1 --no-eval --no-gates --out "$work/a"
check "settings" "$mohawk" distill --settings "$work/run.txt" --out "$work/b"
same a b
for folder in a b; do sed 's/"out": "[^"]*"//' "$work/$folder/run.json" >"$work/$folder.json"; done
check "the same record" cmp "$work/a.json" "$work/b.json"
check "flags win over settings" "$mohawk" distill --settings="$work/run.txt" --out "$work/gates" --gates --text "$work/run.txt" examples/story.txt
says_in() { check "$1 has $2" grep -qF -- "$2" "$work/$1"; }
says_in gates/run.json '"gates": true'
says_in gates/run.json "\"text\": [\"$work/run.txt\", \"examples/story.txt\"]"
says_in a/run.json '"no-gates": true'
says_in a/run.json '"lr": [0.01, 0.005, 0.0003]'
check "settings of a run" "$mohawk" distill --settings "$work/a/run.json" --out "$work/c" --no-gates=no --gates
printf 'tokens = 5\ntemprature = 0.5\n' >"$work/bad"
try 2 "a setting that is none" "$mohawk" generate --model $tiny --settings "$work/bad"
says "did you mean --temperature?"
says "line 2 of $work/bad"
printf 'tokens = many\n' >"$work/bad"
try 2 "a setting that is no number" "$mohawk" generate --model $tiny --settings "$work/bad"
says "line 1 of $work/bad"
printf 'tokens\n' >"$work/bad"
try 2 "a line without a value" "$mohawk" generate --model $tiny --settings "$work/bad"
printf 'greedy = maybe\n' >"$work/bad"
try 2 "a flag that is neither" "$mohawk" generate --model $tiny --settings "$work/bad"
says "yes or no"
for text in '{' '{"tokns": []}' '{"tokens": [[5]]}' '{"tokens": [}' '{"tokens": 5' '{"tokens" 5}' '{"tokens": "\u12"}'; do
  printf '%s' "$text" >"$work/bad"
  try 2 "settings $text" "$mohawk" generate --model $tiny --settings "$work/bad"
done
try 2 "settings of another command" "$mohawk" generate --model $tiny --settings "$work/a/run.json"
says "settings of mohawk distill"
try 2 "settings that are not there" "$mohawk" generate --model $tiny --settings "$work/nothing"
printf '{"tokens": 3, "greedy": true, "stop-token": [1, 2]}' >"$work/good"
check "settings in JSON" "$mohawk" generate --model $tiny --settings "$work/good" --json

# ---- a run again
check "rerun" "$mohawk" rerun "$work/a" --threads 2
same a a.rerun
check "rerun with another seed" "$mohawk" rerun "$work/a/" --out "$work/seed" --seed 2
other a seed
printf 'abc' >"$work/abc.txt"
check "a run of three letters" sh -c "'$mohawk' distill --settings '$work/run.txt' --text '$work/abc.txt' examples/story.txt --out '$work/abc'"
says_in abc/run.json '"bytes": 3, "xxh64": "44bc2cf5ad770999"' # as xxh64sum says
printf 'abd' >"$work/abc.txt"
try 1 "a text that changed" "$mohawk" rerun "$work/abc"
says "abc.txt is not what it was"
check "a text that changed, anyway" "$mohawk" rerun "$work/abc" --anyway
other abc abc.rerun
cp -r $tiny "$work/teacher"
try 0 "the same teacher elsewhere" "$mohawk" rerun "$work/a" --out "$work/elsewhere" --teacher "$work/teacher"
same a elsewhere
printf ' ' >>"$work/teacher/config.json"
try 1 "a teacher that changed" "$mohawk" rerun "$work/a" --out "$work/changed" --teacher "$work/teacher"
says "teacher/config.json is not what it was"
check "a text from a pipe" sh -c "'$mohawk' distill --settings '$work/run.txt' --text - --out '$work/pipe' <examples/story.txt"
same a pipe
try 1 "a pipe cannot be read again" "$mohawk" rerun "$work/pipe"
says "was a pipe"
try 1 "no run" "$mohawk" rerun "$work"
try 2 "no folder" "$mohawk" rerun
try 2 "an option that is none" "$mohawk" rerun "$work/a" --sed 2
says "did you mean --seed?"

# ---- students after each stage, and what can be done with them
distill() { "$mohawk" distill --settings "$work/run.txt" "$@"; }
check "a run that keeps its stages" distill --tokens 1k,1k,2k --keep-stages --out "$work/whole"
check "a run of a stage" distill --tokens 1k,0,0 --out "$work/one"
check "the student after stage 1" cmp "$work/whole/stage1/model.safetensors" "$work/one/student/model.safetensors"
mkdir "$work/later"
cp "$work/whole/stage2/checkpoint.safetensors" "$work/later"
check "another stage 3" distill --tokens 1k,1k,1k --out "$work/later"
same later a
mkdir "$work/skip"
cp "$work/whole/stage1/checkpoint.safetensors" "$work/skip"
check "no stage 2" distill --tokens 1k,0,1k --out "$work/skip"
check "no stage 2, at once" distill --tokens 1k,0,1k --out "$work/skipped"
same skip skipped
mkdir "$work/wrong"
cp "$work/whole/stage2/checkpoint.safetensors" "$work/wrong"
try 1 "another stage 1" distill --tokens 2k,1k,1k --out "$work/wrong"
says "stage 1 tokens"
check "a student trained further" distill --from "$work/a/student" --no-gates=no --tokens 0,0,1k --out "$work/further"
says_in further/run.json "\"option\": \"from\", \"path\": \"$work/a/student/model.safetensors\""
check "that again" "$mohawk" rerun "$work/further"
same further further.rerun
try 2 "a student that is there and new" distill --from "$work/a/student" --out "$work/both"
says "--no-gates is for a new student"
check "a run with results" distill --eval examples/story.txt --no-eval=no --eval-windows 4 --out "$work/measured"
says_in measured/results.json '"finished": true'
try 1 "a finished run cannot go on" distill --eval examples/story.txt --no-eval=no --eval-windows 4 --tokens 1k,1k,2k --out "$work/measured"
says "--from $work/measured/student"

# ---- tables
cat >"$work/table" <<'END'
# shares of the budget
all: --tokens 1k,1k,1k
rate: --tokens 1k,1k,1k --lr -,-,1e-3
no 2: --tokens 1k,0,2k
start: --tokens 1k,1k,1k --init random --no-calibrate
END
ablate() {
  out=$1
  shift
  "$mohawk" ablate --table "$work/table" --teacher $tiny --text examples/story.txt --eval examples/story.txt --eval-windows 4 --batch 2 --length 64 --seeds 1,2 \
    --out "$work/$out" "$@"
}
try 0 "what would run" ablate plan --dry-run
says "rate-1 goes on from stage 2 of $work/plan/all-1"
says "no_2-2 goes on from stage 1 of $work/plan/all-2"
says "no 2                          1024         0      1920"
check "it ran nothing" sh -c "! test -e '$work/plan'"
ablate one --jobs 1 >"$work/one.txt" 2>/dev/null
ablate two --jobs 2 >"$work/two.txt" 2>/dev/null
table() { grep -v '^saved' "$work/$1.txt" >"$work/$1.table"; }
table one
table two
check "a table" grep -q '^rate .*1.02 k .* to ' "$work/one.table"
check "the same table, side by side" cmp "$work/one.table" "$work/two.table"
check "its picture" cmp "$work/one/ablation.svg" "$work/two/ablation.svg"
check "it is XML" sh -c "command -v xmllint >/dev/null || exit 0; xmllint --noout '$work/one/ablation.svg'"
for run in rate-2 no_2-1; do
  check "$run alone" "$mohawk" distill --settings "$work/one/$run/settings.txt" --out "$work/$run"
  same $run one/$run
  check "$run shared stages" sh -c "! grep -q '^1,' '$work/one/$run/log.csv'"
done
ablate two --json >"$work/said" 2>/dev/null
says '"name": "rate"'
says '"standard_error": '
says '"tokens": [1024, 0, 1920]'
since=$(ls -i "$work/two/all-1/student/model.safetensors")
sed 's/1e-3/2e-3/' "$work/table" >"$work/table.new"
mv "$work/table.new" "$work/table"
try 0 "a row that changed" ablate two
says "6 of 8 runs are in"
check "others did not run again" test "$since" = "$(ls -i "$work/two/all-1/student/model.safetensors")"
sed 's/2e-3/1e-3/' "$work/table" >"$work/table.new"
mv "$work/table.new" "$work/table"

# killed at some moments, then Ctrl-C; the same table comes out
kill_after() {
  "$mohawk" ablate --table "$work/table" --teacher $tiny --text examples/story.txt --eval examples/story.txt --eval-windows 4 --batch 2 --length 64 --seeds 1,2 \
    --out "$work/killed" >"$work/said" 2>&1 &
  process=$!
  # as soon as a run trains, and a little later
  while kill -0 $process 2>/dev/null && [ -z "$(find "$work/killed" -name log.csv 2>/dev/null)" ]; do sleep 0.02; done
  sleep "$2"
  kill -"$1" $process 2>/dev/null
  wait $process 2>/dev/null
  ended=$?
}
kill_after TERM 0
check "it stopped" test $ended -eq 1
says "To resume, run:"
kill_after KILL 0
check "it was killed" test $ended -eq 137
for moment in 0.4 0.7; do kill_after KILL $moment; done # it may have ended by then
ablate killed >"$work/killed.txt" 2>"$work/said"
table killed
check "the same table after kills" cmp "$work/one.table" "$work/killed.table"
for run in all-1 rate-2 no_2-1 start-2; do same one/$run killed/$run; done

# mistakes
one() { "$mohawk" ablate --out "$work/x" --teacher $tiny "$@"; }
try 2 "no table" one
says "--preset, --table or --run"
try 1 "a row without a name" one --run "d-state 16"
says 'is not NAME: OPTIONS'
try 1 "a row with a wrong option" one --run "a: --d-sate 16"
says "did you mean --d-state?"
says 'the options of "a"'
try 1 "two of a name" one --run "a:" "a: --d-state 8"
try 1 "too small a budget" one --run "a:" --budget 100
says "not one update"
try 2 "seed" one --run "a:" --seed 3
says "--seeds"
try 0 "unequal budgets" one --run "a: --tokens 1k,1k,1k" "b: --tokens 1k,1k,4k" --batch 2 --length 64 --dry-run
says "--budget gives all the same"
try 1 "a run that fails" one --run "a: --keep-attention 9" --tokens 1k,1k,1k --text examples/story.txt --eval examples/story.txt --batch 2 --length 64 --seeds 1
says "there is no layer 9"

# a preset, as far as it runs
check "--preset stages --short" "$mohawk" ablate --preset stages --teacher $tiny --short --seeds 1 --budget 100k --batch 1 --length 64 --eval-windows 4 --out "$work/stages"
cp "$work/output" "$work/said"
says "KL after stage 2, by stage 1's share"
says "most is lost without stage"
for preset in hybrid start; do
  try 0 "--preset $preset" "$mohawk" ablate --preset $preset --teacher $tiny --dry-run --out "$work/x"
done
says "attention, calibrated"

# ---- what shells complete, and manual pages
"$mohawk" completion bash >"$work/bash"
"$mohawk" completion zsh >"$work/zsh"
complete() { # WORD...: what bash offers for the last word
  bash -c '. "$0"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); compopt() { :; }; _mohawk; printf "%s\n" "${COMPREPLY[@]}"' "$work/bash" "$@" >"$work/said"
}
if command -v bash >/dev/null; then
  complete mohawk abl
  check "a command" grep -qx ablate "$work/said"
  complete mohawk distill --keep-s
  check "an option" grep -qx -- --keep-stages "$work/said"
  complete mohawk rerun run --keep-s
  check "an option of another command" grep -qx -- --keep-stages "$work/said"
  complete mohawk distill --init att
  check "a word" grep -qx attention "$work/said"
  complete mohawk distill --text examples/story.txt examples/st
  check "a file" grep -qx examples/story.txt "$work/said"
  complete mohawk distill --teacher examples/t
  check "a folder" grep -qx examples/tiny "$work/said"
  complete mohawk distill --seed e
  check "nothing for a number" sh -c "! grep -q . '$work/said'"
fi
if command -v zsh >/dev/null; then check "zsh reads it" zsh -n "$work/zsh"; fi
check "zsh" grep -qF "'--init[initialization" "$work/zsh"
try 1 "another shell" "$mohawk" completion fish
for command in $("$mohawk" completion man); do
  check "zsh: $command" grep -qF "    $command)" "$work/zsh"
  "$mohawk" completion man $command >"$work/page"
  "$mohawk" $command --help all >"$work/help"
  if command -v groff >/dev/null; then
    check "page of $command" sh -c "groff -mdoc -ww -z '$work/page' 2>&1 | (! grep .)"
  fi
  for option in $(sed -n 's/^  --\([a-z0-9-]*\).*/\1/p' "$work/help" | grep -vx help); do
    check "page of $command: --$option" sh -c "sed 's/\\\\-/-/g' '$work/page' | grep -qE -- '^\.It Fl -$option( |\$)'"
  done
done
if command -v groff >/dev/null; then check "mohawk.1" sh -c "groff -mdoc -ww -z tools/mohawk.1 2>&1 | (! grep .)"; fi
if command -v script >/dev/null; then
  script -qec "$mohawk --help" /dev/null >"$work/bold" 2>&1 </dev/null
  NO_COLOR=1 script -qec "$mohawk --help" /dev/null >"$work/plain" 2>&1 </dev/null
  check "bold on a terminal" grep -q "$(printf '\033')" "$work/bold"
  check "not with NO_COLOR" sh -c "! grep -q '$(printf '\033')' '$work/plain'"
fi

echo "$name: $passed passed, $failed failed"
[ "$failed" -eq 0 ]
