#!/usr/bin/env python3
"""What `mohawk tokenizer` and `mohawk train` write, against Hugging Face's libraries: the same merges and vocabulary as BpeTrainer, the same ids and text from
the file that they read, the logits of PhiForCausalLM. Texts: parts of ../shared/data/text if it is there, else what lies here. Needs tokenizers, and
torch, safetensors and transformers for a part; says so and ends well without."""
import json
import os
import pathlib
import random
import subprocess

from check import check, end, left_out, skip

BUILD = os.environ.get("BUILD", "build")
SHARED = pathlib.Path(os.environ.get("MOHAWK_SHARED", "../shared"))
WORK = pathlib.Path(BUILD) / "test" / "train_py"
MOHAWK = f"{BUILD}/mohawk"

try:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
except ImportError as error:
    skip(f"no {error.name}")


def texts():
    """Texts by name; what is no book has odd characters and words in it."""
    found = sorted(SHARED.glob("data/text/*.txt"))
    if not found:
        left_out(f"no texts in {SHARED}/data/text: those here alone")
        found = [pathlib.Path(p) for p in ("README.md", "examples/story.txt")]
    out = {p.name: p.read_bytes()[:400000].decode(errors="ignore") for p in found}
    draw = random.Random(1)
    parts = ["<|endoftext|>", "aaaa", "abab", "don't", " 's", "''ll", "\n\n", "  ", "\t", "\u00e9t\u00e9", "\u4f60\u597d", "\U0001f600", "\u0000", "12345", "\u00a0", "\u2003x", '"\\']
    out["odd"] = "".join(draw.choice(parts) for _ in range(20000))
    return out


def trained_by_hugging_face(text, size):
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, min_frequency=2, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<|endoftext|>"], show_progress=False
    )
    t.train_from_iterator(text.split("<|endoftext|>"), trainer)
    return t


def merges_of(t):
    return [tuple(m if isinstance(m, list) else m.split(" ")) for m in json.loads(t.to_str())["model"]["merges"]]


def ids_of(path, strings):
    """of mohawk, in the format of tests/encode.c"""
    data = b"".join(b"%d\n%s" % (len(b), b) for b in (s.encode() for s in strings))
    done = subprocess.run([f"{BUILD}/encode", str(path)], input=data, stdout=subprocess.PIPE, check=True)
    return [[int(x) for x in line.split()[:-1]] for line in done.stdout.decode().splitlines()]


def compare(name, text, size):
    source, path = WORK / "text.txt", WORK / f"{name}.json"
    source.write_bytes(text.encode())
    done = subprocess.run([MOHAWK, "tokenizer", "--text", str(source), "--vocab-size", str(size), "--out", str(path)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    if name == "odd":  # one character in 20 is a zero: no text for the corpus, so without them
        check(done.returncode == 1, "text with zeros was not refused")
        return compare("odd without zeros", text.replace("\0", ""), size)
    if not check(done.returncode == 0, f"{name}: {done.stderr.decode()}"):
        return
    ours, theirs = Tokenizer.from_file(str(path)), trained_by_hugging_face(text, size)
    a, b = merges_of(ours), merges_of(theirs)
    first = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    check(a == b, f"{name}: {len(a)} merges, {len(b)} by BpeTrainer, the first {first} the same")
    check(ours.get_vocab() == theirs.get_vocab(), f"{name}: another vocabulary")
    pieces = [text[i : i + 5000] for i in range(0, min(len(text), 200000), 5000)]
    encoded = ours.encode_batch(pieces)
    got = ids_of(path, pieces)
    check(got == [e.ids for e in encoded], f"{name}: other ids")
    check([ours.decode(ids, skip_special_tokens=False) for ids in got] == pieces, f"{name}: decoded to another text")


def teacher():
    """A Phi that mohawk trained, in transformers; its answers for test_sessions, which holds mohawk's forward pass and decoding against them."""
    try:
        import torch
        import transformers
        from safetensors.torch import save_file
    except ImportError as error:
        return left_out(f"no {error.name}")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    train = [MOHAWK, "train", "--text", "examples/story.txt", "--d-model", "48", "--layers", "2", "--heads", "3", "--vocab-size", "320", "--length", "32"]
    train += ["--tokens", "20k", "--lr", "5e-3", "--eval-windows", "8", "--fresh", "--out", str(WORK / "run")]
    subprocess.run(train, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    folder = WORK / "run" / "model"
    model, report = transformers.PhiForCausalLM.from_pretrained(folder, torch_dtype=torch.float32, output_loading_info=True)
    check(not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"], f"PhiForCausalLM: {report}")
    fast = transformers.AutoTokenizer.from_pretrained(folder)
    text = pathlib.Path("examples/story.txt").read_text()
    ids = fast(text, add_special_tokens=False)["input_ids"]
    check(ids == ids_of(folder, [text])[0], "AutoTokenizer gives other ids")
    tokens = torch.tensor([[0] + ids[i : i + 47] for i in range(0, 4 * 47, 47)])
    with torch.no_grad():
        logits = model.eval()(tokens, use_cache=False).logits
    nll = torch.nn.functional.cross_entropy(logits[:, :-1].double().transpose(1, 2), tokens[:, 1:], reduction="none")
    check(nll.mean() < 5, f"it did not learn: {nll.mean():.3f}")  # log 320 is 5.8
    save_file(
        {"tokens": tokens.int(), "logits": logits[:2, -24:].contiguous(), "nll": nll.float(), "one_token_logits": model(tokens[:1, :1]).logits[0, 0].detach()},
        folder / "expected.safetensors",
    )
    if not pathlib.Path(f"{BUILD}/test_sessions").exists():
        return left_out(f"no {BUILD}/test_sessions")
    done = subprocess.run([f"{BUILD}/test_sessions", "--dir", str(WORK / "run")], stdout=subprocess.PIPE)
    said = done.stdout.decode()
    check(done.returncode == 0 and "expected.safetensors   logits within" in said, said)


def main():
    WORK.mkdir(parents=True, exist_ok=True)
    for name, text in texts().items():
        compare(name, text, 1000)
    teacher()
    end()


main()
