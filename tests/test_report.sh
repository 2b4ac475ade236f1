#!/bin/sh
# The report of a run: one file that asks for nothing elsewhere, with the numbers of the run, whatever the folders hold.
mohawk=${BUILD:-build}/mohawk
name=test_report work=${BUILD:-build}/test/report
rm -rf "$work"
mkdir -p "$work"
. tests/check.sh

says() { check "it says \"$1\"" grep -qF -- "$1" "$work/said"; }
has() { check "$1 has $2" grep -qF -- "$2" "$work/$1"; }
no() { check "$1 has no $2" sh -c "! grep -qiE -- '$2' '$work/$1'"; }
start() { # in place of the shell that calls it
  out=$1
  shift
  exec "$mohawk" distill --teacher examples/tiny --text examples/story.txt --eval examples/story.txt --eval-windows 4 --tokens 1k,2k,1k --batch 2 --length 64 --threads 1 \
    --out "$work/$out" "$@"
}
run() { (start "$@"); }

# ---- one run
check "a run" run a --keep-stages
check "its report" "$mohawk" report "$work/a" --out "$work/a.html"
check "once more" "$mohawk" report "$work/a" --out "$work/again.html"
check "the same" cmp "$work/a.html" "$work/again.html"
for section in "What each stage bought" "What a mixing matrix is, and why three stages" "Losses" "How near each head is" "Mixing matrices" \
  "Measured on held-out text" "Settings, seeds, versions"; do has a.html "<h2>$section</h2>"; done

sed 's|http://www.w3.org/2000/svg||g' "$work/a.html" >"$work/rest"
no rest 'https?:|["(]//|@import|url\(|<link[^>]*href="[^d]|src=|<iframe|<object'
has a.html "default-src 'none'"
no a.html 'http-equiv="refresh"'
for tag in html head body main section figure figcaption svg g table thead tbody tr td th div dl dt dd p script style h1 h2 h3 select fieldset label canvas pre; do
  opened=$(grep -oE "<$tag[ >]" "$work/a.html" | wc -l) closed=$(grep -o "</$tag>" "$work/a.html" | wc -l)
  check "$tag is closed: $opened, $closed" test "$opened" -eq "$closed"
done
check "each id stands once" sh -c "! grep -oE ' id=\"[^\"]*\"' '$work/a.html' | sort | uniq -d | grep ."
awk '/^<script>/ { on = 1; sub(/^<script>/, "") } on { i = index($0, "</script>"); if (i) { printf "%s", substr($0, 1, i - 1); exit } print }' "$work/a.html" >"$work/script"
check "the script is small" test "$(wc -c <"$work/script")" -lt 12288
check "and there" test "$(wc -c <"$work/script")" -gt 2000
if command -v openssl >/dev/null && command -v base64 >/dev/null; then
  has a.html "script-src 'sha256-$(openssl dgst -sha256 -binary "$work/script" | base64)'"
fi
check "a file of a moderate size" test "$(wc -c <"$work/a.html")" -lt 400000

# its numbers are the run's
n=0
for kl in $(grep -o '"kl": [0-9.]*' "$work/a/results.json" | cut -c 7-); do
  has a.html "$(printf '<td data-label="KL to teacher">%.3f' "$kl")"
  n=$((n + 1))
done
check "an evaluation at the start and for each stage" test $n -eq 4
check "heads: 16 at the start, and at the end of each of 7, 15 and 7 updates" test "$(wc -l <"$work/a/heads.csv")" -eq $((1 + 16 + 16 * (7 + 15 + 7)))
tail -n 16 "$work/a/heads.csv" | while IFS=, read -r stage tokens layer head error; do
  printf 'data-h="0.%s.%s" data-m="stage3"[^>]*>  *<b>%.2f\n' "$layer" "$head" "$error" | sed 's/>  \*</></'
done >"$work/patterns"
while read -r pattern; do check "the map has $pattern" grep -qE -- "$pattern" "$work/a.html"; done <"$work/patterns"
check "sixteen of them" test "$(wc -l <"$work/patterns")" -eq 16
has a.html "6182a9e1993fae7a" # the teacher's hash, as xxh64sum says
has a.html "(the median head)"
check "a matrix of the teacher, the start, the end and the difference, for three heads" test "$(grep -o '<image ' "$work/a.html" | wc -l)" -eq 12

# ---- a run that goes on keeps what it had and writes nothing twice
mkdir "$work/b"
cp "$work/a/stage1/checkpoint.safetensors" "$work/a/heads.csv" "$work/a/probes.safetensors" "$work/a/log.csv" "$work/b"
check "the same run from stage 2" run b
check "the same heads" cmp "$work/a/heads.csv" "$work/b/heads.csv"
check "the same matrices" cmp "$work/a/probes.safetensors" "$work/b/probes.safetensors"

# ---- several runs over each other
check "another run" run c --keep-attention 2 --seed 2
check "both" "$mohawk" report "$work/a" "$work/c" --out "$work/both.html"
has both.html '<option value="1">c</option>'
has both.html 'class="k2"'
has both.html "where they differ from the first run"
check "a run without evaluation" run d --no-eval
check "its report" "$mohawk" report "$work/d" --out "$work/d.html"
has d.html "no evaluation yet"

# ---- watched while it trains
check "a run with its report" run live --report --tokens 1k,1k,20k
has live/report.html "<h2>The same text continued</h2>"
no live/report.html 'http-equiv="refresh"|class="banner"'
check "teacher, untrained student and three stages: measured" test "$(grep -o '"cross_entropy": ' "$work/live/results.json" | wc -l)" -eq 5
check "and heard" test "$(grep -o '"sample": ' "$work/live/results.json" | wc -l)" -eq 5
check "the same run without" run quiet --tokens 1k,1k,20k
check "the same bits" cmp "$work/live/student/model.safetensors" "$work/quiet/student/model.safetensors"
start stopped --report --tokens 1k,1k,2M >"$work/output" 2>&1 &
process=$!
tries=0
while [ ! -e "$work/stopped/report.html" ] && [ $tries -lt 600 ]; do sleep 0.2; tries=$((tries + 1)); done
cp "$work/stopped/report.html" "$work/going.html"
has going.html '<meta http-equiv="refresh" content="10">'
check "it says where it is" grep -qE 'class="banner" role="status">running, stage [123], [0-9]+ %.*, written at [0-9:]{8}<' "$work/going.html"
kill -TERM $process
wait $process
no stopped/report.html 'http-equiv="refresh"|class="banner"'
check "goes on, with what was measured" run stopped --report --tokens 1k,1k,1k
check "teacher, untrained student and three stages again" test "$(grep -o '"sample": ' "$work/stopped/results.json" | wc -l)" -eq 5

# ---- tables of experiments, and models from text
check "a table" "$mohawk" ablate --run "all: --tokens 1k,1k,1k" "3 <b>: --tokens 0,0,3k" --teacher examples/tiny --text examples/story.txt --eval examples/story.txt \
  --eval-windows 4 --batch 2 --length 64 --seeds 1,2 --out "$work/table"
check "its report" "$mohawk" report "$work/table" --out "$work/table.html"
has table.html "range over seeds"
has table.html '<th scope="row">3 &lt;b&gt;</th>'
check "a dot for each seed of each row" test "$(grep -o '<circle ' "$work/table.html" | wc -l)" -eq 4
for kl in $(sed 's/"after"/\n/g' "$work/table/ablation.json" | sed -n 's/^: .*"stage": 3, "kl": \([0-9.]*\).*/\1/p'); do
  has table.html "$(printf '">%.3f</td>' "$kl")"
done
check "with a run" "$mohawk" report "$work/a" "$work/table" --out "$work/table.html"
check "a model from text" "$mohawk" train --text examples/story.txt --d-model 32 --layers 2 --vocab-size 300 --tokens 2k --batch 2 --length 64 --threads 1 --out "$work/phi"
check "its report" "$mohawk" report "$work/phi" --out "$work/phi.html"
has phi.html "$(printf 'cross-entropy on held-out text is %.3f' "$(sed -n 's/.*"cross_entropy": \([0-9.]*\),.*/\1/p' "$work/phi/results.json")")"

# ---- colors: v and -v stay apart for all eyes (Machado et al. 2009 in linear sRGB, OKLab)
grep -o '"colors":\[[^]]*' "$work/a.html" | grep -o '#[0-9a-f]*' >"$work/colors"
check "255 colors" test "$(wc -l <"$work/colors")" -eq 255
distances() {
  awk 'function hex(s) { return 16 * (index("0123456789abcdef", substr(s, 1, 1)) - 1) + index("0123456789abcdef", substr(s, 2, 1)) - 1 }
    function linear(v) { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ^ 2.4 }
    function root(v) { return v <= 0 ? 0 : v ^ (1 / 3) }
    { for (i = 0; i < 3; i++) rgb[NR - 1, i] = linear(hex(substr($0, 2 + 2 * i, 2))) }
    function lab(c, e,  r, g, b, l, m, s, x, i) {
      for (i = 0; i < 3; i++) { x[i] = M[e, 3 * i] * rgb[c, 0] + M[e, 3 * i + 1] * rgb[c, 1] + M[e, 3 * i + 2] * rgb[c, 2] }
      l = root(0.4122214708 * x[0] + 0.5363325363 * x[1] + 0.0514459929 * x[2])
      m = root(0.2119034982 * x[0] + 0.6806995451 * x[1] + 0.1073969566 * x[2])
      s = root(0.0883024619 * x[0] + 0.2817188376 * x[1] + 0.6299787005 * x[2])
      out[0] = 0.2104542553 * l + 0.7936177850 * m - 0.0040720468 * s
      out[1] = 1.9779984951 * l - 2.4285922050 * m + 0.4505937099 * s
      out[2] = 0.0259040371 * l + 0.7827717662 * m - 0.8086757660 * s }
    END {
      split("1 0 0 0 1 0 0 0 1 0.367322 0.860646 -0.227968 0.280085 0.672501 0.047413 -0.011820 0.042940 0.968881 0.152286 1.052583 -0.204868 0.114503 0.786281 0.099216 -0.003882 -0.048116 1.051998", t, " ")
      for (i = 0; i < 27; i++) M[int(i / 9), i % 9] = t[i + 1]
      n = split("0.02 0.05 0.1 0.25 0.5 1", v, " "); split("9 12 15 17 17 17", least, " ")
      for (k = 1; k <= n; k++) for (e = 0; e < 3; e++) {
        lab(127 - int(127 * sqrt(v[k]) + 0.5), e); for (i = 0; i < 3; i++) a[i] = out[i]
        near = 1e9
        for (c = 127; c < 255; c++) { lab(c, e); d = sqrt((a[0] - out[0]) ^ 2 + (a[1] - out[1]) ^ 2 + (a[2] - out[2]) ^ 2); if (d < near) near = d }
        if (100 * near < least[k]) { printf "-%s is %.1f from a positive one in vision %d\n", v[k], 100 * near, e; bad = 1 } }
      exit bad }' "$1"
}
check "the sign of an entry is seen in normal, deuteranopic and protanopic vision" distances "$work/colors"

# ---- whatever a folder holds
copy() {
  rm -rf "$work/x"
  cp -r "$work/a" "$work/x"
}
bad() { # FILE WHAT: a report of x must fail and name the file
  code 1 "$2" "$mohawk" report "$work/x" --out "$work/x.html"
  cp "$work/output" "$work/said"
  says "x/$1"
  says "$3"
  check "nothing is written after $2" test ! -e "$work/x.html"
  copy
}
copy
printf '9,1,5,1,1,1,1,1\n' >>"$work/x/log.csv"; bad log.csv "a stage that there is not" "no update of a stage"
printf '3,1,-5,1,1,1,1,1\n' >>"$work/x/log.csv"; bad log.csv "tokens below 0" "update"
printf 'hello\n' >>"$work/x/log.csv"; bad log.csv "a word in the log" "line 31"
rm "$work/x/log.csv"
code 1 "no log" "$mohawk" report "$work/x" --out "$work/x.html"
cp "$work/output" "$work/said"
says "report/x has no log.csv"
copy
printf '1,5,2,many,0.5\n' >>"$work/x/heads.csv"; bad heads.csv "a head that is a word" "line 482"
printf '1,5,2,99,0.5\n' >>"$work/x/heads.csv"; bad heads.csv "a head too many" "probes.safetensors"
printf 'stage,layer\n' >"$work/x/heads.csv"; bad heads.csv "another first line" "its first line"
head -c 60000 "$work/a/probes.safetensors" >"$work/x/probes.safetensors"; bad probes.safetensors "half the matrices" "probes.safetensors"
head -c 20 "$work/a/probes.safetensors" >"$work/x/probes.safetensors"; bad probes.safetensors "a few bytes" "probes.safetensors"
cp examples/tiny/expected.safetensors "$work/x/probes.safetensors"; bad probes.safetensors "other tensors" "not the matrices"
sed 's/"shape":\[4,4,2080\]/"shape":[2,8,2080]/' "$work/a/probes.safetensors" >"$work/x/probes.safetensors"
bad probes.safetensors "another shape of one moment" "not the matrices"
sed 's/"shape":\[4,4,2080\]/"shape":[2,8,2080]/g' "$work/a/probes.safetensors" >"$work/x/probes.safetensors"; bad heads.csv "another shape" "heads that"
printf '{"evaluations": [' >"$work/x/results.json"; bad results.json "half a file of results" "not one JSON object"
printf '{"evaluations": [{"stage": 7, "cross_entropy": 1, "kl": 1, "agreement": 1}]}' >"$work/x/results.json"; bad results.json "stage 7" "no stage"
printf '{"evaluations": [{"stage": 3, "cross_entropy": 1, "kl": "x", "agreement": 1}]}' >"$work/x/results.json"; bad results.json "a KL that is a word" "kl"
printf '{"evaluations": [{"stage": 3, "cross_entropy": 1, "kl": 1, "agreement": 1, "tokens": -4}]}' >"$work/x/results.json"; bad results.json "tokens below 0" "tokens"
printf 'no' >"$work/x/run.json"; bad run.json "a run.json that is none" "not one JSON object"
for text in '{"rows": 5}' '{"rows": [{}]}' '{"rows": []}' '[]' '{"rows": [{"name": "a", "tokens": [1, 2, "x"], "runs": []}]}'; do
  printf '%s' "$text" >"$work/x/ablation.json"; bad ablation.json "a table that is none: $text" "damaged"
done
code 1 "no folder" "$mohawk" report "$work/nothing" --out "$work/x.html"
code 2 "nothing at all" "$mohawk" report

# nothing in a folder becomes a part of the page
odd="$work/<b>&amp;\"'"
cp -r "$work/a" "$odd"
printf '{"prompt": "<script>alert(1)</script>", "tokens": [1, 2, 3], "evaluations": [{"stage": 3, "cross_entropy": 1, "kl": 1, "agreement": 1, "sample": "<img src=x> \\u0001 </script> a"}]}' >"$odd/results.json"
sed 's|"compiler": "[^"]*"|"compiler": "<i>\\u001b]</i>"|; s|examples/story.txt|<u>\xff\xc0x</u>|' "$work/a/run.json" >"$odd/run.json"
check "an odd folder" "$mohawk" report "$odd" --out "$work/odd.html"
no odd.html '<script>alert|<img|<i>|<u>|<b>&'
check "two scripts" test "$(grep -o '<script' "$work/odd.html" | wc -l)" -eq 2
check "and their ends" test "$(grep -o '</script>' "$work/odd.html" | wc -l)" -eq 2
if command -v iconv >/dev/null; then check "it is UTF-8" iconv -f UTF-8 -t UTF-8 "$work/odd.html"; fi

echo "$name: $passed passed, $failed failed"
[ "$failed" -eq 0 ]
