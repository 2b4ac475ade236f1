#!/usr/bin/env python3
"""phi_mamba.py: what mohawk writes, as a plain PyTorch module: load a student, train it on, save it, and mohawk runs it again.

     python examples/phi_mamba.py build/demo/student examples/story.txt trained [UPDATES]

Copy this file. Phi-Mamba, Llama-Mamba and their hybrids, with gates, windows, kept heads and rotary features. It needs torch and safetensors, for text
also tokenizers. All tokens of a sequence are computed at once, each mixer as its matrix, which takes time and memory with the square of the
length: fine for training on sequences of a few hundred tokens. To generate text, save the model and use mohawk."""
import json
import math
import pathlib
import shutil
import sys

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn


def rotate(x, features, c):
    """Half-split rotary embedding of the first features of x (B,T,H,P), scaled as the settings c say."""
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


def ages(T):
    """How many tokens each token (row) is behind each other one (column)."""
    return torch.arange(T)[:, None] - torch.arange(T)


class Attention(nn.Module):
    def __init__(self, c, width, llama, has):
        super().__init__()
        self.c = c
        self.heads = c["num_attention_heads"]
        self.groups = c.get("num_key_value_heads") or self.heads
        size = c.get("head_dim") or width // self.heads
        self.q_proj = nn.Linear(width, self.heads * size, has("self_attn.q_proj.bias"))
        self.k_proj = nn.Linear(width, self.groups * size, has("self_attn.k_proj.bias"))
        self.v_proj = nn.Linear(width, self.groups * size, has("self_attn.v_proj.bias"))
        self.out = "o_proj" if llama else "dense"
        setattr(self, self.out, nn.Linear(self.heads * size, width, has(f"self_attn.{self.out}.bias")))
        for name in "q", "k":  # norms of queries and keys: RMSNorm in a Qwen3, LayerNorm in a Phi
            if has(f"self_attn.{name}_norm.weight"):
                setattr(self, f"{name}_norm", nn.RMSNorm(size, c.get("rms_norm_eps", 1e-6)))
            if has(f"self_attn.{name}_layernorm.weight"):
                setattr(self, f"{name}_layernorm", nn.LayerNorm(size, c.get("layer_norm_eps", 1e-5)))

    def normed(self, x, name):
        for norm in f"{name}_norm", f"{name}_layernorm":
            x = getattr(self, norm)(x) if hasattr(self, norm) else x
        return x

    def forward(self, u):
        B, T, _ = u.shape
        q, k, v = (p(u).view(B, T, -1, self.q_proj.out_features // self.heads) for p in (self.q_proj, self.k_proj, self.v_proj))
        features = int(self.c.get("partial_rotary_factor", 1) * q.shape[-1])
        q, k = rotate(self.normed(q, "q"), features, self.c), rotate(self.normed(k, "k"), features, self.c)
        k, v = (x.repeat_interleave(self.heads // self.groups, 2) for x in (k, v))
        hidden = (ages(T) < 0) | (ages(T) >= (self.c.get("sliding_window") or T))
        scores = torch.einsum("bthp,bshp->bhts", q, k) / math.sqrt(q.shape[-1])
        y = torch.einsum("bhts,bshp->bthp", scores.masked_fill(hidden, -torch.inf).softmax(-1), v)
        return getattr(self, self.out)(y.reshape(B, T, -1))


class AttentionMixer(nn.Module):  # the files have one more level in these names
    def __init__(self, *args):
        super().__init__()
        self.self_attn = Attention(*args)

    def forward(self, u):
        return self.self_attn(u)


class DiscreteMamba2(nn.Module):
    """M[t,s] = (C_t . B_s) a_s+1 ... a_t. A head with a window of w tokens has softmax over the last w, and this matrix for older ones."""

    def __init__(self, c, width, has):
        super().__init__()
        self.c = c
        self.heads, self.groups, self.state = c["n_v_heads"], c["n_qk_heads"], c["d_state"]
        self.inner = round(c["expand"] * width)
        xbc = self.inner + 2 * self.groups * self.state
        self.in_proj = nn.Linear(width, xbc + self.inner + self.heads, has("in_proj.bias"))
        self.conv1d = nn.Conv1d(xbc, xbc, c["d_conv"], groups=xbc)
        self.z_bias = nn.Parameter(torch.zeros(self.inner))
        self.D = nn.Parameter(torch.ones(self.heads))
        self.out_proj = nn.Linear(self.inner, width, has("out_proj.bias"))
        if has("gates.weight"):
            self.gates = nn.Linear(width, 2 * self.heads, False)
        if has("window_scale"):
            self.window_scale = nn.Parameter(torch.ones(self.heads))
        if has("window_rest.weight"):
            self.window_rest = nn.Linear(width, self.heads)
        if has("state_gain"):
            self.state_gain = nn.Parameter(torch.ones(self.heads))
        self.kept = torch.tensor([h in c.get("attention_heads", []) for h in range(self.heads)])
        self.windows = list(c.get("windows") or [c.get("window", 0)] * self.heads)

    def forward(self, u):
        B, T, _ = u.shape
        H, G, N = self.heads, self.groups, self.state
        windows = [T if kept else w for kept, w in zip(self.kept, self.windows)]
        xbc, z, a_log = self.in_proj(u).split([self.inner + 2 * G * N, self.inner, H], -1)
        xbc = self.conv1d(F.pad(xbc.transpose(1, 2), (self.c["d_conv"] - 1, 0))).transpose(1, 2)
        if self.c["activation"] in ("silu", "swish"):
            xbc = F.silu(xbc)
        x, b, c = xbc.split([self.inner, G * N, G * N], -1)
        x = x.view(B, T, H, -1)
        b, c = (rotate(t.view(B, T, G, N), self.c.get("rotary_dim", 0), self.c).repeat_interleave(H // G, 2) for t in (b, c))
        gates = 2 * torch.sigmoid(self.gates(u)) if hasattr(self, "gates") else torch.ones(B, T, 2 * H).to(x)
        # the state: tokens enter it when they leave the window
        late = lambda t: torch.stack([F.pad(t[:, :, h], (0, 0, w, 0))[:, :T] for h, w in enumerate(windows)], 2)
        decay = F.logsigmoid(-a_log).cumsum(1).transpose(1, 2)  # the log of a_1 ... a_t, (B,H,T)
        M = (decay[..., None] - decay[:, :, None]).masked_fill(ages(T) < 0, -torch.inf).exp()
        M = M * torch.einsum("bthn,bshn->bhts", c * gates[..., :H, None], late(b * gates[..., H:, None]))
        y = torch.einsum("bhts,bshp->bthp", M, late(x))
        if hasattr(self, "state_gain"):
            y = y * torch.where(torch.tensor([w > 0 for w in windows]), self.state_gain, 1.0)[:, None]
        y = y * ~self.kept[:, None] + (~self.kept * self.D)[:, None] * x
        if any(windows):
            scale = torch.where(self.kept, N**-0.5, self.window_scale if hasattr(self, "window_scale") else torch.ones(H))
            hidden = torch.stack([(ages(T) < 0) | (ages(T) >= w) for w in windows])
            score = torch.einsum("bthn,bshn->bhts", c, b) * scale[:, None, None]
            rest = self.window_rest(u) if hasattr(self, "window_rest") else torch.full((B, T, H), -torch.inf).to(x)
            rest = torch.where(self.kept, -torch.inf, rest).transpose(1, 2)[..., None]  # one more term of the softmax's sum
            some = torch.tensor([w > 0 for w in windows])[:, None, None]  # a head without a window sees nothing here
            near = torch.cat([torch.where(some, score.masked_fill(hidden, -torch.inf), 0.0), rest], -1).softmax(-1)[..., :-1] * some
            y = y + torch.einsum("bhts,bshp->bthp", near, x)
        return self.out_proj(y.reshape(B, T, -1) * F.silu(z + self.z_bias))


class MLP(nn.Module):
    def __init__(self, width, inner, llama, has):
        super().__init__()
        self.names = ("gate_proj", "up_proj", "down_proj") if llama else ("fc1", "fc2")
        for name in self.names:
            sizes = (inner, width) if name in ("down_proj", "fc2") else (width, inner)
            setattr(self, name, nn.Linear(*sizes, has(name + ".bias")))

    def forward(self, u):
        if len(self.names) == 3:
            return self.down_proj(F.silu(self.gate_proj(u)) * self.up_proj(u))
        return self.fc2(F.gelu(self.fc1(u), approximate="tanh"))


class Block(nn.Module):
    """Phi: mixer and MLP side by side, after one norm. Llama: one after the other, each with its norm."""

    def __init__(self, block, width, inner, norm, llama, has):
        super().__init__()
        self.llama = llama
        self.input_layernorm = norm()
        inside = lambda part: lambda name: has(f"{part}.{name}")
        if block["CoreType"].endswith("_attention"):
            self.mixer = AttentionMixer(block["core_input"], width, llama, inside("mixer"))
        else:
            self.mixer = DiscreteMamba2(block["core_input"], width, inside("mixer"))
        if llama:
            self.post_attention_layernorm = norm()
        self.mlp = MLP(width, inner, llama, inside("mlp"))

    def forward(self, x):
        u = self.input_layernorm(x)
        y = x + self.mixer(u)
        return y + self.mlp(self.post_attention_layernorm(y) if self.llama else u)


class Backbone(nn.Module):
    def __init__(self, vocabulary, width, blocks, norm):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(blocks)
        self.final_layernorm = norm()


class PhiMamba(nn.Module):
    def __init__(self, config, shapes):
        """config: what config.json holds; shapes: of the tensors in model.safetensors, by name."""
        super().__init__()
        config = config.get("config", config)
        self.vocabulary = config["LanguageModel"]["input"]["vocab_size"]
        whole = config["MixerModel"]["input"]
        llama = config["Block1"]["BlockType"] == "modules.llama_block"
        rows, width = shapes["backbone.embedding.weight"]
        norm = lambda: nn.RMSNorm(width, whole["rms_norm_eps"]) if llama else nn.LayerNorm(width, 1e-5)
        layers = [config[key] for key in config if key.startswith("Block") for _ in range(config[key]["n_layers"])]
        blocks = []
        for i, block in enumerate(layers):
            at = f"backbone.layers.{i}."
            inner = shapes[at + ("mlp.up_proj.weight" if llama else "mlp.fc1.weight")][0]
            blocks.append(Block(block, width, inner, norm, llama, lambda name, at=at: at + name in shapes))
        self.backbone = Backbone(rows, width, blocks, norm)
        if "lm_head.weight" in shapes:  # otherwise the embedding is the head, too
            self.lm_head = nn.Linear(width, rows, "lm_head.bias" in shapes)

    def forward(self, tokens):
        """tokens (B,T) -> logits (B,T,V)"""
        x = self.backbone.embedding(tokens)
        for block in self.backbone.layers:
            x = block(x)
        x = self.backbone.final_layernorm(x)
        logits = self.lm_head(x) if hasattr(self, "lm_head") else F.linear(x, self.backbone.embedding.weight)
        return logits[..., : self.vocabulary]  # rows beyond are padding


def load(folder, dtype=torch.float32):
    folder = pathlib.Path(folder)
    weights = load_file(folder / "model.safetensors")
    model = PhiMamba(json.loads((folder / "config.json").read_text()), {name: x.shape for name, x in weights.items()}).to(dtype)
    model.load_state_dict(weights)  # every name of the file, and no other
    return model


def save(model, folder, like):
    """Writes a folder that mohawk reads; like: the folder that the model came from, for its configuration and tokenizer."""
    folder, like = pathlib.Path(folder), pathlib.Path(like)
    folder.mkdir(parents=True, exist_ok=True)
    for name in "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json":
        if (like / name).exists():
            shutil.copyfile(like / name, folder / name)
    save_file({name: x.contiguous() for name, x in model.state_dict().items()}, folder / "model.safetensors", {"format": "pt"})


def loss_of(model, tokens):
    """Mean cross-entropy of each next token, in nats."""
    return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1).float(), tokens[:, 1:].flatten())


def main(student, text, out, updates=20, batch=4, length=128, rate=1e-4):
    from tokenizers import Tokenizer

    updates = int(updates)
    torch.manual_seed(1)
    model = load(student)
    tokenizer = Tokenizer.from_file(str(pathlib.Path(student) / "tokenizer.json"))
    ids = torch.tensor(tokenizer.encode(pathlib.Path(text).read_text(encoding="utf-8")).ids)
    if len(ids) <= length:
        sys.exit(f"{text} has {len(ids)} tokens: more than {length} are needed")
    optimizer = torch.optim.AdamW(model.parameters(), rate, betas=(0.9, 0.95), weight_decay=0.1)
    for update in range(1, updates + 1):
        start = torch.randint(len(ids) - length, (batch,))
        loss = loss_of(model, torch.stack([ids[s : s + length + 1] for s in start]))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        print(f"update {update:3d} of {updates}  loss {loss.item():.4f}")
    save(model, out, student)
    print(f"saved {out}: mohawk generate --model {out} --prompt 'Once upon a time'")


if __name__ == "__main__":
    if len(sys.argv) not in (4, 5):
        sys.exit(__doc__)
    main(*sys.argv[1:])
