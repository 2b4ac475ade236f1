#!/bin/sh
# The examples in other surroundings: a C++ application, Python through the shared library. (test_header builds those in C.)
build=${BUILD:-build}
work=$build/test/examples
passed=0 failed=0 skipped=""
rm -rf "$work"
mkdir -p "$work"

# check WHAT COMMAND...: the command must succeed
check() {
  what=$1
  shift
  if "$@" >"$work/output" 2>&1; then passed=$((passed + 1)); else
    failed=$((failed + 1))
    echo "test_examples: $what: $* ended with $?:"
    head -n 5 "$work/output"
  fi
}

# the same prompt, sampling and seed give the same text in every language
cxx=${CXX:-c++}
if command -v "${cxx%% *}" >/dev/null 2>&1; then
  check "app.cc is built" $cxx -std=c++11 -Wall -Wextra -Werror -O1 -I. examples/app.cc -o "$work/app"
  check "app.cc writes" "$work/app" examples/tiny "The little rabbit"
  cp "$work/output" "$work/app.txt"
  check "its text goes on after the prompt" grep -q '^The little rabbit ..*' "$work/app.txt"
  check "app.cc says what is wrong" sh -c "'$work/app' '$work/nothing' 2>&1 | grep -q '$work/nothing'"
else
  skipped="$skipped, no C++ compiler"
fi

case ${CFLAGS-} in
*sanitize*) skipped="$skipped, no shared library with a sanitizer" ;;
*) check "libmohawk.so is built" make CFLAGS=-O1 BUILD="$build" "$build/libmohawk.so" ;;
esac
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

echo "test_examples: $passed passed, $failed failed${skipped:+ (skipped:${skipped#,})}"
[ "$failed" -eq 0 ]
