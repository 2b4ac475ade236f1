#!/usr/bin/env python3
"""Reads models that mohawk wrote with PyTorch and compares logits: Phi, Llama, Mistral, Qwen3 and Mamba-2 through transformers, Phi-Mamba,
Llama-Mamba and their hybrids through examples/phi_mamba.py. Needs torch, safetensors and, for the first two, transformers; says so and ends well without."""
import json
import os
import pathlib
import subprocess
import sys

from check import check, end, left_out, skip

BUILD = os.environ.get("BUILD", "build")

try:
    import torch
    from safetensors.torch import load_file
except ImportError as error:
    skip(f"no {error.name}")

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "examples"))
from phi_mamba import PhiMamba


def student(config, weights, tokens):
    """Logits by the module of examples/phi_mamba.py, in float64."""
    model = PhiMamba(config, {name: x.shape for name, x in weights.items()}).double()
    model.load_state_dict(weights)
    return model(tokens)


def transformers_model(folder):
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    config = json.loads((folder / "config.json").read_text())
    model, report = getattr(transformers, config["architectures"][0]).from_pretrained(folder, torch_dtype=torch.float32, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"], report
    return model.eval()


def main():
    folder = pathlib.Path(BUILD) / "interop"
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run([f"{BUILD}/write_models", str(folder)], check=True)
    for path in sorted(p for p in folder.iterdir() if (p / "logits.safetensors").exists()):
        config = json.loads((path / "config.json").read_text())
        expected = load_file(path / "logits.safetensors")
        tokens, want = expected["tokens"].long(), expected["logits"].double()
        try:
            with torch.no_grad():
                if "architectures" in config:
                    got = transformers_model(path)(tokens, use_cache=False).logits
                else:
                    weights = {k: v.double() for k, v in load_file(path / "model.safetensors").items()}
                    got = student(config, weights, tokens)[..., : want.shape[-1]]
        except ImportError as error:
            left_out(f"{path.name}: no {error.name}")
            continue
        off = ((got.double() - want).abs().max() / want.abs().max()).item()
        if check(off < 2e-5, f"{path.name:20s} logits within {off:.1e} of the largest  TOO FAR"):
            print(f"  {path.name:20s} logits within {off:.1e} of the largest")
    end()


main()
