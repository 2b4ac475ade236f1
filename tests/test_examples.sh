#!/bin/sh
# The examples in other surroundings: a C++ application, Python through the shared library, a microcontroller. (test_header builds those in C.)
build=${BUILD:-build}
name=test_examples work=$build/test/examples skipped=""
case ${CFLAGS-} in
*sanitize*)
  echo "$name: 0 passed, 0 failed (skipped: they are built without sanitizers)"
  exit 0
  ;;
esac
rm -rf "$work"
mkdir -p "$work"
. tests/check.sh

# the same prompt, sampling and seed give the same text in every language
cxx=${CXX:-c++}
if command -v "${cxx%% *}" >/dev/null 2>&1; then
  check "app.cc is built" $cxx -std=c++11 -Wall -Wextra -Werror -O1 -I. examples/app.cc -o "$work/app"
  check "app.cc writes" "$work/app" examples/tiny "The little rabbit"
  cp "$work/output" "$work/app.txt"
  check "its text goes on after the prompt" grep -q '^The little rabbit..*' "$work/app.txt"
  check "app.cc says what is wrong" sh -c "'$work/app' '$work/nothing' 2>&1 | grep -q '$work/nothing'"
else
  skipped="$skipped, no C++ compiler"
fi

# what a reader copies: a loss, a training loop, the mixing matrices
cc=${CC:-cc}
for example in new_loss draw matrices; do
  check "$example.c is built" $cc -std=c99 -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wsign-conversion -Werror -O1 -I. examples/$example.c -lm -o "$work/$example"
done
check "new_loss.c: its gradient is right, and the loss falls" "$work/new_loss"
cp "$work/output" "$work/loss.txt"
check "the last update is said" grep -q '^update  40 of 40  KL(student || teacher) [0-9]' "$work/loss.txt"
check "draw.c trains" "$work/draw" examples/tiny examples/story.txt "$work/progress.svg"
check "and draws three curves" test "$(grep -c '<polyline' "$work/progress.svg")" -eq 3
check "draw.c says what is wrong" sh -c "'$work/draw' '$work/nothing' examples/story.txt '$work/none.svg' 2>&1 | grep -q '$work/nothing'"
check "matrices.c" "$work/matrices" examples/tiny "Once upon a time there was a fox." "$work/matrices.pgm"
cp "$work/output" "$work/heads.txt"
check "sixteen heads" test "$(grep -c '^ *[0-3] *[0-3] .* %$' "$work/heads.txt")" -eq 16
check "their picture" sh -c "head -n 1 '$work/matrices.pgm' | grep -q '^P5 [0-9]* [0-9]* 255'"

check "libmohawk.so is built" make CFLAGS=-O1 BUILD="$build" "$build/libmohawk.so"
if [ -e "$build/libmohawk.so" ] && command -v nm >/dev/null 2>&1; then
  check "it exports the interface" sh -c "nm -D --defined-only '$build/libmohawk.so' | grep -q ' T mhk_load\$'"
  check "and nothing else" sh -c "! nm -D --defined-only '$build/libmohawk.so' | grep -v ' mhk_[a-z0-9_]*\$' | grep -v ' _init\$\| _fini\$'"
fi
python=${PYTHON:-python3}
command -v "$python" >/dev/null 2>&1 || python=python3
if [ -e "$build/libmohawk.so" ] && command -v "$python" >/dev/null 2>&1; then
  check "python.py writes" env MOHAWK_LIBRARY="$build/libmohawk.so" "$python" examples/python.py examples/tiny "The little rabbit"
  cp "$work/output" "$work/python.txt"
  [ ! -e "$work/app.txt" ] || check "the text of app.cc" cmp "$work/python.txt" "$work/app.txt"
else
  skipped="$skipped, no Python"
fi

# the microcontroller's program writes the same tokens in its emulator as on this computer, and fits
if command -v arm-none-eabi-gcc >/dev/null 2>&1 && command -v qemu-system-arm >/dev/null 2>&1 && [ -x "$build/mohawk" ]; then
  check "a student" "$build/mohawk" distill --teacher examples/tiny --text examples/story.txt --out "$work/run" --tokens 3k,3k,6k --batch 2 --length 64 --no-eval
  check "in one file" "$build/mohawk" convert --model "$work/run/student" --out "$work/student.safetensors" --dtype bf16
  run_mcu() { make CFLAGS=-O1 OPENMP= BUILD="$build" MCU="$work/mcu" MCU_MODEL="$work/student.safetensors" "$@"; }
  check "for the microcontroller" run_mcu "$work/mcu/mohawk.elf" "$work/mcu/host"
  check "on this computer" "$work/mcu/host"
  cp "$work/output" "$work/host.txt"
  check "on the microcontroller" timeout 300 qemu-system-arm -M mps2-an500 -nographic -semihosting -kernel "$work/mcu/mohawk.elf"
  cp "$work/output" "$work/mcu.txt"
  sed -n '/^flash /,$p' "$work/mcu.txt"
  check "the same text and tokens" sh -c "grep -q '^Once upon a time' '$work/host.txt' && sed '/^flash /,\$d' '$work/mcu.txt' | cmp - '$work/host.txt'"
  check "memory is told" grep -q '^stack  *[1-9][0-9]* bytes' "$work/mcu.txt"
else
  skipped="$skipped, no arm-none-eabi-gcc with qemu-system-arm"
fi

echo "$name: $passed passed, $failed failed${skipped:+ (skipped:${skipped#,})}"
[ "$failed" -eq 0 ]
