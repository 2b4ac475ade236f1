#!/bin/sh
# Runs the fuzzer: run.sh PROGRAM [TARGET...], for $SECONDS_EACH (20) seconds each, $JOBS (2) targets
# at a time. What it found grows in $WORK (fuzz.work) and is where it goes on from next time; a crash
# leaves its input there as TARGET-crash-..., and its target starts again, up to five times. Ends with
# one line `N passed, N failed`.
here=$(cd "$(dirname "$0")" && pwd)
program=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
shift
seconds=${SECONDS_EACH:-20} work=${WORK:-fuzz.work}
mkdir -p "$work"
one() {
  target=$1 crashes=0 end=$(($(date +%s) + seconds)) dictionary=
  [ "$target" = model ] && dictionary=-dict=$here/config.dict
  [ -f "$here/$target.dict" ] && dictionary=-dict=$here/$target.dict
  mkdir -p "$work/$target"
  : >"$work/$target.log"
  while [ $crashes -lt 5 ] && left=$((end - $(date +%s))) && [ $left -gt 0 ]; do
    "$program" --target="$target" $dictionary -max_total_time=$left -max_len=8192 -timeout=25 -rss_limit_mb=2500 \
      -print_final_stats=1 -artifact_prefix="$work/$target-" "$work/$target" "$here/seeds/$target" \
      >>"$work/$target.log" 2>&1 || crashes=$((crashes + 1))
  done
  awk -v target="$target" -v crashes=$crashes '/^stat::number_of_executed_units/ { n += $2 }
    / ft: / {
      for (i = 1; i < NF; i++) {
        if ($i == "cov:" && $(i + 1) > cov) cov = $(i + 1)
        if ($i == "ft:" && $(i + 1) > ft) ft = $(i + 1)
      }
    }
    END {
      printf "%-12s %9d inputs, %5d edges, %6d features, %d crashes\n", target, n, cov, ft, crashes
      exit !n
    }' "$work/$target.log" || crashes=1
  [ $crashes -eq 0 ] ||
    grep -aE '^fuzz.c:|runtime error|ERROR: |mohawk.h:[0-9]|Test unit written' "$work/$target.log" | head -n 30
  [ $crashes -eq 0 ]
  echo $? >"$work/$target.code"
}
if [ "$1" = --one ]; then
  one "$2"
  exit 0
fi
[ $# -gt 0 ] || set -- $("$program" --target=? 2>&1 | sed 's/.*one of//')
printf '%s\n' "$@" | xargs -P "${JOBS:-2}" -n 1 env SECONDS_EACH="$seconds" WORK="$work" sh "$0" "$program" --one
failed=0
for target in "$@"; do
  read -r code <"$work/$target.code" && [ "$code" -eq 0 ] || failed=$((failed + 1))
done
echo "$(($# - failed)) passed, $failed failed"
[ $failed -eq 0 ]
