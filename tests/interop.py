#!/usr/bin/env python3
"""Reads models that mohawk wrote with PyTorch and compares logits: Phi, Llama, Mistral, Qwen3 and Mamba-2 through transformers, Phi-Mamba,
Llama-Mamba and their hybrids through the plain model below. Needs torch, safetensors and, for the first two, transformers; says so and ends well without."""
import json
import math
import os
import pathlib
import subprocess

from check import check, end, left_out, skip

BUILD = os.environ.get("BUILD", "build")

try:
    import torch
    from safetensors.torch import load_file
except ImportError as error:
    skip(f"no {error.name}")

F = torch.nn.functional


def rotate(x, features, c):
    """Half-split rotary embedding of the first features of x (B,T,H,P), scaled as c says."""
    if not features:
        return x
    half = features // 2
    step = c.get("rope_theta", 10000.0) ** (-torch.arange(half).double() * 2 / features)
    scaling = c.get("rope_scaling") or {}
    if scaling.get("rope_type") == "linear":
        step = step / scaling["factor"]
    elif scaling.get("rope_type") == "llama3":
        turns = scaling["original_max_position_embeddings"] * step / (2 * math.pi)
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        fast = ((turns - low) / (high - low)).clamp(0, 1)
        step = (1 - fast) * step / scaling["factor"] + fast * step
    angle = torch.arange(x.shape[1]).double()[:, None] * step
    cos, sin = angle.cos().to(x)[:, None], angle.sin().to(x)[:, None]
    a, b, rest = x[..., :half], x[..., half:features], x[..., features:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)


def student(config, w, tokens):
    """Logits of a Phi-Mamba (a parallel block with one LayerNorm), a Llama-Mamba (a sequential block with RMSNorm and a gated MLP) or a
    hybrid of attention and one of them: the mixer is a recurrence over tokens and what its heads see exactly."""
    whole = config["MixerModel"]["input"]
    llama = config["Block1"]["BlockType"] == "modules.llama_block"

    def norm(x, name):
        weight = w[name + ".weight"]
        if llama:
            return F.rms_norm(x, weight.shape, weight, whole["rms_norm_eps"])
        return F.layer_norm(x, weight.shape, weight, w[name + ".bias"], 1e-5)

    linear = lambda x, name: F.linear(x, w[name + ".weight"], w.get(name + ".bias"))
    blocks = [b for key in config if key.startswith("Block") for b in [config[key]] * config[key]["n_layers"]]
    x = w["backbone.embedding.weight"][tokens]
    B, T, D = x.shape
    for i, block in enumerate(blocks):
        p = f"backbone.layers.{i}."
        c = block["core_input"]
        u = norm(x, p + "input_layernorm")
        if block["CoreType"].endswith("_attention"):
            a = p + "mixer.self_attn."
            H = c["num_attention_heads"]
            G = c.get("num_key_value_heads", H)
            q, k, v = (linear(u, a + n + "_proj").view(B, T, H if n == "q" else G, -1) for n in "qkv")
            P = q.shape[-1]
            if c.get("qk_norm"):
                q, k = norm(q, a + "q_norm"), norm(k, a + "k_norm")
            R = int(c.get("partial_rotary_factor", 1) * P)
            q, k = rotate(q, R, c), rotate(k, R, c)
            k, v = k.repeat_interleave(H // G, 2), v.repeat_interleave(H // G, 2)
            back = torch.arange(T)[:, None] - torch.arange(T)
            s = torch.einsum("bthp,bshp->bhts", q, k) / math.sqrt(P)
            s = s.masked_fill((back < 0) | (back >= (c.get("sliding_window") or T)), -torch.inf).softmax(-1)
            y = linear(torch.einsum("bhts,bshp->bthp", s, v).reshape(B, T, -1), a + ("o_proj" if llama else "dense"))
        else:
            m = p + "mixer."
            H, G, N = c["n_v_heads"], c["n_qk_heads"], c["d_state"]
            E = round(c["expand"] * D)
            xbc, z, a_log = F.linear(u, w[m + "in_proj.weight"], w.get(m + "in_proj.bias")).split([E + 2 * G * N, E, H], -1)
            xbc = F.conv1d(F.pad(xbc.transpose(1, 2), (c["d_conv"] - 1, 0)), w[m + "conv1d.weight"], w[m + "conv1d.bias"], groups=xbc.shape[-1]).transpose(1, 2)
            if c["activation"] in ("silu", "swish"):
                xbc = F.silu(xbc)
            v, b, cc = xbc.split([E, G * N, G * N], -1)
            v, b, cc = v.view(B, T, H, -1), b.view(B, T, G, N), cc.view(B, T, G, N)
            R = c.get("rotary_dim", 0)
            b, cc = (rotate(t, R, c).repeat_interleave(H // G, 2) for t in (b, cc))
            windows = list(c.get("windows") or [c.get("window", 0)] * H)
            for h in c.get("attention_heads", []):
                windows[h] = T
            kept = torch.tensor([h in c.get("attention_heads", []) for h in range(H)])
            gates = 2 * torch.sigmoid(F.linear(u, w[m + "gates.weight"])) if c.get("gates") else torch.ones(B, T, 2 * H).to(x)
            gain = torch.where(torch.tensor([0 < n for n in windows]), w.get(m + "state_gain", torch.ones(H)), 1.0).to(x)
            late = lambda t: torch.stack([F.pad(t[:, :, h], (0, 0, n, 0))[:, :T] for h, n in enumerate(windows)], 2)
            v_late, b_late = late(v), late(b * gates[..., H:, None])
            decay = torch.sigmoid(-a_log)
            state = torch.zeros(B, H, v.shape[-1], N, dtype=x.dtype)
            steps = []
            for t in range(T):
                state = decay[:, t, :, None, None] * state + v_late[:, t, :, :, None] * b_late[:, t, :, None, :]
                steps.append(torch.einsum("bhpn,bhn->bhp", state, cc[:, t] * gates[:, t, :H, None]))
            y = torch.stack(steps, 1) * torch.where(kept, 0.0, gain)[:, None] + (~kept * w[m + "D"])[:, None] * v
            if any(windows):
                scale = torch.where(kept, N**-0.5, w.get(m + "window_scale", torch.ones(H)))
                back = torch.arange(T)[:, None] - torch.arange(T)
                hidden = torch.stack([(back < 0) | (back >= n) for n in windows])
                score = (torch.einsum("bthn,bshn->bhts", cc, b) * scale[:, None, None]).masked_fill(hidden, -torch.inf)
                rest = torch.full((B, T, H), -torch.inf).to(x)
                if m + "window_rest.weight" in w:
                    rest = F.linear(u, w[m + "window_rest.weight"], w[m + "window_rest.bias"])
                rest = torch.where(kept, -torch.inf, rest).transpose(1, 2)[..., None]
                near = torch.cat([score, rest], -1).softmax(-1)[..., :-1]
                y = y + torch.einsum("bhts,bshp->bthp", near.nan_to_num(0), v)  # a head without a window sees nothing here
            y = y.reshape(B, T, E)
            y = F.linear(y * F.silu(z + w[m + "z_bias"]), w[m + "out_proj.weight"], w.get(m + "out_proj.bias"))
        x = x + y
        if llama:
            u = norm(x, p + "post_attention_layernorm")
            x = x + linear(F.silu(linear(u, p + "mlp.gate_proj")) * linear(u, p + "mlp.up_proj"), p + "mlp.down_proj")
        else:
            x = x + linear(F.gelu(linear(u, p + "mlp.fc1"), approximate="tanh"), p + "mlp.fc2")
    head = w["backbone.embedding.weight"] if config["LanguageModel"]["input"].get("tie_embeddings") else w["lm_head.weight"]
    return F.linear(norm(x, "backbone.final_layernorm"), head, w.get("lm_head.bias"))


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
                    got = student(config.get("config", config), weights, tokens)[..., : want.shape[-1]]
        except ImportError as error:
            left_out(f"{path.name}: no {error.name}")
            continue
        off = ((got.double() - want).abs().max() / want.abs().max()).item()
        if check(off < 2e-5, f"{path.name:20s} logits within {off:.1e} of the largest  TOO FAR"):
            print(f"  {path.name:20s} logits within {off:.1e} of the largest")
    end()


main()
