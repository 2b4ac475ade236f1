#!/usr/bin/env python3
"""mohawk record --top K against numpy: the K largest of all logits, in order, the mass that they leave out, and the same text and hidden states.
Needs numpy and safetensors; says so and ends well without."""
import json
import os
import pathlib
import shutil
import subprocess

from check import check, end, skip

BUILD = os.environ.get("BUILD", "build")
TOP = 9

try:
    import numpy as np
    from safetensors import safe_open
except ImportError as error:
    skip(f"no {error.name}")

folder = pathlib.Path(BUILD) / "test" / "recording.py"
shutil.rmtree(folder, ignore_errors=True)


def record(name, top):
    command = [f"{BUILD}/mohawk", "record", "--teacher", "examples/tiny", "--text", "examples/story.txt", "--json", "--batch", "2", "--length", "40"]
    command += ["--tokens", "0,200,400", "--top", str(top), "--out", str(folder / name)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def tensors(path):
    with safe_open(path, "np") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()


all_of, top_of = record("all", 100000), record("top", TOP)
check(all_of["mass_left_out"] == 0 and all_of["top"] == 1024, f"all logits: {all_of}")
masses = []
for path in sorted((folder / "all").glob("*.safetensors")):
    (whole, _), (largest, metadata) = tensors(path), tensors(folder / "top" / path.name)
    for name in whole.keys() & largest.keys():
        check((whole[name] == largest[name]).all(), f"{path.name}: {name}")
    if "logits" not in whole:
        check({f"{part}.{layer}" for part in ("hidden", "mixer") for layer in range(4)} | {"tokens"} == whole.keys(), f"{path.name}: {sorted(whole)}")
        continue
    logits = whole["logits"].astype(np.float64)
    order = np.argsort(-logits, axis=-1, kind="stable")[..., :TOP]
    check((order == largest["top.tokens"]).all(), f"{path.name}: the tokens")
    check((np.take_along_axis(whole["logits"], order, -1) == largest["top.values"]).all(), f"{path.name}: the values")
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    left_out = 1 - np.take_along_axis(p, order, -1).sum(-1)
    meant = np.repeat(largest["top.rest"].astype(np.float64)[..., None], logits.shape[-1], -1)
    np.put_along_axis(meant, order, largest["top.values"].astype(np.float64), -1)
    q = np.exp(meant - meant.max(-1, keepdims=True))
    q /= q.sum(-1, keepdims=True)
    check(np.abs(np.take_along_axis(p - q, order, -1)).max() < 1e-6, f"{path.name}: the probabilities of the largest")
    others = q.copy()
    np.put_along_axis(others, order, 0, -1)
    check(np.abs(others.sum(-1) - left_out).max() < 1e-6, f"{path.name}: the mass of the others")
    check(abs(float(metadata["mass_left_out"]) - left_out.sum()) < 1e-6 * left_out.size, f"{path.name}: what it says is left out")
    masses.append(left_out)
check(len(masses) == 5 and abs(top_of["mass_left_out"] - np.mean(masses)) < 1e-6, f"{top_of}, not {np.mean(masses)}")
end()
