# Read by the test scripts, which set `name` and `work`, a folder that is there.
passed=0 failed=0
# code N WHAT COMMAND...: the command must end with exit code N
code() {
  want=$1 what=$2
  shift 2
  "$@" >"$work/output" 2>&1
  ended=$?
  if [ "$ended" -eq "$want" ]; then passed=$((passed + 1)); else
    failed=$((failed + 1))
    echo "$name: $what: $* ended with $ended, not $want:"
    head -n 5 "$work/output"
  fi
}
# check WHAT COMMAND...: the command must succeed
check() { code 0 "$@"; }
