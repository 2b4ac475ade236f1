#!/bin/sh
# bits.sh [REVISION]: writes $BUILD/bits.txt, the hashes of everything the header computes (tests/bits.c), in float and in double.
# With a revision of this repository: also those of its mohawk.h, and what differs; exit code 1 when something does.
# CC, CFLAGS, OPENMP and TEST_WRAPPER (an emulator) as for the tests.
set -eu
build=${BUILD:-build}
hashes() { # FOLDER of mohawk.h and tests, OUTPUT
  for double in "" -DMOHAWK_DOUBLE; do
    # shellcheck disable=SC2086
    grep -q MHK_ARCH_LLAMA "$1/mohawk.h" && without= || without=-DTEST_NO_LLAMA
    # shellcheck disable=SC2086
    ${CC:-cc} -std=gnu99 $without ${CFLAGS:--O3} ${OPENMP:-} $double "$1/tests/bits.c" -lm -o "$1/bits.out"
    # shellcheck disable=SC2086
    BUILD=$build ${TEST_WRAPPER:-} "$1/bits.out"
  done >"$2"
}
lay() { # FOLDER: the program as it is here
  mkdir -p "$1/tests"
  cp tests/bits.c tests/test.h tests/models.h "$1/tests"
}
lay "$build/bits"
cp mohawk.h "$build/bits/mohawk.h"
hashes "$build/bits" "$build/bits.txt"
[ $# -gt 0 ] || { echo "$(grep -c . "$build/bits.txt") hashes in $build/bits.txt" && exit 0; }
lay "$build/bits_base"
git show "$1:mohawk.h" >"$build/bits_base/mohawk.h"
hashes "$build/bits_base" "$build/bits_base.txt"
# what only this tree computes has nothing to be compared with
awk '{ hash = $NF; $NF = "" } NR == FNR { there[$0]; next } $0 in there { print $0 hash }' \
  "$build/bits_base.txt" "$build/bits.txt" >"$build/bits_both.txt"
if cmp -s "$build/bits_base.txt" "$build/bits_both.txt"; then
  echo "all $(grep -c . "$build/bits_both.txt") hashes are those of $1"
else
  diff "$build/bits_base.txt" "$build/bits_both.txt" | grep '^[<>]' | sort -k2,4 || true
  exit 1
fi
