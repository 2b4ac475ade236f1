#!/usr/bin/env python3
"""GGUF files that the package gguf writes, random small models of each architecture in every type, through `mohawk convert`: weights as that package
opens them, to the bit; settings, and the ids of texts, as transformers reads them from the folder that is written. Needs gguf, torch, transformers and
safetensors; says so and ends well without."""
import json
import os
import pathlib
import random
import shutil
import subprocess

from check import check, end, skip

BUILD = os.environ.get("BUILD", "build")

try:
    import gguf
    import numpy as np
    import torch
    import transformers
    from safetensors.torch import load_file
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
except ImportError as error:
    skip(f"no {error.name}")

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
T = gguf.GGMLQuantizationType
TYPES = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K"]
NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
         "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
         "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
TEXTS = ["Hello, world! It's 2024, and we've 12345 things.", "  two  spaces\n\n\tand lines\r\n", "naïve café, e\u0301 \u1e9b\u0323 中文 עברית 🙂", "<|im_start|>user\nhi<|im_end|>\n<tool>x</tool>",
         "def f(x):\n    return x ** 2  # 100%", "I'LL don't 'S ''"]


def tokenizer(pre, size):
    """A tokenizer as the models of this pre-tokenizer have it, trained on a few sentences."""
    k = Tokenizer(models.BPE(ignore_merges=pre == "llama-bpe"))
    words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    if pre == "smollm":
        k.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)])
    else:
        split = pre_tokenizers.Split(Regex(words % (r"\p{N}{1,3}" if pre == "llama-bpe" else r"\p{N}")), "isolated")
        k.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    if pre == "qwen2":
        k.normalizer = normalizers.NFC()
    k.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(vocab_size=size - 1, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    k.train_from_iterator([t for t in TEXTS for _ in range(3)], trainer)
    k.add_tokens(["<tool>"])
    return k


def write(path, arch, pre, kind, r):
    """A random model; returns what its tensors must become, its settings and its tokenizer."""
    g = np.random.default_rng(r.randrange(2**31))
    wide = kind.endswith("_K")
    heads, size = r.choice([(4, 64), (2, 128), (8, 32)] if wide else [(2, 16), (4, 24), (3, 32)])
    groups = r.choice([n for n in range(1, heads + 1) if heads % n == 0])
    hidden = 256 if wide else heads * size if arch != "qwen3" or r.random() < 0.5 else 64
    if hidden % 32:
        hidden, heads, size, groups = 64, 2, 32, 1
    mlp, layers = 256 * r.randint(1, 2) if wide else 32 * r.randint(1, 3), r.randint(1, 2)
    k = tokenizer(pre, 400)
    vocabulary, merges = k.get_vocab(), [" ".join(m) if isinstance(m, list) else m for m in json.loads(k.to_str())["model"]["merges"]]
    pad = r.randint(0, 3)
    n = max(vocabulary.values()) + 1 + pad
    tokens, types = [f"[PAD{i}]" for i in range(n)], [gguf.TokenType.UNUSED] * n
    added = {a.content: a.special for a in k.get_added_tokens_decoder().values()}
    for text, i in vocabulary.items():
        tokens[i] = text
        types[i] = gguf.TokenType.NORMAL if text not in added else gguf.TokenType.CONTROL if added[text] else gguf.TokenType.USER_DEFINED
    w = gguf.GGUFWriter(path, arch)
    start = r.random() < 0.5
    want = dict(hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=groups, intermediate_size=mlp, vocab_size=n,
                rms_norm_eps=r.choice([1e-5, 1e-6]), max_position_embeddings=r.choice([512, 131072]), bos_token_id=1, eos_token_id=2)
    theta = r.choice([10000.0, 1000000.0, 500000.0])
    w.add_block_count(layers), w.add_context_length(want["max_position_embeddings"]), w.add_embedding_length(hidden), w.add_feed_forward_length(mlp)
    w.add_head_count(heads), w.add_head_count_kv(groups), w.add_layer_norm_rms_eps(want["rms_norm_eps"]), w.add_rope_freq_base(theta)
    if heads * size != hidden or r.random() < 0.5:
        w.add_key_length(size), w.add_value_length(size), w.add_rope_dimension_count(size)
    if r.random() < 0.3:
        w.add_custom_alignment(64)
    factor = 1.0
    if r.random() < 0.4:
        factor = 4.0
        w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR), w.add_rope_scaling_factor(factor)
    w.add_tokenizer_model("gpt2"), w.add_tokenizer_pre(pre), w.add_token_list(tokens), w.add_token_types(types), w.add_token_merges(merges)
    w.add_bos_token_id(1), w.add_eos_token_id(2), w.add_pad_token_id(0), w.add_add_bos_token(start)
    made = {}

    def put(name, shape, turn=0):
        x = g.standard_normal(shape).astype(np.float32) * np.float32(0.1)
        t = T[kind] if len(shape) == 2 else T.F32
        try:
            data = gguf.quants.quantize(x, t)
        except NotImplementedError:  # the package opens these, but does not make them: any bytes with a sensible scale are blocks
            block, size_of = gguf.GGML_QUANT_SIZES[t]
            data = g.integers(0, 256, (shape[0], shape[1] // block, size_of), np.uint8)
            scale = (g.random((shape[0], shape[1] // block, 2)) * 0.01).astype(np.float16).view(np.uint8)
            if t == T.Q4_K:
                data[..., :4] = scale
            else:
                data[..., -2:] = scale[..., :2]
            data = data.reshape(shape[0], -1)
        w.add_tensor(name, data, raw_dtype=t)
        x = gguf.quants.dequantize(data, t).reshape(shape)
        if turn and arch == "llama":
            x = x.reshape(turn, size // 2, 2, -1).swapaxes(1, 2).reshape(shape)
        head, tail = name.rsplit(".", 1)
        block = head.split(".")
        made[(f"model.layers.{block[1]}." if block[0] == "blk" else "") + NAMES[block[-1]] + "." + tail] = x

    put("token_embd.weight", (n, hidden)), put("output_norm.weight", (hidden,))
    if r.random() < 0.5:
        put("output.weight", (n, hidden))
    for layer in range(layers):
        b = f"blk.{layer}."
        put(b + "attn_norm.weight", (hidden,)), put(b + "ffn_norm.weight", (hidden,))
        for name, rows, columns, turn in (("attn_q", heads * size, hidden, heads), ("attn_k", groups * size, hidden, groups), ("attn_v", groups * size, hidden, 0),
                                          ("attn_output", hidden, heads * size, 0), ("ffn_gate", mlp, hidden, 0), ("ffn_up", mlp, hidden, 0), ("ffn_down", hidden, mlp, 0)):
            put(b + name + ".weight", (rows, columns), turn)
            if arch == "qwen2" and name in ("attn_q", "attn_k", "attn_v"):
                put(b + name + ".bias", (rows,))
        if arch == "qwen3":
            put(b + "attn_q_norm.weight", (size,)), put(b + "attn_k_norm.weight", (size,))
    w.write_header_to_file(), w.write_kv_data_to_file(), w.write_tensors_to_file(), w.close()
    return made, dict(want, head_dim=size), (theta, factor), k, start


def read(folder, made, want, rope, k, start, what):
    weights = load_file(folder / "model.safetensors")
    check(set(weights) == set(made), f"{what}: tensors {sorted(set(weights) ^ set(made))}")
    for name, x in made.items():
        check(name in weights and np.array_equal(weights[name].float().numpy(), x), f"{what}: {name} differs")
    model, report = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    check(not report["missing_keys"] and not report["unexpected_keys"], f"{what}: {report}")
    c = model.config
    for key, value in want.items():
        if key != "head_dim" or getattr(c, "head_dim", None) is not None:
            check(getattr(c, key) == value, f"{what}: {key} {getattr(c, key)} is not {value}")
    p = c.rope_parameters
    check(p["rope_theta"] == rope[0] and p.get("factor", 1.0) == rope[1], f"{what}: rope {p}")
    check(c.tie_word_embeddings == ("lm_head.weight" not in made), f"{what}: tied {c.tie_word_embeddings}")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    data = b"".join(b"%d\n%s" % (len(b), b) for b in (text.encode() for text in TEXTS))
    ours = subprocess.run([f"{BUILD}/encode", folder], input=data, capture_output=True).stdout.decode().splitlines()
    for text, line in zip(TEXTS, ours + [""] * len(TEXTS)):
        ids = k.encode(text).ids
        check(theirs(text)["input_ids"] == [1] * start + ids, f"{what}: transformers: {text}")
        check(line.split() == [str(x) for x in ids + [len(ids) + (start and ids[0] != 1)]], f"{what}: {text}: {line} not {ids}")


def main():
    top = pathlib.Path(BUILD) / "gguf"
    shutil.rmtree(top, ignore_errors=True)
    top.mkdir(parents=True)
    for i, (arch, pre) in enumerate([("llama", "smollm"), ("llama", "llama-bpe"), ("qwen2", "qwen2"), ("qwen3", "qwen2")]):
        for j, kind in enumerate(TYPES):
            what, file = f"{arch}, {pre}, {kind}", top / f"{arch}_{pre}_{kind}.gguf"
            made = write(file, arch, pre, kind, random.Random(100 * i + j))
            folder = top / file.stem
            run = subprocess.run([f"{BUILD}/mohawk", "convert", "--model", file, "--out", folder, "--dtype", "f32", "--strict"], capture_output=True, text=True)
            if check(run.returncode == 0 and not run.stderr, f"{what}: {run.stderr}"):
                read(folder, *made, what)
    end()


main()
