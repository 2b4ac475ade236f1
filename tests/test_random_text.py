#!/usr/bin/env python3
"""Random strings through mhk_encode() and through Hugging Face's tokenizers: the same ids. The tokenizers are the bundled one, some that are made here,
and those in ../shared if they are there. Also holds the list of keys in test_tokenizer.c against the keys that the libraries write and read.
Arguments: a seed and how many strings, to try others. Needs tokenizers, and transformers for a part; says so and ends well without."""
import inspect
import itertools
import json
import os
import pathlib
import random
import re
import subprocess
import sys

from check import check, end, skip

BUILD = os.environ.get("BUILD", "build")
SHARED = pathlib.Path(os.environ.get("MOHAWK_SHARED", "../shared"))
SEED = int(sys.argv[1]) if len(sys.argv) > 1 else 1
STRINGS = int(sys.argv[2]) if len(sys.argv) > 2 else 4000

try:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
except ImportError as error:
    skip(f"no {error.name}")
if not pathlib.Path(f"{BUILD}/encode").exists():
    skip(f"no {BUILD}/encode")


# ---- tokenizers


def trained(normalizer=None, prefix=False, added=(), size=700, words=None, alphabet=True):
    """A byte-level BPE trained on what lies here. Without the alphabet, it has tokens for the bytes of that text only, as SmolLM2."""
    t = Tokenizer(models.BPE())
    t.normalizer = normalizer
    t.pre_tokenizer = words or pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    t.decoder = decoders.ByteLevel()
    text = [pathlib.Path(p).read_text(encoding="utf-8") for p in ("README.md", "examples/story.txt", "tests/test_random_text.py")]
    text += ["caf\u00e9 na\u00efve \u00fcber \u4f60\u597d\u4e16\u754c \ud55c\uad6d\uc5b4 \u0434\u0435\u043d\u044c 12345 2024 don't we'll they're    \n\n\t"] * 20
    text += ["".join(map(chr, range(32, 127)))]
    t.train_from_iterator(text, trainers.BpeTrainer(vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if alphabet else [], special_tokens=["<|endoftext|>"], show_progress=False))
    for token in added:
        t.add_tokens([token])
    return t


GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


def split(pattern):
    """The pattern as a Split, then ByteLevel for the bytes only."""
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def digits():
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])


def changed(t, **model):
    x = json.loads(t.to_str())
    x["model"].update(model)
    return Tokenizer.from_str(json.dumps(x))


def from_files(folder, vocabulary, merges, added):
    """What the two older layouts mean."""
    t = Tokenizer(models.BPE.from_file(str(folder / vocabulary), str(folder / merges)))
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = decoders.ByteLevel()
    t.add_special_tokens([AddedToken("<|endoftext|>", normalized=False)])
    if added and (folder / added).exists():
        by_id = sorted(json.loads((folder / added).read_text()).items(), key=lambda x: x[1])
        t.add_tokens([AddedToken(token, normalized=True) for token, _ in by_id if token != "<|endoftext|>"])
    return t


def tokenizers(folder):
    """(name, what mohawk reads, Hugging Face's) of all."""
    spaces = [AddedToken(" " * n, normalized=True) for n in range(24, 1, -1)]
    odd = [
        AddedToken("<m>", lstrip=True, normalized=False),
        AddedToken("<n>", rstrip=True, normalized=False),
        AddedToken("<both>", lstrip=True, rstrip=True, normalized=True),
        AddedToken("e\u0301e", normalized=True),
        AddedToken("o\u0308", normalized=False),
        AddedToken("rabbit", normalized=True),
        AddedToken("a b", normalized=True),
        AddedToken("x\ty", normalized=True),
        AddedToken("<m", normalized=False),
    ]
    nfc = normalizers.NFC()
    made = {
        "gpt2_like": trained(),
        "neox_like": trained(nfc, added=spaces),
        "neox_plain_cuts": trained(nfc, added=[AddedToken("<m>", lstrip=True, normalized=True)]),
        "odd_added": trained(added=odd),
        "odd_added_nfc": trained(nfc, added=odd + spaces[-3:]),
        "prefix": trained(prefix=True, added=odd[:3]),
        "prefix_nfc": trained(nfc, prefix=True, added=spaces[-2:]),
        "sequence": trained(normalizers.Sequence([nfc])),
    }
    special = [AddedToken(token, special=True, normalized=False) for token in ("<|begin_of_text|>", "<|im_start|>", "<|im_end|>")]
    made["written_out"] = trained(words=split(GPT2))
    made["qwen2_like"] = trained(nfc, words=split(QWEN2), added=special)
    made["qwen2_odd_added"] = trained(nfc, words=split(QWEN2), added=odd + spaces)
    made["llama3_like"] = changed(trained(words=split(LLAMA3), added=special), ignore_merges=True)
    made["smollm2_like"] = trained(words=digits(), added=special)
    made["digits_nfc"] = trained(nfc, words=digits(), added=odd + spaces)
    made["ignore_merges"] = changed(made["neox_like"], ignore_merges=True)
    made["one_word"] = trained(nfc)
    made["one_word"].pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for name, t in made.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        t.save(str(folder / name / "tokenizer.json"))
        yield name, folder / name, t
    for path in ["examples/tiny", *(SHARED / "models" / name for name in ("small", "tiny_llama", "tiny_qwen2", "tiny_qwen3"))]:
        path = pathlib.Path(path)
        if (path / "tokenizer.json").exists():
            yield path.name, path, Tokenizer.from_file(str(path / "tokenizer.json"))
    for name, *files in (("gpt2", "encoder.json", "vocab.bpe", None), ("phi", "vocab.json", "merges.txt", "added_tokens.json")):
        path = SHARED / "data/tokenizers" / name
        if (path / files[1]).exists():
            yield name, path, from_files(path, *files)


# ---- strings

PLANES = [(0x20, 0x7F), (0xA0, 0x300), (0x300, 0x370), (0x370, 0x600), (0x590, 0x780), (0x900, 0xE00), (0xF00, 0x1200), (0x1100, 0x1200), (0x1E00, 0x2000), (0x2000, 0x2070),
          (0x2100, 0x2400), (0x2600, 0x2800), (0x3000, 0x3200), (0x4E00, 0xA000), (0xAC00, 0xD7A4), (0xE000, 0xF900), (0xF900, 0xFB50), (0xFE00, 0xFFFF), (0x10000, 0x11400),
          (0x1D100, 0x1D800), (0x1F300, 0x1FB00), (0x20000, 0x20100), (0x2F800, 0x2FA20), (0xE0000, 0xE0200), (0x0, 0x20), (0x10FF00, 0x110000)]
PARTS = ["<|endoftext|>", "<m>", "<n>", "<both>", "<m", "<|endof", "e\u0301e", "o\u0308", "\u00f6", "rabbit", "a b", "x\ty", "'s", "'ll", "'re", "don't", "I'VE", "'", "'\u017f", "'Ll", "1234", "\u2167",
         "The ", " the", " and", "12", "\u0663", "\u00bd", "3.14", "...", "--", "\r\n", "\n", "\n\n", "\t", " ", "  ", "   ", "\u00a0", "\u3000", "\u2003", "\u0085", "\u200b",
         "\ufeff", "\u1112\u1161\u11ab", "\u212b", "\u0344", "\u0958", "caf\u00e9", "cafe\u0301", "\u4f60\u597d", "\U0001f600", "\U0001f468\u200d\U0001f469", "\0", "_", "\u0f81"]


def any_character(r):
    low, high = r.choice(PLANES) if r.random() < 0.9 else (0, 0x110000)
    c = r.randrange(low, high)
    # surrogates, and digits of Unicode 17, which Digits counts as numbers, but no pattern does
    return chr(c) if not (0xD800 <= c < 0xE000 or 0x11DE0 <= c < 0x11DEA or 0x16FF4 <= c < 0x16FF7) else "?"


def random_string(r, i):
    if i % 200 == 0: # a long run
        return r.choice(PARTS + ["a", "0", "\u4f60", "e\u0301"]) * r.randrange(300, 3000) + any_character(r)
    parts = []
    for _ in range(r.randrange(400 if i % 100 == 1 else 14)):
        kind = r.random()
        if kind < 0.45:
            parts.append(r.choice(PARTS))
        elif kind < 0.7:
            parts.append("".join(any_character(r) for _ in range(r.randrange(1, 4))))
        elif kind < 0.85:
            parts.append("".join(r.choice("etaoin shrdlu") for _ in range(r.randrange(1, 12))))
        else:
            parts.append(r.choice([" ", "\n", "\t", "\u0301", "\u0327", "x"]) * r.randrange(1, 30))
    return "".join(parts)


# ---- keys


def table():
    text = pathlib.Path("tests/test_tokenizer.c").read_text(encoding="utf-8")
    return set(re.findall(r'^    \{"([a-z_.]+)",\s', text, re.M))


def check_keys():
    have = table()
    t = json.loads(trained(normalizers.NFC(), added=[AddedToken("<m>")], size=300).to_str())
    keys = {k for k in t if k != "model"} | {f"model.{k}" for k in t["model"]} | {f"added_tokens.{k}" for k in t["added_tokens"][0]}
    check(keys <= have, f"keys of tokenizer.json that test_tokenizer.c says nothing about: {sorted(keys - have)}")
    try:
        import transformers
    except ImportError:
        return
    arguments = set()
    for kind in ("GPT2Tokenizer", "CodeGenTokenizer", "GPTNeoXTokenizer", "Qwen2Tokenizer"):
        arguments |= set(inspect.signature(getattr(transformers, kind).__init__).parameters)
    arguments -= {"self", "args", "kwargs", "vocab", "merges"}
    arguments |= set(transformers.PreTrainedTokenizerBase.SPECIAL_TOKENS_ATTRIBUTES)
    arguments |= set(re.findall(r"kwargs\.(?:pop|get)\(\"([a-z_]+)\"", inspect.getsource(transformers.PreTrainedTokenizerBase.__init__)))
    arguments -= {"name_or_path", "auto_map"}
    missing = sorted(a for a in arguments if f"config.{a}" not in have)
    check(not missing, f"keys of tokenizer_config.json that test_tokenizer.c says nothing about: {missing}")


def check_prompts(folder):
    """How many ids a prompt has with what goes before it: as transformers makes them, whose classes decide unless tokenizer.json does."""
    try:
        from transformers import AutoTokenizer, logging
    except ImportError:
        return
    logging.set_verbosity_error()
    template = processors.TemplateProcessing(single="<|endoftext|> $A", pair="<|endoftext|> $A $B", special_tokens=[("<|endoftext|>", 0)])
    level = processors.ByteLevel(trim_offsets=False)
    for kind, processor in (("GPT2Tokenizer", None), ("CodeGenTokenizer", None), ("GPTNeoXTokenizer", None), ("Qwen2Tokenizer", level), ("TokenizersBackend", template),
                            ("PreTrainedTokenizerFast", processors.Sequence([level, template])), # as Llama 3's
                            ("TokenizersBackend", processors.TemplateProcessing(single="$A", pair="$A $B", special_tokens=[]))):
        nfc = normalizers.NFC() if kind in ("GPTNeoXTokenizer", "Qwen2Tokenizer") else None
        t = trained(nfc, words=split(QWEN2) if kind == "Qwen2Tokenizer" else None)
        if processor:
            t.post_processor = processor
        path = folder / "prompts"
        path.mkdir(exist_ok=True)
        t.save(str(path / "tokenizer.json"))
        (path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind, "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}))
        want = AutoTokenizer.from_pretrained(path)("Once upon a time").input_ids
        done = subprocess.run([f"{BUILD}/encode", str(path)], input=b"16\nOnce upon a time", stdout=subprocess.PIPE, check=True)
        got = [int(x) for x in done.stdout.split()]
        check(got[-1] == len(want) and got[:-1] == want[len(want) - len(got) + 1:], f"a prompt of {kind} has {got[-1]} ids instead of {len(want)}")


def check_words(folder, strings):
    """The words of each pattern: mhk_tokenizer_word() cuts where the pre-tokenizer does. An exhaustive list of short strings comes before the random ones."""
    signs = ["a", "S", "t", "1", "\u0663", " ", "\n", "\r", "\t", "\u00a0", "!", "'", "\u017f", "\u0301", "\u4f60"]
    short = ["".join(x) for n in (1, 2, 3, 4) for x in itertools.product(signs, repeat=n)]
    strings = short + [s for s in strings if s]
    data = b"".join(b"%d\n%s" % (len(b), b) for b in (s.encode() for s in strings))
    for name, words in (("gpt2", split(GPT2)), ("qwen2", split(QWEN2)), ("llama3", split(LLAMA3)), ("digits", digits())):
        path = folder / f"words_{name}.json"
        trained(size=260, words=words).save(str(path))
        done = subprocess.run([f"{BUILD}/encode", "--words", str(path)], input=data, stdout=subprocess.PIPE, check=True)
        wrong = 0
        for s, line in zip(strings, done.stdout.decode().splitlines()):
            want = [len(piece) for piece, _ in words.pre_tokenize_str(s)] # a character for each byte
            if line.split() != [str(n) for n in want]:
                wrong += 1
                if wrong <= 3:
                    print(f"  words of {name}: {s[:60]!a}: {line} instead of {want}")
        check(wrong == 0, f"words of {name}: {wrong} of {len(strings)} strings are cut elsewhere")
        print(f"  words of {name:11s} {len(strings)} strings{'' if wrong == 0 else f', {wrong} WRONG'}")


def main():
    folder = pathlib.Path(BUILD) / "random_text"
    found = list(tokenizers(folder))
    r = random.Random(SEED)
    strings = [random_string(r, i) for i in range(STRINGS)]
    data = b"".join(b"%d\n%s" % (len(b), b) for b in (s.encode() for s in strings))
    done = subprocess.run([f"{BUILD}/encode", *(str(path) for _, path, _ in found)], input=data, stdout=subprocess.PIPE, check=True)
    lines = iter(done.stdout.decode().splitlines())
    wrong = {name: 0 for name, _, _ in found}
    encoded = [t.encode_batch(strings, add_special_tokens=False) for _, _, t in found]
    for i, s in enumerate(strings):
        for (name, _, _), want in zip(found, encoded):
            got = [int(x) for x in next(lines).split()][:-1]
            if got != want[i].ids:
                wrong[name] += 1
                if wrong[name] <= 3:
                    at = next((j for j, (a, b) in enumerate(zip(got, want[i].ids)) if a != b), min(len(got), len(want[i].ids)))
                    print(f"  {name}: {s[:60]!a}: id {at} is {got[at:at + 3]} instead of {want[i].ids[at:at + 3]}")
    for name, count in wrong.items():
        print(f"  {name:20s} {len(strings)} strings{'' if count == 0 else f', {count} WRONG'}")
        check(count == 0, f"{name}: {count} of {len(strings)} strings have other ids")
    check_words(folder, strings)
    check_keys()
    check_prompts(folder)
    end()


main()
