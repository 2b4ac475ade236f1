#!/bin/sh
# mohawk convert of GGUF files, from the seeds of the fuzzer: what is written, what is left behind, and what is said.
mohawk=${BUILD:-build}/mohawk
seeds=tests/fuzz/seeds/gguf
name=test_gguf work=${BUILD:-build}/test/gguf
rm -rf "$work"
mkdir -p "$work"
. tests/check.sh

says() { check "it says \"$1\"" grep -qF -- "$1" "$work/said"; }

for arch in llama qwen2 qwen3; do
  check "$arch is converted" "$mohawk" convert --model "$seeds/$arch.gguf" --out "$work/$arch" --strict
  check "$arch runs" sh -c "'$mohawk' generate --model '$work/$arch' --prompt hello --tokens 4 --greedy >'$work/said' 2>&1"
done
check "one file" "$mohawk" convert --model "$seeds/qwen3.gguf" --out "$work/new/qwen3.safetensors" --dtype bf16
check "BF16 is what it has" grep -aq '"dtype":"BF16"' "$work/new/qwen3.safetensors"
check "nothing else is left there" sh -c "[ \"\$(ls '$work' '$work/new' | grep -c new\$)\" -eq 1 ] && [ \"\$(ls '$work/new' | wc -l)\" -eq 1 ]"
check "without its tokenizer" sh -c "'$mohawk' convert --model '$seeds/llama.gguf' --out '$work/bare' --no-tokenizer >'$work/said' && [ ! -e '$work/bare/tokenizer.json' ]"
says "without a tokenizer"
check "other commands name this one" sh -c "! '$mohawk' generate --model '$seeds/llama.gguf' --prompt hello >'$work/said' 2>&1"
says "mohawk convert --model"
sed 's/llama.context_length/llama.content_length/' "$seeds/llama.gguf" >"$work/odd.gguf"
check "a key that is missing" sh -c "! '$mohawk' convert --model '$work/odd.gguf' --out '$work/odd' >'$work/said' 2>&1"
says "odd.gguf: the key llama.context_length is missing"
sed 's/rope.freq_base/rope.freq_bass/' "$seeds/llama.gguf" >"$work/odd.gguf"
check "a setting that has no effect is a warning" sh -c "'$mohawk' convert --model '$work/odd.gguf' --out '$work/odd' >'$work/said' 2>&1"
says "llama.rope.freq_bass has no effect"
check "and with --strict an error" sh -c "! '$mohawk' convert --model '$work/odd.gguf' --out '$work/odd' --strict >'$work/said' 2>&1"
says "llama.rope.freq_bass has no effect"
head -c 3000 "$seeds/llama.gguf" >"$work/cut.gguf"
check "a file that is cut" sh -c "! '$mohawk' convert --model '$work/cut.gguf' --out '$work/cut' >'$work/said' 2>&1"
says "cut.gguf: "
check "nothing comes of it" [ ! -e "$work/cut" ]

echo "$name: $passed passed, $failed failed"
[ "$failed" -eq 0 ]
