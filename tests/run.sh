#!/bin/sh
# Runs test programs, $JOBS at a time, prints what they print, and ends with one line `N passed, N failed`.
# Each program ends with a line `name: N passed, N failed`; one that does not has crashed, which counts as a failure.
build=${BUILD:-build}
export OMP_WAIT_POLICY=passive # programs run side by side: waiting threads should not spin
mkdir -p "$build/test"
run_one() {
  name=$(basename "$1")
  case $1 in
  *.sh) set -- sh "$1" ;;
  *.py) command -v "${PYTHON:-python3}" >/dev/null 2>&1 && set -- "${PYTHON:-python3}" "$1" || set -- echo "$name: 0 passed, 0 failed (skipped: no Python)" ;;
  esac
  if command -v timeout >/dev/null 2>&1; then set -- timeout "${TEST_TIMEOUT:-900}" $TEST_WRAPPER "$@"; else set -- $TEST_WRAPPER "$@"; fi
  start=$(date +%s)
  "$@" >"$build/test/$name.out" 2>&1 </dev/null
  echo "$? $(($(date +%s) - start))" >"$build/test/$name.code"
}
if [ "$1" = --one ]; then
  run_one "$2"
  exit 0
fi
# those that compile the header many times take longest: they start first
for program in "$@"; do
  case $program in */test_header | */test_examples.sh) order=1 ;; *) order=2 ;; esac
  [ -e "$program" ] && printf '%s %s\n' $order "$program"
done | sort -s -k 1,1 | cut -d ' ' -f 2- | xargs -P "${JOBS:-2}" -n 1 sh "$0" --one
passed=0 failed=0
for program in "$@"; do
  name=$(basename "$program")
  if [ ! -e "$program" ]; then
    echo "$name: not there"
    failed=$((failed + 1))
    continue
  fi
  read -r code seconds <"$build/test/$name.code"
  line=$(grep -E '^[^ ]+: [0-9]+ passed, [0-9]+ failed' "$build/test/$name.out" | tail -n 1)
  grep -vE '^[^ ]+: [0-9]+ passed, [0-9]+ failed' "$build/test/$name.out"
  p=$(printf '%s' "$line" | sed -n 's/^[^ ]*: \([0-9]*\) passed.*/\1/p')
  f=$(printf '%s' "$line" | sed -n 's/.* \([0-9]*\) failed.*/\1/p')
  if [ -z "$line" ] || { [ "$code" -ne 0 ] && [ "$f" -eq 0 ]; }; then
    printf '%-20s ended with code %s before its last line\n' "$name" "$code"
    f=$((${f:-0} + 1))
  fi
  printf '%-20s %4d passed, %d failed  %4d s%s\n' "$name" "${p:-0}" "$f" "$seconds" "$(printf '%s' "$line" | sed -n 's/.* failed\( (.*)\)$/ \1/p')"
  passed=$((passed + ${p:-0}))
  failed=$((failed + f))
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
