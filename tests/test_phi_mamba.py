#!/usr/bin/env python3
"""There and back: a student that mohawk wrote is trained by examples/phi_mamba.py and saved, and mohawk runs it with the cross-entropy that PyTorch
has. Needs torch, safetensors and tokenizers; says so and ends well without."""
import json
import os
import pathlib
import subprocess
import sys

from check import check, end, skip

BUILD = os.environ.get("BUILD", "build")
MOHAWK = f"{BUILD}/mohawk"
work = pathlib.Path(BUILD) / "test" / "phi_mamba"
story = "examples/story.txt"

try:
    import torch
    from tokenizers import Tokenizer
    import safetensors.torch  # noqa: F401
except ImportError as error:
    skip(f"no {error.name}")

sys.path.insert(0, "examples")
import phi_mamba

if not hasattr(torch.nn, "RMSNorm"):
    skip("PyTorch is older than 2.4")


def run(*arguments):
    return subprocess.run([str(a) for a in arguments], capture_output=True, text=True)


def entropy(model):
    """Cross-entropy of two windows of 64 tokens, by mohawk."""
    said = run(MOHAWK, "eval", "--model", model, "--text", story, "--length", 64, "--windows", 2, "--threads", 1, "--json")
    return json.loads(said.stdout)["cross_entropy"]


ids = Tokenizer.from_file("examples/tiny/tokenizer.json").encode(pathlib.Path(story).read_text(encoding="utf-8")).ids
windows = torch.tensor(([0] + ids)[:128]).view(2, 64)
for name, options in ("state", ()), ("windows", ("--windows", "1.1=8,2.0=16,0", "--keep-heads", "1.0", "--keep-attention", "3")), ("paper", ("--recipe", "paper")):
    student, trained = work / name / "student", work / f"{name}-trained"
    made = run(MOHAWK, "distill", "--teacher", "examples/tiny", "--text", story, "--tokens", "1k,1k,1k", "--batch", 2, "--length", 64, "--no-eval",
               "--threads", 1, "--fresh", "--out", work / name, *options)
    if not check(made.returncode == 0, f"{name}: {made.stderr[-300:]}"):
        continue
    said = run(sys.executable, "examples/phi_mamba.py", student, story, trained, 4)
    if not check(said.returncode == 0, f"{name}: {said.stderr[-300:]}"):
        continue
    before, after = phi_mamba.load(student), phi_mamba.load(trained)
    check(set(before.state_dict()) == set(after.state_dict()), f"{name}: other tensors")
    check((trained / "tokenizer.json").read_bytes() == (student / "tokenizer.json").read_bytes(), f"{name}: another tokenizer")
    changed = [n for n, x in after.state_dict().items() if not torch.equal(x, before.state_dict()[n])]
    check(len(changed) > len(before.state_dict()) // 2, f"{name}: only {changed} were trained")
    for model, folder in (before, student), (after, trained):
        with torch.no_grad():
            here = phi_mamba.loss_of(model, windows).item()
        check(abs(here - entropy(folder)) < 1e-4, f"{name}: {folder} has {here:.5f} nats in PyTorch, {entropy(folder):.5f} in mohawk")
    check(entropy(trained) < entropy(student), f"{name}: training on a text did not help there")
end()
