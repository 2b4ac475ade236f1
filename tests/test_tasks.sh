#!/bin/sh
# mohawk eval --task: the three forms of rows, what is wrong with a file, the same bits for any number of threads and any batch.
mohawk=${BUILD:-build}/mohawk
tiny=examples/tiny
name=test_tasks work=${BUILD:-build}/test/tasks
rm -rf "$work"
mkdir -p "$work"
. tests/check.sh

says() { check "it says \"$1\"" grep -qF -- "$1" "$work/said"; }
tasks() { "$mohawk" eval --model "$tiny" --task "$@" >"$work/said" 2>&1; }

cat >"$work/completion.jsonl" <<'END'
{"context": "Once upon a", "continuation": "time"}
{"context": "\"What is it?\" said the little girl. \"I do not", "continuation": "know", "more": [1, {"a": null}, -2.5e3, true]}
{"continuation": "zebra \u00e9 \ud83d\ude00", "context": "Once upon a "}

{"context": "", "continuation": "Once upon a time"}
END
cat >"$work/choices.jsonl" <<'END'
{"query": "The rabbit ran into the", "choices": ["forest.", "of of of.", "seventeen gearboxes and a very long tail of words."], "gold": 0}
{"query": "She was very", "choices": ["happy.", "zq."], "gold": 1}
END
cat >"$work/contexts.jsonl" <<'END'
{"context_options": ["The little dog was hungry and", "Of of of of and"], "continuation": "he ate the bread.", "gold": 0}
{"context_options": ["one", "two", "the little girl"], "continuation": "said to her mother", "gold": 2}
END

tasks "$work/completion.jsonl" "$work/choices.jsonl" "$work/contexts.jsonl" --rows "$work/rows"
says "accuracy in %"
says "guessing"
says "acc_norm"
check "a row for every row" [ "$(wc -l <"$work/rows")" -eq 8 ]
check "lines are counted as they stand" sh -c "sed -n 4p '$work/rows' | grep -q '\"line\": 5,'"
check "a time comes after once upon a" sh -c "sed -n 1p '$work/rows' | grep -q '\"greedy\": 1'"
check "a zebra does not" sh -c "sed -n 3p '$work/rows' | grep -q '\"greedy\": 0'"
check "the likeliest choice" sh -c "sed -n 5p '$work/rows' | grep -q '\"pick\": 0, \"pick_norm\": [02], \"gold\": 0'"
check "the likelier context" sh -c "sed -n 7p '$work/rows' | grep -q '\"pick\": 0, \"gold\": 0'"
for more in "--threads 1" "--threads 3"; do
  tasks "$work/completion.jsonl" "$work/choices.jsonl" "$work/contexts.jsonl" --rows "$work/rows.more" $more
  check "the same bits with $more" cmp "$work/rows" "$work/rows.more"
done
tasks "$work/completion.jsonl" "$work/choices.jsonl" "$work/contexts.jsonl" --rows "$work/rows.one" --batch 1
numbers() { sed 's/.*log_likelihoods": \[\([^]]*\).*/\1/; s/, /\n/g' "$1"; }
numbers "$work/rows" >"$work/a"
numbers "$work/rows.one" >"$work/b"
check "one sequence at a time is as good" sh -c "paste '$work/a' '$work/b' | awk '{ d = \$1 - \$2; if (d * d > 1e-8 || \$1 == \"\") exit 1 } END { exit NR != 14 }'"

# mean and standard error of 1, 1, 0, x; several models; limits
"$mohawk" eval --model "$tiny" "$tiny" --task "$work/choices.jsonl" --json >"$work/said" 2>&1
says '"form": "choices", "rows": 2, "acc": 0.5, "acc_error": 0.5,'
says '"chance": 0.416666667'
check "both models" [ "$(grep -o '"model": "examples/tiny"' "$work/said" | wc -l)" -eq 2 ]
check "the same model has the same scores" [ "$(grep -o '"mean_acc": [0-9.]*' "$work/said" | uniq | wc -l)" -eq 1 ]
tasks "$work/completion.jsonl" --limit 1 --json
says '"rows": 1, "acc": 1, "acc_error": 0,'
"$mohawk" eval --model "$tiny" --task - --json <"$work/contexts.jsonl" >"$work/said" 2>&1
says '"form": "contexts", "rows": 2, "acc": 1'
printf '{"context": "%0200d and the", "continuation": "girl"}' 0 >"$work/long.jsonl"
tasks "$work/long.jsonl" --length 32
says "lost the start of their context"
tasks "$work/choices.jsonl" --delimiter '\nAnswer: ' --rows "$work/rows.more"
check "a delimiter changes them" sh -c "! cmp -s '$work/rows.more' '$work/rows'"
check "and has its tokens" sh -c "grep -q '\"tokens\": \[[0-9]' '$work/rows.more'"

# what is wrong is told with file and line
wrong() { # what is said, and the second line of a file
  { head -n 1 "$work/choices.jsonl" && printf '%b' "$2"; } >"$work/wrong.jsonl"
  code 1 "wrong rows: $1" "$mohawk" eval --model "$tiny" --task "$work/wrong.jsonl"
  cp "$work/output" "$work/said"
  says "$work/wrong.jsonl, line 2: $1"
}
wrong 'the field "gold" is missing' '{"query": "a", "choices": ["b", "c"]}\n'
wrong 'it has none of the fields' '{"qery": "a"}\n'
wrong 'it has both "context" and "query"' '{"query": "a", "context": "b"}'
wrong 'it has "context" and "continuation", but the rows before it' '{"context": "a", "continuation": "b"}'
wrong '"gold" is 2, but "choices" has only the strings 0 to 1' '{"query": "a", "choices": ["b", "c"], "gold": 2}'
wrong '"gold" must be a whole number' '{"query": "a", "choices": ["b", "c"], "gold": -1}'
wrong '"gold" must be a whole number' '{"query": "a", "choices": ["b", "c"], "gold": "1"}'
wrong '"gold" must be a whole number' '{"query": "a", "choices": ["b", "c"], "gold": 1e400}'
wrong '"choices" needs at least two strings' '{"query": "a", "choices": ["b"], "gold": 0}'
wrong '"choices" must be a list of strings' '{"query": "a", "choices": "bc", "gold": 0}'
wrong '"choices" must be a list of strings' '{"query": "a", "choices": ["b", 3], "gold": 0}'
wrong 'string 1 of "choices" is empty' '{"query": "a", "choices": ["b", ""], "gold": 0}'
wrong '"query" must be a string' '{"query": null, "choices": ["b", "c"], "gold": 0}'
wrong '"query" stands there twice' '{"query": "a", "query": "a", "choices": ["b", "c"], "gold": 0}'
wrong 'an object, {...}, should stand' '[1, 2]\n'
wrong 'the line ends where the closing quote' '{"query": "a'
wrong 'valid UTF-8 should stand at byte' '{"query": "\0377", "choices": ["b", "c"], "gold": 0}'
wrong 'the second half of a surrogate pair' '{"query": "\\ud800x", "choices": ["b", "c"], "gold": 0}'
wrong 'the end of the line should stand' '{"query": "a", "choices": ["b", "c"], "gold": 0} {}'
wrong 'brackets are nested more than' "{\"deep\": $(printf '%0200d' 0 | tr 0 '[')"
wrong 'a digit should stand' '{"x": 1.}'
printf '\n\n' >"$work/empty.jsonl"
code 1 "no rows" "$mohawk" eval --model "$tiny" --task "$work/empty.jsonl"
code 1 "no file" "$mohawk" eval --model "$tiny" --task "$work/nothing.jsonl"
code 1 "a continuation that does not fit" "$mohawk" eval --model "$tiny" --task "$work/completion.jsonl" --length 2
code 2 "neither text nor task" "$mohawk" eval --model "$tiny"
code 2 "both" "$mohawk" eval --model "$tiny" --text examples/story.txt --task "$work/choices.jsonl"
code 2 "a teacher for tasks" "$mohawk" eval --model "$tiny" --teacher "$tiny" --task "$work/choices.jsonl"
code 2 "several models for text" "$mohawk" eval --model "$tiny" "$tiny" --text examples/story.txt

echo "$name: $passed passed, $failed failed"
[ "$failed" -eq 0 ]
