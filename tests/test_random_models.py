#!/usr/bin/env python3
"""Random small configurations of Phi, the Llama family and Mamba-2 with random weights, as transformers saves them and as mamba_ssm lays them out: this library's logits
must be transformers' within 1e-4 of the largest, and so, but for Mamba-2, the gradients of all parameters; what it saves must be the same model there. Also holds tests/keys.h against transformers' own classes.
RANDOM_MODELS: how many of each kind (30). Needs torch, safetensors and transformers; says so and ends well without."""
import json
import os
import pathlib
import random
import re
import shutil
import subprocess

from check import check, end, skip

BUILD = os.environ.get("BUILD", "build")
COUNT = int(os.environ.get("RANDOM_MODELS", "30"))

try:
    import torch
    import transformers
    from safetensors.torch import load_file, save_file
    from transformers import GenerationConfig, Mamba2Config, Mamba2ForCausalLM, PhiConfig, PhiForCausalLM
except ImportError as error:
    skip(f"no {error.name}")

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def phi(r):
    heads = r.choice([1, 2, 3, 4, 6])
    size = r.choice([2, 4, 6, 8, 12, 16])
    rotary = 2 * r.randint(0, size // 2) / size
    settings = dict(
        vocab_size=r.randint(3, 90), hidden_size=heads * size, intermediate_size=r.randint(1, 70), num_hidden_layers=r.randint(1, 3),
        num_attention_heads=heads, num_key_value_heads=r.choice([k for k in range(1, heads + 1) if heads % k == 0]), qk_layernorm=r.random() < 0.4,
        tie_word_embeddings=r.random() < 0.3, hidden_act=r.choice(["gelu_new", "gelu_pytorch_tanh", "gelu_fast"]), layer_norm_eps=r.choice([1e-5, 1e-3, 1e-6]),
        max_position_embeddings=r.choice([64, 2048]), attention_dropout=0.1, embd_pdrop=0.1, resid_pdrop=0.1)
    rope = dict(rope_theta=r.choice([10000.0, 500.0, 77.7]), partial_rotary_factor=rotary)
    settings |= rope if r.random() < 0.4 else {"rope_parameters": {"rope_type": "default", **rope}}
    if r.random() < 0.2 and not settings["qk_layernorm"]:  # the library's own q_layernorm fits no other head_dim
        settings["head_dim"] = 2 * size
    return PhiForCausalLM(PhiConfig(**settings))


def mamba2(r):
    groups = r.choice([1, 1, 2, 3])
    size, expand = r.choice([(4, 2), (8, 1), (8, 2), (6, 3), (2, 2), (16, 2)])
    heads = groups * r.choice([1, 2, 4])
    while heads * size % expand:
        heads += groups
    settings = dict(
        vocab_size=r.randint(3, 90), hidden_size=heads * size // expand, num_heads=heads, head_dim=size, expand=expand, n_groups=groups,
        num_hidden_layers=r.randint(1, 3), state_size=r.randint(1, 20), conv_kernel=r.randint(1, 5), chunk_size=r.choice([1, 4, 7, 16, 256]),
        use_bias=r.random() < 0.4, use_conv_bias=r.random() < 0.7, tie_word_embeddings=r.random() < 0.5, layer_norm_epsilon=r.choice([1e-5, 1e-3]),
        residual_in_fp32=r.random() < 0.5, rescale_prenorm_residual=r.random() < 0.5, hidden_act=r.choice(["silu", "silu", "swish"]))
    if r.random() < 0.4:
        settings["time_step_limit"] = r.choice([(0.0, 0.05), (0.01, 0.1), (0.02, float("inf"))])
    return Mamba2ForCausalLM(Mamba2Config(**settings))


def llama(r, name):
    """One of Llama, Mistral, Qwen2 and Qwen3, with what its configuration can ask for."""
    heads = r.choice([1, 2, 3, 4, 6])
    size = r.choice([2, 4, 6, 8, 12, 16])
    layers = r.randint(1, 3)
    settings = dict(
        vocab_size=r.randint(3, 90), hidden_size=heads * size, intermediate_size=r.randint(1, 70), num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=r.choice([k for k in range(1, heads + 1) if heads % k == 0]), tie_word_embeddings=r.random() < 0.5,
        hidden_act=r.choice(["silu", "silu", "swish"]), rms_norm_eps=r.choice([1e-6, 1e-5, 1e-3]), max_position_embeddings=r.choice([64, 2048]))
    if name != "Qwen2" and r.random() < 0.5:
        settings["head_dim"] = r.choice([2, 4, 10, 16])
    elif name == "Qwen3":
        settings["head_dim"] = size
    if name == "Llama":
        settings |= dict(attention_bias=r.random() < 0.5, mlp_bias=r.random() < 0.5)
    if name == "Qwen3":
        settings["attention_bias"] = r.random() < 0.5
    window = r.choice([None, 1, 3, 8, 100])
    if name == "Mistral":
        settings["sliding_window"] = window
    elif name != "Llama":
        settings |= dict(use_sliding_window=window is not None, sliding_window=window, max_window_layers=0 if r.random() < 0.7 else layers)
    rope = dict(rope_theta=r.choice([10000.0, 500.0, 77.7, 1000000.0]), rope_type=r.choice(["default", "linear", "llama3"]))
    if rope["rope_type"] != "default":
        rope["factor"] = r.choice([2.0, 8.0, 1.5])
    if rope["rope_type"] == "llama3":
        low = r.choice([1.0, 0.5])
        rope |= dict(low_freq_factor=low, high_freq_factor=low * r.choice([4.0, 2.0]), original_max_position_embeddings=r.choice([16, 64, 1000]))
    config = getattr(transformers, name + "Config")(rope_parameters=rope, **settings)
    config._attn_implementation = "eager"
    return getattr(transformers, name + "ForCausalLM")(config)


def randomise(model, r):
    """Weights of a size that keeps every part alive; norms, biases and decays away from their neutral values."""
    g = torch.Generator().manual_seed(r.randrange(2**31))
    for name, p in model.named_parameters():
        x = torch.randn(p.shape, generator=g)
        if name.endswith(("norm.weight", "norm_f.weight", "layernorm.weight")):
            p.data = 1 + 0.3 * x
        elif name.endswith("A_log"):
            p.data = 0.7 * x
        elif p.ndim == 2:
            p.data = x * (1.0 if "embed" in name else p.shape[1] ** -0.5)
        else:
            p.data = 0.5 * x
    model.tie_weights()
    return model.eval()


def state_spaces(model, folder):
    """The same Mamba-2 as mamba_ssm has it: its configuration and names, in PyTorch's own file."""
    c = model.config
    shutil.rmtree(folder)
    folder.mkdir(parents=True)
    limit = [float(x) for x in c.time_step_limit]
    ssm = dict(layer="Mamba2", d_state=c.state_size, headdim=c.head_dim, ngroups=c.n_groups, expand=c.expand, d_conv=c.conv_kernel, bias=c.use_bias,
               conv_bias=c.use_conv_bias, chunk_size=c.chunk_size, dt_limit=limit)
    config = dict(d_model=c.hidden_size, d_intermediate=0, n_layer=c.num_hidden_layers, vocab_size=c.vocab_size, ssm_cfg=ssm, attn_layer_idx=[], attn_cfg={},
                  rms_norm=True, residual_in_fp32=True, fused_add_norm=True, pad_vocab_size_multiple=1, tie_embeddings=c.tie_word_embeddings)
    (folder / "config.json").write_text(json.dumps(config))
    weights = {k.replace("embeddings.weight", "embedding.weight"): v.clone() for k, v in model.state_dict().items()}
    torch.save(weights, folder / "pytorch_model.bin")


def logits(model, tokens):
    with torch.no_grad():
        return model(tokens, use_cache=False).logits.double()


def gradients(model, tokens):
    """Of the loss of next tokens, with respect to all parameters."""
    model.zero_grad()
    x = model(tokens, use_cache=False).logits[:, :-1]
    torch.nn.functional.cross_entropy(x.reshape(-1, x.shape[-1]), tokens[:, 1:].reshape(-1)).backward()
    return {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}


def distance(got, want):
    return ((got - want).abs().max() / want.abs().max()).item()


def random_models(top):
    cases = []
    family = [(name.lower(), lambda r, name=name: llama(r, name)) for name in ("Llama", "Mistral", "Qwen2", "Qwen3")]
    for seed, (kind, make) in enumerate([("mamba2", mamba2), ("phi", phi), *family]):
        for i in range(COUNT):
            r = random.Random(1000 * seed + i)
            folder = top / f"{kind}_{i}"
            model = randomise(make(r), r)
            tokens = torch.randint(model.config.vocab_size, (2, r.randint(1, 40)), generator=torch.Generator().manual_seed(i), dtype=torch.int32)
            model.save_pretrained(folder)
            if kind == "mamba2" and i % 4 == 3 and model.config.layer_norm_epsilon == 1e-5:
                state_spaces(model, folder)
            save_file({"tokens": tokens}, folder / "tokens.safetensors")
            # transformers' own Mamba-2 sums in float32, which is not close enough to compare with
            slopes = gradients(model, tokens.long()) if kind != "mamba2" and tokens.shape[1] > 1 else {}
            cases.append((folder, type(model), tokens.long(), logits(model, tokens.long()), slopes, model.config.to_json_string(use_diff=True)))
    subprocess.run([f"{BUILD}/write_models", "--read", *(str(c[0]) for c in cases)], check=True)
    worst = steepest = compared = 0
    for folder, kind, tokens, want, slopes, config in cases:
        try:
            there = distance(load_file(folder / "mohawk.safetensors")["logits"].double(), want)
            back = distance(logits(kind.from_pretrained(folder / "again", dtype=torch.float32).eval(), tokens), want)
        except Exception as error:
            check(False, f"{folder}: {error}\n{config}")
            continue
        worst = max(worst, there, back)
        check(there < 1e-4, f"{folder}: logits are off by {there:.1e} of the largest\n{config}")
        check(back < 1e-4, f"{folder}: what is saved is off by {back:.1e} of the largest\n{config}")
        if not slopes:
            continue
        ours = load_file(folder / "gradients.safetensors")
        if not check(set(ours) == set(slopes), f"{folder}: gradients of {sorted(set(ours) ^ set(slopes))}\n{config}"):
            continue
        largest = max(g.abs().max() for g in slopes.values())
        off = max(((ours[name].double() - g).abs().max() / largest).item() for name, g in slopes.items())
        steepest, compared = max(steepest, off), compared + 1
        check(off < 1e-4, f"{folder}: gradients are off by {off:.1e} of the largest\n{config}")
    print(f"  {len(cases)} models, logits within {worst:.1e} of the largest; {compared} with gradients, within {steepest:.1e}")


def table():
    text = (pathlib.Path(__file__).parent / "keys.h").read_text()
    for where, key, value, does in re.findall(r'^KEY\((\w+),\s*"(\w+)",\s*"((?:[^"\\]|\\.)*)",\s*(\w+)\)', text, re.M):
        yield where, key, json.loads(value.replace('\\"', '"')), does


def keys():
    """Every setting of the classes is in the table, and what the table calls quiet does not change their logits."""
    rows = list(table())
    for where, example in (("phi", PhiConfig()), ("mamba2", Mamba2Config()), ("generation", GenerationConfig())):
        there = set(example.to_dict()) | {k for k in vars(example) if not k.startswith("_")} - {"ignore_keys_at_rope_validation"}
        missing = there - {k for w, k, _, _ in rows if w == where}
        check(not missing, f"tests/keys.h says nothing of {where}: {', '.join(sorted(missing))}")
    small = dict(phi=dict(vocab_size=32, hidden_size=24, intermediate_size=96, num_hidden_layers=2, num_attention_heads=3),
                 mamba2=dict(vocab_size=32, hidden_size=24, num_hidden_layers=2, num_heads=6, head_dim=8, state_size=5, n_groups=1))
    tokens = torch.arange(20)[None] % 32
    for where, config, make in (("phi", PhiConfig, PhiForCausalLM), ("mamba2", Mamba2Config, Mamba2ForCausalLM)):
        usual = randomise(make(config(**small[where])), random.Random(1))
        want = logits(usual, tokens)
        for w, key, value, does in rows:
            if w != where or does not in ("quiet", "warned", "ends") or key in ("return_dict", "torch_dtype", "auto_map"):
                continue
            other = make(config(**small[where], **{key: value}))
            other.load_state_dict(usual.state_dict())
            check(torch.equal(logits(other.eval().float(), tokens), want), f"{where}: {key} {value} changes what transformers computes")


def main():
    top = pathlib.Path(BUILD) / "random_models"
    shutil.rmtree(top, ignore_errors=True)
    keys()
    random_models(top)
    end()


main()
