#!/bin/sh
# The command line: help, mistakes, the manual page, one small run of everything, Ctrl-C and going on.
mohawk=${BUILD:-build}/mohawk
tiny=examples/tiny
name=test_command work=${BUILD:-build}/test/command
rm -rf "$work"
mkdir -p "$work"
. tests/check.sh

says() { check "it says \"$1\"" grep -qF -- "$1" "$work/said"; }

# help and the manual page name the same options
for command in $("$mohawk" completion man); do
  check "$command --help" "$mohawk" "$command" --help
  for option in $("$mohawk" "$command" --help all | sed -n 's/^  --\([a-z0-9-]*\).*/\1/p' | grep -vxE 'help|settings'); do
    check "mohawk.1: $command --$option" sh -c "sed -n '/^\\.Ss $command\$/,/^\\.S[sh] /p;' tools/mohawk.1 |
      sed 's/\\\\-/-/g' | grep -qE -- '^\\.It Fl -$option( |\$)'"
  done
done

# mistakes
code 2 "no command" "$mohawk"
code 2 "wrong command" "$mohawk" distill
code 2 "wrong option" "$mohawk" distill --techer "$tiny"
code 2 "missing option" "$mohawk" eval --model "$tiny"
code 2 "not a number" "$mohawk" generate --model "$tiny" --tokens many
code 1 "no such model" "$mohawk" generate --model "$work/nothing"
"$mohawk" distill --techer "$tiny" >"$work/said" 2>&1
says "did you mean --teacher"
"$mohawk" distill --teacher "$tiny" --length 4M --batch 64 --out "$work/big" >"$work/said" 2>&1
says " --length "
"$mohawk" distill --teacher "$tiny" --tokens 0,0,0 --out "$work/big" >"$work/said" 2>&1
says "at least one stage needs tokens"

# looking and speaking
check inspect "$mohawk" inspect "$tiny" --names
"$mohawk" inspect mamba2-130m >"$work/said"
says "with attention in every layer: 604 MB"
check "inspect of a known shape" "$mohawk" inspect phi-1.5 --json
"$mohawk" generate --model "$tiny" --prompt "Once upon a time" --tokens 12 --greedy --json >"$work/said"
says '"stopped": "tokens"'
said=$(sed -n 's/.*"text": "\([^"]*\)".*/\1/p' "$work/said")
"$mohawk" generate --model "$tiny" --prompt "Once upon a time" --tokens 12 --temperature 0 --json >"$work/said"
says "\"text\": \"$said\""
stop=$(printf '%s' "$said" | cut -c 6-11)
"$mohawk" generate --model "$tiny" --prompt "<|endoftext|>Once upon a time" --tokens 12 --greedy --json >"$work/said"
says "\"text\": \"$said\""
"$mohawk" generate --model "$tiny" --prompt "<|endoftext|>Once upon a time" --no-start --tokens 12 --greedy --json >"$work/said"
says "\"text\": \"$said\""
code 1 "nothing to go on from" "$mohawk" generate --model "$tiny" --no-start
"$mohawk" generate --model "$tiny" --prompt "Once upon a time" --tokens 12 --greedy --json --stop "$stop" nonsense >"$work/said"
says '"stopped": "stop text"'
says "\"text\": \"$(printf '%s' "$said" | cut -c 1-5)\""
"$mohawk" generate --model "$tiny" --tokens 12 --greedy --json --bias 17:1e4 --stop-token 3,17 >"$work/said"
says '"stopped": "stop token"'
"$mohawk" generate --model "$tiny" --tokens 20 --json --top-k 50 --typical 0.9 --repetition 1.2 --frequency 0.1 --presence 0.1 --penalty-tokens 300 \
  --bias 17:-inf,20:1 >"$work/said"
says '"tokens": 20'
code 2 "a bias that is none" "$mohawk" generate --model "$tiny" --bias 17
code 2 "a stop token that is none" "$mohawk" generate --model "$tiny" --stop-token -4
"$mohawk" eval --model "$tiny" --teacher "$tiny" --text examples/story.txt --windows 2 --json >"$work/said"
says '"kl": 0,'
says '"agreement": 1,'
says '"kl_by_quarter": [0, 0, 0, 0]'
says '"state_bytes": 1048576,'
says '"teacher_state_bytes": 1048576,'
"$mohawk" eval --model "$tiny" --text examples/story.txt --windows 2 --length 64 >"$work/said"
says "      0-15      16-31      32-47      48-63"
says "262 kB after 64 tokens"
probes() { "$mohawk" eval --model "$tiny" --text examples/story.txt --windows 2 --length 40 --probes --threads 1 --json "$@" >"$work/said" 2>/dev/null; }
probes --teacher "$tiny"
says '"needle_50": {"accuracy":'
check "a teacher is asked what the model is asked" sh -c "sed 's/.*\"probes\": \(.*\), \"teacher_probes\": \(.*\)}\$/\1 = \2/' '$work/said' | grep -qx '\(.*\) = \1'"
sed 's/.*"probes": \(.*\), "teacher_probes.*/\1/' "$work/said" >"$work/a"
probes
check "the same probes again" grep -qF -- "$(cat "$work/a")" "$work/said"
probes --seed 2
check "other probes from another seed" sh -c "! grep -qF -- '$(cat "$work/a")' '$work/said'"
code 2 "probes in a short window" "$mohawk" eval --model "$tiny" --text examples/story.txt --probes --length 39

# which heads look far: the same numbers in every form, the same for any number of threads
heads() { "$mohawk" heads "$tiny" --batch 2 --length 128 "$@" >"$work/said" 2>&1; }
heads --greedy 16 --bytes 160k --threads 1 --svg "$work/heads.svg"
says "layer     head 0    head 1    head 2    head 3   whole layer"
says "all heads limited to         8       16       32       64      128"
says "freed one by one"
check "all limited is where freeing starts" [ "$(awk '/^  KL/ { print $3 } /^  none/ { print $2 }' "$work/said" | uniq | wc -l)" -eq 1 ]
check "all freed is the teacher" sh -c "grep -A 17 'freed one by one' '$work/said' | tail -n 1 | grep -q ' 0.0000\$'"
says "mohawk distill --teacher $tiny --windows"
check "the map has a cell for every head and layer" [ "$(grep -c '<rect' "$work/heads.svg")" -eq 20 ]
cp "$work/said" "$work/a"
heads --greedy 16 --bytes 160k --threads 3
check "heads on more threads" sh -c "grep -v '^heads ' '$work/a' >'$work/b'; grep -v '^heads ' '$work/said' | cmp - '$work/b'"
heads --window 128
check "a window that holds the text is no limit" [ "$(grep -c '^    [0-3]      0.0000    0.0000    0.0000    0.0000       0.0000$' "$work/said")" -eq 4 ]
heads --json --bytes 200M
says '"heads": [['
says '"proposal": {"options": "--keep-attention 0,1,2,3", "budget_bytes": 200000000, "state_bytes": 524288, "context": 128'
heads --bytes 200k --d-state 48
says "mohawk distill --teacher $tiny --d-state 48 --"
heads --bytes 10k
says "10.0 kB of state are too few"
code 2 "heads of nothing" "$mohawk" heads
heads --length 1M
says "the text is too short"

# texts and prompts from pipes, in other encodings, and with odd characters
generate() { "$mohawk" generate --model "$tiny" --tokens 4 --greedy --json "$@" 2>"$work/errors" >"$work/said"; }
eval_text() { "$mohawk" eval --model "$tiny" --windows 2 --json "$@" >"$work/said" 2>&1; }
entropy() { sed -n 's/.*"cross_entropy": \([^,]*\),.*/\1/p' "$work/said"; }
eval_text --text examples/story.txt
reference=$(entropy)
cat examples/story.txt | eval_text --text -
check "text from standard input" [ "$(entropy)" = "$reference" ]
eval_text --text /dev/stdin <examples/story.txt
check "text from /dev/stdin" [ "$(entropy)" = "$reference" ]
mkfifo "$work/fifo" && { cat examples/story.txt >"$work/fifo" & }
eval_text --text "$work/fifo"
check "text from a pipe with a name" [ "$(entropy)" = "$reference" ]
if command -v iconv >/dev/null 2>&1; then
  for encoding in UTF-16 UTF-16LE UTF-16BE; do
    iconv -f UTF-8 -t $encoding examples/story.txt >"$work/story.$encoding"
    eval_text --text "$work/story.$encoding" --encoding utf16
    check "text in $encoding" [ "$(entropy)" = "$reference" ]
  done
  # what is wrong is told beside JSON too, and not in it
  { cat "$work/story.UTF-16LE" && printf x; } >"$work/cut.UTF-16LE"
  "$mohawk" eval --model "$tiny" --windows 2 --json --text "$work/cut.UTF-16LE" --encoding utf16 >"$work/json" 2>"$work/said"
  says "mohawk: warning: $work/cut.UTF-16LE is not all UTF-16"
  check "JSON beside a warning" sh -c "grep -qv warning '$work/json' && [ \$(wc -l <'$work/json') -eq 1 ]"
  eval_text --text "$work/story.UTF-16"
  says "it looks like UTF-16"
  says "--encoding utf16"
fi
printf 'Once upon a caf\303\251\n' >"$work/utf8.txt"
printf 'Once upon a caf\351\n' >"$work/latin1.txt"
generate --prompt - --encoding latin1 <"$work/latin1.txt"
cp "$work/said" "$work/latin1"
generate --prompt - <"$work/utf8.txt"
check "a prompt in Latin-1" sh -c "sed 's/, \"seconds.*//' '$work/latin1' >'$work/a'; sed 's/, \"seconds.*//' '$work/said' | cmp - '$work/a'"
printf '\000a\000\351\040\254\330\075\336\000' | generate --prompt - --encoding utf16
says "\"prompt\": \"$(printf 'a\303\251\342\202\254\360\237\230\200')\""
eval_text --text "$work/latin1.txt"
says "latin1.txt is not UTF-8 text"
says "the first at byte 15"
generate --prompt=--x
says '"prompt": "--x"'
code 2 "a prompt that looks like an option" "$mohawk" generate --model "$tiny" --prompt --x
generate --prompt "--" </dev/null
printf 'a\r\nb\0c\r\n' | generate --prompt -
says '"prompt": "a\u000d\u000ab\u0000c"'
generate --prompt - <examples/story.txt
long=$(head -c 3000 /dev/zero | tr '\0' x)
generate --prompt "$long"
says '"tokens": 4'

# other layouts: the same model after every conversion
check "convert to one file" "$mohawk" convert --model "$tiny" --out "$work/one.safetensors"
check "convert to a folder, widened" "$mohawk" convert --model "$work/one.safetensors" --out "$work/wide" --dtype f32
check "convert and narrow again" "$mohawk" convert --model "$work/wide/model.safetensors" --out "$work/again.safetensors" --dtype bf16
check "bf16 to f32 and back is the same file" cmp "$work/one.safetensors" "$work/again.safetensors"
check "convert to f16" "$mohawk" convert --model "$tiny" --out "$work/half.safetensors" --dtype f16
check "convert onto itself" "$mohawk" convert --model "$work/again.safetensors" --out "$work/again.safetensors"
check "it is still there" "$mohawk" eval --model "$work/again.safetensors" --teacher "$tiny" --text examples/story.txt --windows 1
# a tokenizer is never lost unnoticed, and what loading warns about is refused on request
"$mohawk" convert --model "$tiny" --out "$work/mute" >/dev/null 2>&1
echo '{"model": {"type": "WordPiece"}}' >"$work/mute/tokenizer.json"
check "a model without its tokenizer" "$mohawk" inspect "$work/mute"
"$mohawk" inspect "$tiny" >"$work/said"
says "a text ends at  0"
code 1 "strictly" "$mohawk" inspect --strict "$work/mute"
code 1 "convert without its tokenizer" "$mohawk" convert --model "$work/mute" --out "$work/muter"
check "convert with another one" "$mohawk" convert --model "$work/mute" --tokenizer "$tiny" --out "$work/muter"
check "convert with none" "$mohawk" convert --model "$work/mute" --no-tokenizer --out "$work/muter.safetensors"
code 1 "quantize without its tokenizer" "$mohawk" quantize --model "$work/mute" --out "$work/muter.safetensors"
check "quantize with none" "$mohawk" quantize --model "$work/mute" --no-tokenizer --out "$work/muter.safetensors"
"$mohawk" generate --model "$work/mute" --prompt x >"$work/said" 2>&1
says "WordPiece"
"$mohawk" generate --model "$work/muter.safetensors" --prompt x >"$work/said" 2>&1
says "has no tokenizer"
check "inspect of a PyTorch file" "$mohawk" inspect tests/golden/pytorch_model.bin
"$mohawk" quantize --model "$tiny" --out "$work/q8.safetensors" --text examples/story.txt --windows 2 >"$work/said"
says "KL to the model"
says "Q8/64  error 0.00"
check "quantize to int4" "$mohawk" quantize --model "$tiny" --out "$work/q4.safetensors" --type int4 --group 64 --ends int8
"$mohawk" inspect "$work/q4.safetensors" --names >"$work/said"
says "Q4"
says "Q8"
"$mohawk" generate --model "$work/q8.safetensors" --prompt "Once upon a time" --tokens 12 --greedy --json >"$work/said"
says '"stopped": "tokens"'
code 2 "quantize in groups of 48" "$mohawk" quantize --model "$tiny" --out "$work/no" --group 48
code 2 "quantize to what it cannot" "$mohawk" quantize --model "$tiny" --out "$work/no" --type int3
code 1 "convert a file that is no model" "$mohawk" convert --model tests/golden/pytorch_model.bin --out "$work/no"
code 2 "convert to what it cannot" "$mohawk" convert --model "$tiny" --out "$work/no" --dtype f8

# heads that see some tokens exactly, and heads that keep attention
distill() { "$mohawk" distill --teacher "$tiny" --text examples/story.txt --tokens 256,256,256 --batch 2 --length 64 --no-eval --threads 1 --fresh "$@" >"$work/said" 2>&1; }
distill --window 8 --out "$work/window"
says "the student leaves the authors' layout, with keys of its own for rotary B and C, gates and windows of heads"
"$mohawk" inspect "$work/window/student" >"$work/said"
says "rotary on 16 features, gates"
says "discrete Mamba-2, each head sees 8 tokens exactly"
distill --window 8 --keep-heads 2.1,0.0,0.1,0.2,0.3 --no-gates --no-bias --no-calibrate --out "$work/heads"
"$mohawk" inspect "$work/heads/student" --json >"$work/said"
says '"gates": 0, "windows": [[], [8, 8, 8, 8], [8, -1, 8, 8], [8, 8, 8, 8]],'
says '"mixers": ["attention", "discrete Mamba-2"'
"$mohawk" inspect "$work/heads/student" >"$work/said"
says "discrete Mamba-2, heads see 8, all, 8, 8 tokens exactly"
distill --windows 2.1=24,1.1=16,4 --keep-attention 3 --d-state 40 --out "$work/by"
"$mohawk" inspect "$work/by/student" --json >"$work/said"
says '"d_state": 40, "gates": 1, "windows": [[4, 4, 4, 4], [4, 16, 4, 4], [4, 24, 4, 4], []]'
distill --groups 2 --out "$work/groups"
"$mohawk" inspect "$work/groups/student" >"$work/said"
says "2 groups of B and C"
code 1 "groups that heads cannot share" "$mohawk" distill --teacher "$tiny" --text examples/story.txt --tokens 256,256,256 --groups 3 --no-eval --out "$work/three"
code 1 "a resumed run with another window" "$mohawk" distill --teacher "$tiny" --text examples/story.txt --tokens 256,256,256 --batch 2 --length 64 --no-eval \
  --windows 2.1=32,1.1=16,4 --keep-attention 3 --d-state 40 --out "$work/by"
cp "$work/output" "$work/said"
says 'in "windows": [ it has "        24," where this one has "        32,"'
distill --windows auto:16 --out "$work/auto"
says "chosen from the text: --windows"
flags=$(sed -n 's/.*chosen from the text: \(--windows [^ ]*\),.*/\1/p' "$work/said")
check "as many tokens as a window of 16" [ "$(echo "$flags" | awk '{ n = split($2, part, ","); common = part[n]; sum = 16 * common
  for (i = 1; i < n; i++) { split(part[i], x, "="); sum += x[2] - common } print sum }')" -eq 256 ]
distill $flags --out "$work/said_again"
check "the same student by name" cmp "$work/auto/student/model.safetensors" "$work/said_again/student/model.safetensors"
bytes=200000
distill --keep auto:$bytes --window 8 --context 200 --out "$work/kept"
says "--keep-heads"
flags=$(sed -n 's/.*chosen from the text: \(.*\), [0-9].*/\1/p' "$work/said")
distill --keep auto:$bytes --window 8 --context 200 --json --out "$work/kept"
says "\"heads\": \"$flags\""
"$mohawk" inspect "$work/kept/student" --context 200 --json >"$work/said"
state=$(sed -n 's/.*"state_bytes": \([0-9]*\),.*/\1/p' "$work/said")
check "kept heads fit" [ "$state" -le $bytes ]
check "one more would not" [ "$state" -gt $((bytes - 2 * 4 * 32 * 200)) ]
distill --keep auto:10k --out "$work/none"
says "10.0 kB of state are too few"
distill --recipe paper --out "$work/paper"
check "the paper's student has no keys of its own" sh -c "! grep -q \"authors' layout\" '$work/said' && ! grep -qE 'gates|window|rotary' '$work/paper/student/config.json'"
distill --windows packed --out "$work/packed"
check "what --windows was" [ -f "$work/packed/student/config.json" ]
distill --train mixers --keep-attention 1 --out "$work/usual"
distill --train mixers --keep-attention 1 --one-layer-at-a-time --out "$work/by_layer"
says "hidden states of all tokens of a stage take"
check "one layer at a time: the same bits" cmp "$work/usual/student/model.safetensors" "$work/by_layer/student/model.safetensors"
# what a dry run says beforehand is what the run takes
number_of() { sed -n "s/.*\"$1\": \([0-9.e+]*\).*/\1/p" "$2" | tail -1; }
within() { awk -v a="$(number_of memory_bytes "$work/dry")" -v b="$(number_of memory_peak_bytes "$work/said")" \
  'BEGIN { exit !(a > 0 && b > 0 && a / b > 0.95 && a / b < 1.05) }'; }
for way in "" "--train mixers --one-layer-at-a-time --keep-attention 1"; do
  distill $way --json --dry-run --out "$work/dry_run"
  cp "$work/said" "$work/dry"
  check "a dry run leaves nothing" [ ! -e "$work/dry_run" ]
  distill $way --json --out "$work/wet_run"
  check "memory of a dry run: distill $way" within
done
distill --teacher-type int8 --out "$work/int8"
check "targets of int8: a student" test -s "$work/int8/student/model.safetensors"
code 1 "targets of int8: other bits" cmp -s "$work/packed/student/model.safetensors" "$work/int8/student/model.safetensors"
code 2 "two windows" "$mohawk" distill --teacher "$tiny" --window 8 --windows 2.1=4,8
code 2 "gates and none" "$mohawk" distill --teacher "$tiny" --gates --no-gates
code 2 "kept by what" "$mohawk" distill --teacher "$tiny" --keep 2.1
for wrong in 9.1=4,8 2.1=x,8 2.1 8,2.1=4; do
  code 1 "--windows $wrong" "$mohawk" distill --teacher "$tiny" --text examples/story.txt --windows $wrong --out "$work/wrong"
done
code 1 "a head that is not there" "$mohawk" distill --teacher "$tiny" --text examples/story.txt --keep-heads 2.4 --out "$work/wrong"
for part in state window; do
  "$mohawk" eval --model "$work/window/student" --teacher "$tiny" --text examples/story.txt --windows 2 --without $part --json >"$work/said"
  says "\"without\": \"$part\""
  sed -n 's/.*"kl": \([^,]*\),.*/\1/p' "$work/said" >>"$work/parts"
done
check "without state and without window are not alike" [ "$(sort -u "$work/parts" | wc -l)" -eq 2 ]

# a run in one piece and one that is stopped end with the same bits
run="$mohawk distill --teacher $tiny --text examples/story.txt --tokens 3k,3k,6k --batch 2 --length 64 --keep-attention 2 --no-eval --every 0.1"
check "a small run" $run --out "$work/whole"
$run --out "$work/stopped" >"$work/said" 2>&1 &
process=$!
sleep 0.3
kill -INT $process 2>/dev/null
wait $process
check "the same in two pieces" $run --out "$work/stopped"
check "the same bits" cmp "$work/whole/student/model.safetensors" "$work/stopped/student/model.safetensors"
check "the same log" sh -c "cut -d, -f1-7 '$work/whole/log.csv' >'$work/a'; cut -d, -f1-7 '$work/stopped/log.csv' | cmp - '$work/a'"
"$mohawk" generate --model "$tiny" --prompt "Once upon a time" --tokens 12 --greedy --json --draft "$work/whole/student" >"$work/said"
says "\"text\": \"$said\""
says '"acceptance":'
code 1 "another run in that folder" $run --out "$work/whole" --lr 1e-4
check "a model of mohawk's" "$mohawk" eval --model "$work/whole/student" --teacher "$tiny" --text examples/story.txt --windows 1
check "pictures" "$mohawk" matrix --teacher "$tiny" --model "$work/whole/student" --text examples/story.txt --out "$work/matrix.svg"
check "what a context costs" "$mohawk" bench --context "$work/context.svg" --context-most 1024 --threads 1
check "drawn" grep -q 'class="c1"' "$work/context.svg"
MHK_ISA="" "$mohawk" bench --context "$work/context.svg" --context-most 64 --threads 1 --isa scalar --json >"$work/said"
says '"isa": "scalar"'
code 2 "contexts on two sets" "$mohawk" bench --context "$work/context.svg" --context-most 64 --isa scalar,best
code 2 "contexts on a set that there is not" "$mohawk" bench --context "$work/context.svg" --context-most 64 --isa scalr
"$mohawk" bench --list --model "$tiny,$work/nothing,$work/whole/student" >"$work/said"
says "model_forward_teacher"
says "model_decode_student_int8_student"
check "decoding of a second model" sh -c "$mohawk bench --model $tiny,$tiny/ --filter model_decode_teacher_tiny --threads 1 --seconds 0.01 --json --out $work/bench.json | grep -q '\"case\": \"model_decode_teacher_tiny\"'"
check "a picture as PNG" "$mohawk" matrix --teacher "$tiny" --prompt "Once upon a time" --out "$work/matrix.png"

says_threads() { # WHAT ENVIRONMENT... OPTIONS: how many threads the first line names
  want=$1
  shift
  env "$@" "$mohawk" distill --teacher "$tiny" --text "$work/nothing" --out "$work/none" $options >"$work/said" 2>&1
  check "$want with $* $options" sh -c "head -n 1 '$work/said' | grep -qE '; $want\$'"
}
if "$mohawk" distill --teacher "$tiny" --text "$work/nothing" --out "$work/none" --threads 3 2>&1 | grep -q '; 3 threads$'; then # it has OpenMP
  options= says_threads "3 threads" OMP_NUM_THREADS=3
  options="--threads 2" says_threads "2 threads" OMP_NUM_THREADS=3
  options="--threads 1" says_threads "1 thread" OMP_NUM_THREADS=3
  options= says_threads "[1-9][0-9]* threads?" -u OMP_NUM_THREADS
fi
"$mohawk" bench --list --filter scaling,=core_ssd_forward_512 --model "$tiny" >"$work/said"
check "cases by a word for many and by their names" sh -c "[ \$(wc -l <'$work/said') = 10 ] && grep -qx distill_tiny '$work/said' && ! grep -q bf16 '$work/said'"
check "updates of a model made here" sh -c "$mohawk bench --filter =stage1_update_small --threads 1 --seconds 0.001 --json --out $work/bench.json | grep -q '\"case\": \"stage1_update_small\"'"

# bench-peers: programs that answer with given times stand for mohawk and for PyTorch
if command -v "${PYTHON:-python3}" >/dev/null 2>&1; then
  mkdir -p "$work/stub"
  cat >"$work/served" <<'END'
#!/bin/sh
case " $* " in
*" --list "*) echo one && echo ssd_other && exit ;;
*" --serve "*)
  while read -r name threads rounds; do
    echo "{\"case\": \"$name\", \"threads\": $threads, \"isa\": \"none\", \"ours_ms\": $((60 / threads)), \"gflops\": 1, \"percent_of_limit\": 50," \
      "\"limit\": \"fma\", \"ours_min_ms\": 1, \"ours_memory\": 0}"
  done ;;
*" --filter =ssd_other --threads 1,4,2 "*)
  while [ "$1" != --out ]; do shift; done
  echo '[{"case": "ssd_other", "threads": 1, "isa": "none", "ours_ms": 5, "gflops": null, "percent_of_limit": null, "limit": null, "peer": null, "peer_ms": null, "ratio": null}]' >"$2" ;;
esac
END
  cat >"$work/stub/torch.py" <<'END'
import json, sys
compile = None
if "peer_torch" in sys.argv[0]:
    for line in sys.stdin:
        name, threads, rounds, mode = line.split()
        ms = (120 if mode == "eager" else 90) / (2 if threads == "4" else 1)
        print(json.dumps({"ms": ms, "min_ms": ms}), flush=True)
    sys.exit()
END
  chmod +x "$work/served"
  peers() {
    PYTHONPATH=$work/stub BUILD=$work "${PYTHON:-python3}" tools/bench/peers.py --bench "$work/served" --no-install --threads 1,4,2 --pairs 2 --seconds 0.01 \
      --out "$work/peers.json" "$@" >"$work/said" 2>&1
  }
  row() { check "$1" grep -qE "\"case\": \"$2\", \"threads\": $3, .*\"ours_ms\": $4(\.0)?, .*\"peer\": $5, \"peer_ms\": $6, \"ratio\": $7" "$work/peers.json"; }
  peers --peers torch --compile-jobs 2
  row "the faster way of PyTorch" one 1 60 '"PyTorch compile"' 90.0 1.5
  row "as many threads on both sides" one 4 15 '"PyTorch compile"' 45.0 3.0
  row "a case that PyTorch does not have" ssd_other 1 5 null null null
  check "thread counts as given" sh -c "sed -n 's/.*\"threads\": \([0-9]*\).*/\1/p' '$work/peers.json' | tr '\n' ' ' | grep -qx '1 4 2 1 '"
  peers --peers torch --no-compile
  row "without torch.compile" one 2 30 '"PyTorch eager"' 120.0 4.0
  "$mohawk" bench --curve "$work/threads.svg" --rows "$work/peers.json" >"$work/said"
  says "| one | 2.0 | 4.0 | 2.0 | 2.0 | 4.0 |"
  check "one chart, a line for each program" sh -c "[ \$(grep -c '<circle.*<circle' '$work/threads.svg') = 1 ] && grep -q '>mohawk 4.0<.*>PyTorch 1.0<' '$work/threads.svg'"
  check "threads in order" grep -q 'd="M42.0 [0-9.]*L128.0 [0-9.]*L214.0' "$work/threads.svg"
  grep -v '"threads": [24]' "$work/peers.json" >"$work/one.json"
  code 1 "nothing on more threads" "$mohawk" bench --curve "$work/threads.svg" --rows "$work/one.json"
  code 2 "a peer that there is not" "${PYTHON:-python3}" tools/bench/peers.py --peers torhc
fi

# bench-base: programs that answer with given times stand for two builds
if command -v "${PYTHON:-python3}" >/dev/null 2>&1; then
  build_of() { # PROGRAM, then CASE MILLISECONDS ...: a program that serves these cases
    program=$work/$1
    shift
    { echo '#!/bin/sh' && echo 'case " $* " in *" --list "*)' && printf 'echo %s\n' "$@" | grep -v '[0-9.]$' && echo 'exit ;; esac' &&
      echo 'while read -r name threads rounds; do case $name in' &&
      printf '%s) echo "{\"isa\": \"none\", \"ours_ms\": %s}" ;;\n' "$@" && echo 'esac; done'; } >"$program"
    chmod +x "$program"
  }
  base() { BUILD=$work "${PYTHON:-python3}" tools/bench/base.py "$work/old" --new "$work/new" --threads 1 --pairs 2 --rounds 2; }
  build_of old even 20 later 100 sooner 50
  build_of new even 20 later 102 sooner 40 fresh 1
  base >"$work/said" 2>&1
  check "no row is slower" [ $? -eq 0 ]
  says "none of 3 rows is more than 3 % slower"
  says "fresh is left out: the base does not have it"
  check "the worst row comes first" sh -c "grep -A 1 ^case '$work/said' | grep -q '^later .* 1.020 '"
  build_of new even 20 later 104 sooner 40
  base >"$work/said" 2>&1
  check "a row is slower" [ $? -eq 1 ]
  says "1 of 3 rows are more than 3 % slower"
  check "it ran again" grep -q '"later".* "pairs": 8}' "$work/bench_base.json"
  check "those that are not slower did not" grep -q '"sooner".* "pairs": 4}' "$work/bench_base.json"
  sed '/^later/s/echo .*/exit ;;/' "$work/new" >"$work/dies"
  cat "$work/dies" >"$work/new"
  base >"$work/said" 2>&1
  check "a row that cannot be measured is no success" [ $? -eq 1 ]
  says "not measured: later (1)"
fi

echo "$name: $passed passed, $failed failed"
[ "$failed" -eq 0 ]
