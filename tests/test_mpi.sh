#!/bin/sh
# examples/mpi.c with 1, 2 and 4 processes of this machine: the same bits, and a job that lost a process goes on.
build=${BUILD:-build}
name=test_mpi work=$build/test/mpi
case ${CFLAGS-} in
*sanitize*)
  echo "$name: 0 passed, 0 failed (skipped: it is built without sanitizers)"
  exit 0
  ;;
esac
for tool in mpicc mpirun; do
  command -v $tool >/dev/null 2>&1 || {
    echo "$name: 0 passed, 0 failed (skipped: no $tool)"
    exit 0
  }
done
rm -rf "$work"
mkdir -p "$work"
. tests/check.sh
# more processes than cores, by anybody, without a network
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_btl=self,vader OMPI_MCA_mpi_yield_when_idle=1
job() {
  processes=$1
  shift
  timeout 300 mpirun -n "$processes" "$work/mpi" examples/tiny examples/story.txt "$@"
}
says() { check "it says \"$1\"" grep -qF -- "$1" "$work/said"; }

check "mpi.c is built" mpicc -std=c99 -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Werror -O1 -I. examples/mpi.c -lm -pthread -o "$work/mpi"
for n in 1 2 4; do check "$n processes" job $n "$work/$n" 15000 4; done
check "1 and 2: the same student" cmp "$work/1/student/model.safetensors" "$work/2/student/model.safetensors"
check "1 and 4" cmp "$work/1/student/model.safetensors" "$work/4/student/model.safetensors"
check "their checkpoints" cmp "$work/2/student/config.json" "$work/4/student/config.json"
check "8 shares of 2 processes" job 2 "$work/8" 15000 8
check "another student" sh -c "! cmp -s '$work/1/student/model.safetensors' '$work/8/student/model.safetensors'"

# one process is killed: the job ends and says so, and goes on with another number of processes
job 2 "$work/killed" 15000 4 0.01 >"$work/said" 2>&1 &
started=$!
for i in $(seq 300); do [ -e "$work/killed/checkpoint.previous.safetensors" ] && break; sleep 0.05; done
process=$(ps -eo pid,args | awk -v me="$work/mpi" '$2 == me && / '"$(echo "$work" | sed 's|/|\\/|g')"'\/killed / { pid = $1 } END { print pid }')
check "a process to kill" kill -KILL "$process"
wait $started
check "the job ended" test $? -ne 0
says "exited on signal 9 (Killed)"
check "no student yet" test ! -e "$work/killed/student"
check "going on with 4 processes" job 4 "$work/killed" 15000 4
cp "$work/output" "$work/said"
says "resumed from $work/killed"
check "the same student" cmp "$work/1/student/model.safetensors" "$work/killed/student/model.safetensors"

# mistakes
code 2 "3 processes" job 3 "$work/none"
cp "$work/output" "$work/said"
says "3 processes for 4 shares"
code 2 "no arguments" timeout 60 mpirun -n 1 "$work/mpi"
code 1 "no such text" timeout 60 mpirun -n 2 "$work/mpi" examples/tiny "$work/nothing" "$work/none"
cp "$work/output" "$work/said"
says "cannot read the text $work/nothing"

echo "$name: $passed passed, $failed failed"
[ "$failed" -eq 0 ]
