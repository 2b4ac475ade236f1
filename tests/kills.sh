#!/bin/sh
# Kills the command line with SIGKILL at random moments: KILLS times while it distills, half as often each while it converts and quantizes. A run goes on to the
# bits of one that nobody disturbed; a file is absent, the old one or the new one; a folder is one of both models or does not load; nothing is left over.
mohawk=${BUILD:-build}/mohawk
tiny=examples/tiny
kills=${KILLS:-20}
name=kills work=${BUILD:-build}/test/kills
rm -rf "$work"
mkdir -p "$work"
. tests/check.sh

# seconds from 0 to $1, other ones for every seed $2
some_time() { awk -v most="$1" -v seed="$2" 'BEGIN { srand(seed); rand(); printf "%.3f", rand() * most }'; }
now() { date +%s.%N; }
# kill_during SECONDS COMMAND...: 0 when it was killed, 1 when it had ended by then
kill_during() {
  wait_for=$1
  shift
  "$@" >"$work/said" 2>&1 &
  process=$!
  sleep "$wait_for"
  kill -KILL $process 2>/dev/null
  wait $process 2>/dev/null
  [ $? -eq 137 ]
}
took() { awk -v a="$1" -v b="$2" 'BEGIN { print b - a }'; }
left_in() { find "$1" -name '*.new*' -o -name 'stream.*' -o -name '*.lock' -o -name '*.old'; }
# says what is left, with its inode, and who holds which lock
nothing_left() {
  [ -n "$(left_in "$1")" ] || return 0
  left_in "$1" | while read -r file; do ls -li "$file"; done
  cat /proc/locks
  return 1
}

# ---- a run
for order in "" --one-layer-at-a-time; do
distill() { "$mohawk" distill --teacher $tiny --text examples/story.txt --tokens 1k,1k,2k --batch 2 --length 64 --keep-attention 2 --no-eval --threads 1 \
  --checkpoint-seconds 0.02 $order --out "$1"; }
rm -rf "$work/whole"
since=$(now)
check "a run that nobody disturbs" distill "$work/whole"
most=$(took "$since" "$(now)")
killed=0 tries=0 runs=0 resumed=0
finish() {
  check "the run after kill $killed" distill "$work/run"
  check "the same bits after kill $killed" cmp "$work/whole/student/model.safetensors" "$work/run/student/model.safetensors"
  # a system may free a killed process's locks only after its parent was told; the next writer then leaves its file to the one after
  nothing_left "$work/run" || check "a further run after kill $killed" distill "$work/run"
  check "nothing is left after kill $killed" nothing_left "$work/run"
  rm -rf "$work/run"
  runs=$((runs + 1))
}
while [ $killed -lt "$kills" ] && [ $tries -lt $((3 * kills)) ]; do
  tries=$((tries + 1))
  if kill_during "$(some_time "$most" $tries)" "$mohawk" distill --teacher $tiny --text examples/story.txt --tokens 1k,1k,2k --batch 2 --length 64 --keep-attention 2 \
    --no-eval --threads 1 --checkpoint-seconds 0.02 $order --out "$work/run"; then
    killed=$((killed + 1))
    grep -q "resuming from the checkpoint" "$work/said" && resumed=$((resumed + 1))
    grep -q "warning" "$work/said" && cat "$work/said"
    [ $((killed % 10)) -eq 0 ] && finish
  else
    finish
  fi
done
finish
check "kills of distill: $killed of $kills" test "$killed" -eq "$kills"
echo "distill $order: $killed kills, $resumed of them in a run that had been resumed, $runs runs to the end"
done

# ---- one file: A and B in turn
same_as_one() { [ ! -e "$1" ] || cmp -s "$1" "$work/a.safetensors" || cmp -s "$1" "$work/b.safetensors"; }
for verb in convert quantize; do
  if [ $verb = convert ]; then option=--dtype a=f32 b=f16; else option=--type a=int8 b=int4; fi
  write() { "$mohawk" $verb --model $tiny --out "$1" $option "$2"; }
  check "$verb to $a" write "$work/a.safetensors" $a
  since=$(now)
  check "$verb to $b" write "$work/b.safetensors" $b
  most=$(took "$since" "$(now)")
  rm -f "$work/out.safetensors"
  killed=0 tries=0
  while [ $killed -lt $((kills / 2)) ] && [ $tries -lt $((5 * kills)) ]; do
    tries=$((tries + 1))
    to=$b
    [ $((tries % 2)) -eq 0 ] && to=$a
    kill_during "$(some_time "$most" $tries)" "$mohawk" $verb --model $tiny --out "$work/out.safetensors" $option $to && killed=$((killed + 1))
    check "$verb: the file after $killed kills" same_as_one "$work/out.safetensors"
  done
  check "$verb once more" write "$work/out.safetensors" $a
  check "$verb: it is whole" cmp "$work/out.safetensors" "$work/a.safetensors"
  check "$verb: nothing is left" nothing_left "$work"
  check "kills of $verb: $killed of $((kills / 2))" test $killed -eq $((kills / 2))
  echo "$verb: $killed kills in $tries calls"
done

# ---- a folder
check "a folder, f32" "$mohawk" convert --model $tiny --out "$work/f32" --dtype f32
since=$(now)
check "a folder, f16" "$mohawk" convert --model $tiny --out "$work/f16" --dtype f16
most=$(took "$since" "$(now)")
# without config.json it does not load; with it, weights and configuration belong together
one_model() {
  [ -e "$work/folder/config.json" ] || return 0
  for dtype in f32 f16; do
    cmp -s "$work/folder/config.json" "$work/$dtype/config.json" && cmp -s "$work/folder/model.safetensors" "$work/$dtype/model.safetensors" && return 0
  done
  return 1
}
killed=0 tries=0 none=0
while [ $killed -lt $((kills / 2)) ] && [ $tries -lt $((5 * kills)) ]; do
  tries=$((tries + 1))
  dtype=f16
  [ $((tries % 2)) -eq 0 ] && dtype=f32
  kill_during "$(some_time "$most" $tries)" "$mohawk" convert --model $tiny --out "$work/folder" --dtype $dtype && killed=$((killed + 1))
  [ -e "$work/folder/config.json" ] || none=$((none + 1))
  check "the folder after $killed kills" one_model
done
check "convert to the folder once more" "$mohawk" convert --model $tiny --out "$work/folder" --dtype f32
check "the folder is whole" cmp "$work/folder/model.safetensors" "$work/f32/model.safetensors"
check "nothing is left" nothing_left "$work"
echo "convert to a folder: $killed kills of $tries calls, without a model $none times"

echo "$name: $passed passed, $failed failed"
[ "$failed" -eq 0 ]
