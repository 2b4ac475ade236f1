#!/bin/sh
# mohawk matrices: matrices whose families are known, the same bits for any number of threads, the picture, what is wrong with options and files.
mohawk=${BUILD:-build}/mohawk
tiny=examples/tiny
name=test_matrices work=${BUILD:-build}/test/matrices
rm -rf "$work"
mkdir -p "$work"
. tests/check.sh

says() { check "it says \"$1\"" grep -qF -- "$1" "$work/said"; }
# write NAME SHAPE EXPRESSION...: a safetensors file of bytes, each tensor 8 x 8 entries, awk expressions of t and s
write() {
  file=$1 shape=$2 header='{' at=0 bytes=''
  shift 2
  for expression in "$@"; do
    header="$header\"m$at\":{\"dtype\":\"U8\",\"shape\":$shape,\"data_offsets\":[$((64 * at)),$((64 * at + 64))]},"
    bytes="$bytes$(awk "BEGIN { for (t = 0; t < 8; t++) for (s = 0; s < 8; s++) printf \"\\\\%03o\", $expression }")"
    at=$((at + 1))
  done
  header="${header%,}}"
  { printf "\\$(printf %03o $((${#header} % 256)))\\$(printf %03o $((${#header} / 256)))\\0\\0\\0\\0\\0\\0%s" "$header" && printf "$bytes"; } >"$file"
}
# value FAMILY PLACE: of all matrices, at the order that stands there
value() { sed -n "s/.*\"all\": {\(.*\)}, \"layers\".*/\1/p" "$work/said" | sed "s/.*\"$1\": {\"mean\": \[\([^]]*\)\].*/\1/" | tr -d ' ' | cut -d , -f "$2"; }
below() { check "$1 at place $2 is below $3: $(value "$1" "$2")" awk "BEGIN { exit !($(value "$1" "$2") < $3) }"; }
above() { check "$1 at place $2 is above $3: $(value "$1" "$2")" awk "BEGIN { exit !($(value "$1" "$2") > $3) }"; }
from() { "$mohawk" matrices --from "$work/$1.safetensors" --json --orders 1,2,4,8 >"$work/said" 2>&1; }

write "$work/toeplitz.safetensors" '[8,8]' '(s <= t ? 9 - (t - s) : 0)'
from toeplitz
below toeplitz 1 1e-12
above low_rank 1 0.3
below low_rank 4 1e-12
below causal_low_rank 4 1e-12
write "$work/decay.safetensors" '[8,8]' '(s <= t ? 2^(7 - (t - s)) : 0)'
from decay
below toeplitz 1 1e-12
below ssd 1 1e-3
below semiseparable 1 1e-3
below bound 1 1e-12
above causal_low_rank 1 0.3
write "$work/product.safetensors" '[8,8]' '(s <= t ? (t + 1) * (9 - s) : 0)'
from product
above toeplitz 1 0.05
below ssd 1 1e-3
write "$work/two.safetensors" '[1,8,8]' '(s <= t ? (1 + (t % 3) * (s % 4)) * (t > 3 && s < 4 ? 1 : 2) : 0)'
from two
above bound 1 0.02
below bound 2 1e-12
below ssd 2 1e-3
below semiseparable 2 1e-3
check "the bound is below the fits" awk "BEGIN { exit !($(value bound 1) <= $(value semiseparable 1) && $(value semiseparable 1) <= $(value ssd 1)) }"

# a model's heads
"$mohawk" matrices "$tiny" --heads 1.2,2.0 --windows 2 --length 16 --threads 1 --svg "$work/a.svg" --save "$work/saved.safetensors" >"$work/a" 2>/dev/null
cp "$work/a" "$work/said"
says "of 2 heads, 4 matrices of 16 x 16"
says "  head 2"
says "Expected, worst first"
check "orders end at the length" sh -c "! grep -q ' 32' '$work/said'"
"$mohawk" matrices "$tiny" --heads 1.2,2.0 --windows 2 --length 16 --threads 3 --svg "$work/b.svg" >"$work/b" 2>/dev/null
check "the same for more threads" cmp "$work/a" "$work/b"
check "and the same picture" cmp "$work/a.svg" "$work/b.svg"
check "a chart for all and for each layer" [ "$(grep -c 'font-weight="600" font-size="12"' "$work/a.svg")" -eq 3 ]
check "elements are closed" [ "$(grep -o '<g[ >]' "$work/a.svg" | wc -l)" -eq "$(grep -o '</g>' "$work/a.svg" | wc -l)" ]
"$mohawk" matrices --from "$work/saved.safetensors" >"$work/said" 2>/dev/null
check "what was saved has the same distances" sh -c "sed -n 4,15p '$work/said' >'$work/c'; sed -n 4,15p '$work/a' | cmp - '$work/c'"
"$mohawk" matrices "$tiny" --layers 3 --windows 1 --length 8 --orders 2,4 --at 4 --json >"$work/said" 2>&1
says '"length": 8, "matrices": 4, "orders": [2, 4]'
says '"name": "layer 3", "layer": 3'
says '"error": [null, null]'

# mistakes
code 2 "nothing to measure" "$mohawk" matrices
code 2 "model and file" "$mohawk" matrices "$tiny" --from "$work/two.safetensors"
code 2 "orders that fall" "$mohawk" matrices "$tiny" --orders 4,2
wrong() {
  code 1 "$1" "$mohawk" matrices "$@"
  cp "$work/output" "$work/said"
}
wrong "$tiny" --layers 4
says "--layers: there is no layer 4, the model has layers 0 to 3"
wrong "$tiny" --heads 1.7
says '"1.7" names no head'
wrong "$tiny" --length 1024 --windows 1000
says "the text is too short"
wrong "$tiny" --length 4 --orders 5
says "--orders: 5 is more than matrices of 4 x 4 can have"
wrong "$tiny" --length 8 --at 3
says "--at 3 is none of the orders"
write "$work/full.safetensors" '[8,8]' 'int(t * 8 + s)'
wrong --from "$work/full.safetensors"
says "tensor m0 is not causal: row 0, column 1 is not 0"
write "$work/shape.safetensors" '[4,16]' 's'
wrong --from "$work/shape.safetensors"
says "tensor m0 is none of (T,T), (heads,T,T) and (windows,heads,T,T)"
write "$work/zeros.safetensors" '[8,8]' 0
wrong --from "$work/zeros.safetensors"
says "tensor m0 has a matrix of zeros"
"$mohawk" matrices "$tiny" --svg "$work/stopped.svg" >"$work/said" 2>&1 &
sleep 1
kill -INT $!
wait $!
check "Ctrl-C ends it with an error" [ $? -eq 1 ]
check "and writes nothing" [ ! -e "$work/stopped.svg" ]

echo "$name: $passed passed, $failed failed"
[ "$failed" -eq 0 ]
