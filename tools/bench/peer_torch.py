#!/usr/bin/env python3
"""PyTorch on the cases of `mohawk bench`.

usage: peer_torch.py [MODEL ...]: folders of Phi teachers, the first for all cases of one, the others for decoding.

Reads lines "CASE THREADS ROUNDS [MODE]" from standard input, MODE eager or compile, and answers each with one line of
JSON: the median time of ROUNDS rounds after one or two that do not count, or that there is no such case.
"""
import json
import math
import os
import re
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn
from torch._inductor import config as inductor

HERE = os.path.dirname(os.path.abspath(__file__))
COLD = 512 << 20  # bytes of weights read in turn: no cache holds them


# ---- layers


def turn(x, dim, first=0):
    """rotary embedding of the first dim features of each head; x (batch, heads, tokens from first on, features)"""
    half = dim // 2
    angle = torch.arange(first, first + x.shape[-2])[:, None] * 10000.0 ** (torch.arange(half) * (-1.0 / half))
    cos, sin = angle.cos(), angle.sin()
    a, b = x[..., :half], x[..., half:dim]
    return torch.cat((a * cos - b * sin, b * cos + a * sin, x[..., dim:]), -1)


def above(n):
    return torch.ones(n, n, dtype=torch.bool).triu(1)


def heads(x, n):
    return x.unflatten(-1, (n, -1)).transpose(1, 2)


def decays(s):
    """exp(s_i - s_j) for j <= i, else 0; s (..., tokens) are running sums"""
    return (s[..., :, None] - s[..., None, :]).masked_fill(above(s.shape[-1]), -math.inf).exp()


def state_space(x, log_a, b, c, chunk=64):
    """chunks as batched products, states carried from one to the next; all (batch, heads, tokens, features)"""
    n = x.shape[2] // chunk
    x, b, c = (z.unflatten(2, (n, chunk)) for z in (x, b, c))
    s = log_a.unflatten(2, (n, chunk)).cumsum(-1)
    y = ((c @ b.mT) * decays(s)) @ x
    made = (b * (s[..., -1:] - s).exp()[..., None]).mT @ x
    kept = s[..., -1].exp()[..., None, None]
    state, before = torch.zeros_like(made[:, :, 0]), []
    for i in range(n):
        before.append(state)
        state = kept[:, :, i] * state + made[:, :, i]
    return (y + (c * s.exp()[..., None]) @ torch.stack(before, 2)).flatten(2, 3)


class Attention(nn.Module):
    def __init__(self, width, n, rotary):
        super().__init__()
        self.n, self.rotary, self.keep, self.kept = n, rotary, False, None
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def project(self, u):
        q, k, v = (heads(z, self.n) for z in self.qkv(u).chunk(3, -1))
        return turn(q, self.rotary), turn(k, self.rotary), v

    def weights(self, q, k):
        return (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(above(q.shape[2]), -math.inf).softmax(-1)

    def matrix(self, u):
        q, k, _ = self.project(u)
        return self.weights(q, k)

    def forward(self, u):
        q, k, v = self.project(u)
        if self.keep:
            self.kept = self.weights(q, k)
            y = self.kept @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).flatten(2))


class StateSpace(nn.Module):
    def __init__(self, width, n, d_state, rotary=0):
        super().__init__()
        self.n, self.rotary = n, rotary
        self.split = [width, n * d_state, n * d_state]
        inner = sum(self.split)
        self.into, self.out = nn.Linear(width, inner + width + n, bias=False), nn.Linear(width, width, bias=False)
        self.conv = nn.Conv1d(inner, inner, 4, padding=3, groups=inner)
        self.bias, self.skip = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.ones(n))

    def project(self, u):
        xbc, z, a = self.into(u).split([sum(self.split), u.shape[-1], self.n], -1)
        xbc = self.conv(xbc.mT)[..., : u.shape[1]].mT
        x, b, c = (heads(t, self.n) for t in xbc.split(self.split, -1))
        if self.rotary:
            b, c = turn(b, self.rotary), turn(c, self.rotary)
        return x, -F.softplus(a).mT, b, c, z

    def step(self, u, window, state, position):
        """one token u (width): its output, the last inputs of the convolution, the state (heads, d_state, features)"""
        xbc, z, a = self.into(u).split([sum(self.split), len(u), self.n])
        window = torch.cat((window[:, 1:], xbc[:, None]), 1)
        xbc = (window * self.conv.weight[:, 0]).sum(1) + self.conv.bias
        x, b, c = (t.view(self.n, 1, -1) for t in xbc.split(self.split))
        if self.rotary:
            b, c = turn(b, self.rotary, position), turn(c, self.rotary, position)
        state = (-F.softplus(a)).exp()[:, None, None] * state + b.mT * x
        y = c @ state + self.skip[:, None, None] * x
        return self.out(y.flatten() * F.silu(z + self.bias)), window, state

    def mix(self, log_a, b, c):
        diagonal = torch.diag_embed(self.skip[:, None].expand(-1, b.shape[2]))
        return (c @ b.mT) * decays(log_a.cumsum(-1)) + diagonal

    def matrix(self, u):
        _, log_a, b, c, _ = self.project(u)
        return self.mix(log_a, b, c)

    def forward(self, u):
        x, log_a, b, c, z = self.project(u)
        if u.shape[1] <= 256:  # the quadratic form is the faster one there
            y = self.mix(log_a, b, c) @ x
        else:
            y = state_space(x, log_a, b, c) + self.skip[:, None, None] * x
        return self.out(y.transpose(1, 2).flatten(2) * F.silu(z + self.bias))


class Block(nn.Module):
    def __init__(self, mixer, width):
        super().__init__()
        self.norm, self.mixer = nn.LayerNorm(width), mixer
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        u = self.norm(x)
        y = self.mixer(u)
        return x + y + self.down(F.gelu(self.up(u), approximate="tanh")), y


class Model(nn.Module):
    def __init__(self, mixer, layers, width, vocabulary):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(mixer(), width) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary)

    def forward(self, tokens, head=True):
        """logits, the stream before each block and after the last, the mixers' outputs"""
        x, outputs = [self.embedding(tokens)], []
        for block in self.blocks:
            after, y = block(x[-1])
            x.append(after)
            outputs.append(y)
        return self.head(self.norm(x[-1])) if head else None, x, outputs


# ---- cases: each returns a function that does one round, and by what to divide its time


def no_grad(f):
    def run():
        with torch.no_grad():
            f()

    return run


def product(kind, m, n, k):
    x, y, w = torch.randn(m, k), torch.randn(m, n), torch.randn(n, k)
    if kind == "sgemm":
        return no_grad(lambda: F.linear(x, w)), 1
    return no_grad((lambda: y @ w) if kind == "sgemm_dx" else (lambda: y.T @ x)), 1


def batch(*_):
    a, b = torch.randn(64, 64, 64), torch.randn(64, 64, 64)
    return no_grad(lambda: torch.bmm(a, b)), 1


def gemv(kind, n, k):
    dtype = torch.float32 if kind == "f32" else torch.bfloat16
    copies = min(64, COLD // (n * k * dtype.itemsize))
    w, x = torch.randn(n, k).to(dtype).repeat(copies, 1, 1), torch.randn(1, k).to(dtype)
    each = list(w.unbind(0))
    return no_grad(lambda: [F.linear(x, one) for one in each]), copies


def rounds(f, inputs, parameters, out, back):
    if not back:
        return no_grad(lambda: f(*inputs)), 1

    def run():
        for p in parameters:
            p.grad = None
        f(*inputs).backward(out)

    return run, 1


def core(f, kind, way, tokens):
    back, shape = way == "backward", (1, 32, tokens, 64)
    n = 3 if kind == "attention" else 4
    inputs = [torch.randn(shape) for _ in range(n)]
    if kind == "ssd":
        inputs[1] = -F.softplus(torch.randn(shape[:3]))
    for x in inputs:
        x.requires_grad_(back)
    if kind == "attention":
        fast = f(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True))
    else:
        fast = f(state_space)
    return rounds(fast, inputs, inputs, torch.randn(shape), back)


def mixer(f, kind, way, tokens):
    m = Attention(2048, 32, 32) if kind == "attention" else StateSpace(2048, 32, 64)
    back = way == "backward"
    u = torch.randn(1, tokens, 2048, requires_grad=back)
    return rounds(f(m), [u], [u, *m.parameters()], torch.randn(1, tokens, 2048), back)


def prefill(f, tokens):
    """two of the 24 layers of Phi-Mamba 1.5B stand for all; the same is left out on both sides: embedding and head"""
    blocks = [f(Block(StateSpace(2048, 32, 64), 2048)) for _ in range(2)]
    u = torch.randn(1, tokens, 2048)

    def run():
        x = u
        for block in blocks:
            x = block(x)[0]

    return no_grad(run), 2 / 24


def step(f, kind, narrow):
    make = (lambda: Attention(256, 8, 16)) if kind == "phi" else (lambda: StateSpace(256, 8, 64))
    m = Model(make, 6, 256, 4096)
    tokens, labels = torch.randint(0, 4096, (2, 4, 512))
    loss = f(lambda: F.cross_entropy(m(tokens)[0].flatten(0, 1), labels.flatten()))
    cast = torch.autocast("cpu", torch.bfloat16, enabled=bool(narrow))
    best = torch.optim.AdamW(m.parameters(), lr=1e-4, fused=True)

    def run():
        best.zero_grad(set_to_none=True)
        with cast:
            value = loss()
        value.backward()
        best.step()

    return run, 1


def stage1(f, tokens):
    teacher, student = Attention(2048, 32, 32), StateSpace(2048, 32, 64)
    u = torch.randn(1, tokens, 2048)
    distance = f(lambda target: torch.linalg.matrix_norm(student.matrix(u) - target).mean())

    def run():
        student.zero_grad(set_to_none=True)
        with torch.no_grad():
            target = teacher.matrix(u)
        distance(target).backward()

    return run, 1


MODELS = sys.argv[1:] or [os.path.join(HERE, "../../examples/tiny")]


def folder(name):
    """of the first model, or of another one as mohawk bench names it"""
    short = lambda path: re.sub("[^A-Za-z0-9]", "_", os.path.basename(path.rstrip("/")))
    return MODELS[0] if not name else next(path for path in MODELS[1:] if short(path) == name)


def pair_of(width, layers, n, vocabulary, rotary):
    teacher = Model(lambda: Attention(width, n, rotary), layers, width, vocabulary).requires_grad_(False)
    student = Model(lambda: StateSpace(width, n, width // n, rotary), layers, width, vocabulary)
    return teacher, student, vocabulary


def pair(name=None):
    """a teacher and a student of a given teacher's shape, and its vocabulary"""
    with open(os.path.join(folder(name), "config.json")) as file:
        c = json.load(file)
    width, layers, n, vocabulary = (c[k] for k in ("hidden_size", "num_hidden_layers", "num_attention_heads",
                                                   "vocab_size"))
    rotary = int(width // n * c["partial_rotary_factor"])
    return pair_of(width, layers, n, vocabulary, rotary)


def decode_teacher(f, name):
    """128 tokens one by one by transformers' own model, with its cache; random weights"""
    from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache
    m = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder(name)), dtype=torch.float32).eval()
    tokens = torch.randint(0, m.config.vocab_size, (128, 1, 1))

    def decode():
        cache = DynamicCache(config=m.config)
        for token in tokens:
            m(token, past_key_values=cache, use_cache=True)

    return no_grad(decode), 1


def decode_steps(m, tokens):
    """logits of the last of tokens, fed one by one to a student; random weights"""
    mixers = [b.mixer for b in m.blocks]
    kept = [(torch.zeros(sum(x.split), 4), torch.zeros(x.n, x.split[1] // x.n, x.split[0] // x.n)) for x in mixers]
    for position, token in enumerate(tokens):
        x = m.embedding(token)
        for i, b in enumerate(m.blocks):
            u = b.norm(x)
            y, *kept[i] = b.mixer.step(u, *kept[i], position)
            x = x + y + b.down(F.gelu(b.up(u), approximate="tanh"))
        logits = m.head(m.norm(x))
    return logits


def decode_student(f, name):
    _, m, vocabulary = pair(name)
    tokens = torch.randint(0, vocabulary, (128,))
    return no_grad(lambda: decode_steps(m, tokens)), 1


def trainer(f, teacher, student, vocabulary):
    """a function that does one update of a stage"""
    tokens = torch.randint(0, vocabulary, (8, 256))

    def loss(stage, logits, stream, outputs):
        if stage == 3:
            mine, own, _ = student(tokens)
            far = sum((a - b).norm(dim=-1).mean() for a, b in zip(own[1:], stream[1:]))
            return -(logits.softmax(-1) * mine.log_softmax(-1)).sum(-1).mean() + 0.03 * far
        total = 0.0
        for s, t, x, y in zip(student.blocks, teacher.blocks, stream, outputs):
            u = s.norm(x).detach()
            if stage == 1:
                total = total + torch.linalg.matrix_norm(s.mixer.matrix(u) - y).mean()
            else:
                total = total + (s.mixer(u) - y).norm(dim=-1).mean()
        return total

    fast = f(loss)
    train = {1: [p for k, p in student.named_parameters() if re.search("mixer.(into|conv|skip)", k)],
             2: [p for k, p in student.named_parameters() if ".mixer." in k], 3: list(student.parameters())}
    optimizer = {k: torch.optim.AdamW(v, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
                 for k, v in train.items()}

    def update(stage):
        for p in student.parameters():
            p.requires_grad_(False)
        for p in train[stage]:
            p.requires_grad_(True)
        with torch.no_grad():
            for b in teacher.blocks:
                b.mixer.keep = stage == 1
            logits, stream, outputs = teacher(tokens, stage == 3)
            if stage == 1:
                outputs = [b.mixer.kept for b in teacher.blocks]
        optimizer[stage].zero_grad(set_to_none=True)
        fast(stage, logits, stream, outputs).backward()
        if stage == 3:
            nn.utils.clip_grad_norm_(train[3], 1.0)
        optimizer[stage].step()

    return update


def distill(f):
    """the updates of 0.5 + 1 + 1.5 M tokens of a small distillation, as long as one of each stage times their number"""
    update = trainer(f, *pair())

    def run():
        total = 0.0
        for stage, budget in ((1, 0.5e6), (2, 1e6), (3, 1.5e6)):
            started = time.perf_counter()
            update(stage)
            total += (time.perf_counter() - started) * math.floor(budget / 2048)
        return total

    return run, 1


def one_update(f, stage):
    update = trainer(f, *pair_of(256, 8, 8, 4096, 16))
    return lambda: update(stage), 1


CASES = [
    (r"(sgemm|sgemm_dx|sgemm_dw)_(\d+)_(\d+)_(\d+)", lambda f, *a: product(*a), ("eager",)),
    (r"batch_64_of_64_64_64", lambda f, *a: batch(), ("eager",)),
    (r"gemv_(f32|bf16)_(\d+)_(\d+)", lambda f, *a: gemv(*a), ("eager",)),
    (r"core_(attention|ssd)_(forward|backward)_(\d+)", core, ("eager", "compile")),
    (r"mixer_(attention|ssd)_(forward|backward)_(\d+)", mixer, ("eager", "compile")),
    (r"prefill_(\d+)(?:_int8)?", prefill, ("eager", "compile")),
    (r"step_(phi|phi_mamba)(_bf16)?", step, ("eager", "compile")),
    (r"stage1_layer_(\d+)", stage1, ("eager", "compile")),
    (r"stage(1|3)_update_small", one_update, ("eager", "compile")),
    (r"distill_tiny", distill, ("eager", "compile")),
    (r"model_decode_teacher(?:_(\w+))?", decode_teacher, ("eager",)),
    (r"model_decode_student(?:_int8)?(?:_(\w+))?", decode_student, ("eager",)),
]


def prepare(name, mode):
    torch._dynamo.reset()  # compiled once more for each thread count: there is a limit to how often
    for pattern, make, modes in CASES:
        found = re.fullmatch(pattern, name)
        if found and mode in modes:
            fast = (lambda f: torch.compile(f, dynamic=False)) if mode == "compile" else (lambda f: f)
            return make(fast, *(int(x) if x and x.isdigit() else x for x in found.groups()))
    return None


# ---- memory


def memory(field):
    with open("/proc/self/status") as file:
        return next((1024 * int(line.split()[1]) for line in file if line.startswith(field)), 0)


def forget_peak():
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pass


def check():
    """the chunked form against the recurrence, a student token by token against all at once"""
    x, b, c = torch.randn(3, 1, 2, 128, 8).unbind(0)
    log_a = -F.softplus(torch.randn(1, 2, 128))
    state, y = torch.zeros(1, 2, 8, 8), []
    for t in range(128):
        state = log_a[:, :, t].exp()[..., None, None] * state + b[:, :, t, :, None] * x[:, :, t, None]
        y.append((c[:, :, t, None] @ state)[:, :, 0])
    assert (torch.stack(y, 2) - state_space(x, log_a, b, c)).abs().max() < 1e-3, "the chunked form is wrong"
    with torch.no_grad():
        _, m, vocabulary = pair()
        tokens = torch.randint(0, vocabulary, (9,))
        assert (decode_steps(m, tokens) - m(tokens[None])[0][0, -1]).abs().max() < 1e-3, "token by token is wrong"


def set_threads(n):
    torch.set_num_threads(n)
    inductor.cpp.threads = n  # part of the key under which compiled code is kept on disk


def warm(made, mode):
    """a round or two that do not count, of a new case or at another number of threads"""
    for _ in range(2 if mode == "compile" else 1):
        made[0]()
    forget_peak()
    return made


def attempt(name, mode, f):
    try:
        return f()
    except Exception as error:  # a mode that does not work here is no peer
        print(f"peer_torch: {name} {mode}: {str(error).splitlines()[0][:200]}", file=sys.stderr)
        return None


def main():
    torch.manual_seed(1)
    check()
    ready, made, before = None, None, 0
    for line in sys.stdin:
        name, threads, count, mode = (line.split() + ["eager"])[:4]
        threads, count = int(threads), int(count)
        if ready != (name, threads, mode):
            set_threads(threads)
            if not ready or (ready[0], ready[2]) != (name, mode):
                made = run = None  # memory goes first
                made = attempt(name, mode, lambda: prepare(name, mode))
                before = memory("VmRSS")
            made = made and attempt(name, mode, lambda: warm(made, mode))
            ready = (name, threads, mode) if made else None
            if not made:
                print(json.dumps({"unsupported": name}), flush=True)
                continue
        run, divide = made
        times = []
        for _ in range(count):
            started = time.perf_counter()
            own = run()
            times.append(1e3 * (own if isinstance(own, float) else time.perf_counter() - started) / divide)
        print(json.dumps({"case": name, "threads": threads, "mode": mode, "ms": statistics.median(times),
                          "min_ms": min(times), "memory": memory("VmHWM") - before}), flush=True)


if __name__ == "__main__":
    main()
