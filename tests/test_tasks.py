#!/usr/bin/env python3
"""mohawk eval --task against PyTorch: every option's log-likelihood within 1e-3, the same picks, the same accuracies, with Hugging Face's tokenizer and
PhiForCausalLM and the requests of lm-evaluation-harness, which is restated here. Rows are made here; those of ../shared/data/eval count too where they are.
Needs torch, transformers and tokenizers; says so and ends well without."""
import json
import os
import pathlib
import random
import re
import subprocess

from check import check, end, skip

BUILD = os.environ.get("BUILD", "build")
SHARED = pathlib.Path(os.environ.get("MOHAWK_SHARED", "../shared"))
TINY = pathlib.Path("examples/tiny")

try:
    import torch
    import transformers
    from tokenizers import Tokenizer
except ImportError as error:
    skip(f"no {error.name}")

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
torch.set_num_threads(1)


# ---- rows of every form, from the bundled story


def sentences():
    text = (TINY.parent / "story.txt").read_text(encoding="utf-8")
    found = [re.sub(r"\s+", " ", s).strip() for s in re.split(r"(?<=[.!?])\s", text)]
    return [s for s in found if len(s.split()) > 5]


def made_rows():
    draw, all_of_it = random.Random(1), sentences()
    rows = {"completion": [], "choices": [], "contexts": []}
    odd = ["", " ", "\n", "\u00a0", "\u2003 ", "\t\n", "caf\u00e9 \u4f60\u597d \U0001f600", "<|endoftext|>"]
    for i in range(24):
        some = draw.sample(all_of_it, 4)
        words = some[0].split()
        tail = odd[i] if i < len(odd) else ""
        rows["completion"].append({"context": " ".join(words[:-2]) + tail, "continuation": " ".join(words[-2:])})
        rows["choices"].append({"query": some[0] + tail, "choices": [s[: draw.randint(3, 60)] for s in some[: 2 + i % 3]], "gold": i % 2})
        rows["contexts"].append({"context_options": some[: 2 + i % 3], "continuation": all_of_it[i % len(all_of_it)], "gold": i % 2})
    rows["completion"].append({"context": "", "continuation": "Once upon a time"})
    rows["completion"].append({"context": " ".join(all_of_it)[:6000], "continuation": "and so"})
    return rows


# ---- what lm-evaluation-harness asks: lm_eval/models/huggingface.py, api/model.py


class Reference:
    def __init__(self, length):
        self.tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
        self.model = transformers.PhiForCausalLM.from_pretrained(TINY, torch_dtype=torch.float32).eval()
        self.length = length

    def encode(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def pair(self, context, continuation):
        if context == "":
            return self.encode("<|endoftext|>"), self.encode(continuation)
        spaces = len(context) - len(context.rstrip())
        if spaces > 0:
            continuation, context = context[-spaces:] + continuation, context[:-spaces]
        if context == "":
            return self.encode("<|endoftext|>"), self.encode(continuation)
        whole, alone = self.encode(context + continuation), self.encode(context)
        return alone, whole[len(alone) :]

    def score(self, context, continuation):
        """log-likelihood of the continuation, and whether it is the greedy one"""
        before, after = self.pair(context, continuation)
        tokens = torch.tensor((before + after)[-(self.length + 1) :][:-1])
        with torch.no_grad():
            logits = self.model(tokens[None], use_cache=False).logits[0].log_softmax(-1)[-len(after) :]
        target = torch.tensor(after)
        return logits.gather(1, target[:, None]).double().sum().item(), bool((logits.argmax(-1) == target).all())


def delimiter(context, continuation):
    return "" if context != context.rstrip() or continuation[0] in " \t\n\r" else " "


def options(row):
    if "query" in row:
        return [(row["query"], c) for c in row["choices"]]
    return [(c, row["continuation"]) for c in row.get("context_options", [row.get("context")])]


def compare(reference, path, rows, *more):
    out = pathlib.Path(BUILD) / "test" / "tasks.rows"
    command = [f"{BUILD}/mohawk", "eval", "--model", str(TINY), "--task", str(path), "--limit", str(len(rows)), "--rows", str(out), "--json", *more]
    told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["models"][0]["tasks"][0]
    got = [json.loads(line) for line in out.read_text().splitlines()]
    check(len(got) == len(rows) == told["rows"], f"{path}: {len(got)} rows")
    worst, right, right_norm = 0, 0, 0
    for i, (row, ours) in enumerate(zip(rows, got)):
        scores = [reference.score(c, delimiter(c, x) + x) for c, x in options(row)]
        likelihoods = [s[0] for s in scores]
        worst = max([worst] + [abs(a - b) for a, b in zip(likelihoods, ours["log_likelihoods"])])
        if "gold" not in row:
            check(ours["greedy"] == scores[0][1], f"{path}, row {i}: greedy")
            right += scores[0][1]
            continue
        pick = max(range(len(scores)), key=lambda k: likelihoods[k])
        check(ours["pick"] == pick, f"{path}, row {i}: picked {ours['pick']}, not {pick}")
        right += pick == row["gold"]
        if "choices" in row:
            norm = max(range(len(scores)), key=lambda k: likelihoods[k] / len(row["choices"][k]))
            check(ours["pick_norm"] == norm, f"{path}, row {i}: picked {ours['pick_norm']} by length, not {norm}")
            right_norm += norm == row["gold"]
    n = len(rows)
    check(worst < 1e-3, f"{path}: a log-likelihood is off by {worst:.2g}")
    check(abs(told["acc"] - right / n) < 1e-8, f"{path}: accuracy {told['acc']}")
    check(abs(told["acc_error"] - (right / n * (1 - right / n) / (n - 1)) ** 0.5) < 1e-8, f"{path}: standard error {told['acc_error']}")
    if "acc_norm" in told:
        check(abs(told["acc_norm"] - right_norm / n) < 1e-8, f"{path}: length-normalised accuracy {told['acc_norm']}")
    print(f"  {path.name:24s} {n} rows, log-likelihoods within {worst:.1e}")


def main():
    folder = pathlib.Path(BUILD) / "test"
    folder.mkdir(parents=True, exist_ok=True)
    reference = Reference(2048)
    for form, rows in made_rows().items():
        path = folder / f"tasks_{form}.jsonl"
        path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
        compare(reference, path, rows)
        path.write_text("".join(json.dumps(r) + "\n" for r in rows[-8:]), encoding="utf-8")
        reference.length = 120
        compare(reference, path, rows[-8:], "--length", "120")
        reference.length = 2048
    found = sorted((SHARED / "data" / "eval").glob("*.jsonl"))
    for path in found:
        compare(reference, path, [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:24]])
    end("" if found else f" ({SHARED}/data/eval is not there)")


main()
