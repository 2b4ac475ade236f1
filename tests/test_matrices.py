#!/usr/bin/env python3
"""mohawk matrices against numpy: Toeplitz, low rank and causal low rank of real attention matrices within 1e-6, the lower bound above the best single block
and below the fits, and random matrices that are SSD of a known order. Needs numpy and safetensors; says so and ends well without."""
import json
import os
import pathlib
import subprocess
import xml.dom.minidom

from check import check, end, skip

BUILD = os.environ.get("BUILD", "build")
ORDERS = [1, 2, 4, 8, 16]

try:
    import numpy as np
    from safetensors.numpy import load_file, save_file
except ImportError as error:
    skip(f"no {error.name}")

folder = pathlib.Path(BUILD) / "test" / "matrices.py"


def matrices(*arguments):
    command = [f"{BUILD}/mohawk", "matrices", *map(str, arguments), "--json", "--orders", ",".join(map(str, ORDERS))]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def closed_forms(M):
    """families by name, a distance for every order"""
    T, size = len(M), np.linalg.norm(M)
    X = sum(np.diag(np.full(T - k, np.diagonal(M, -k).mean()), -k) for k in range(T))
    U, S, V = np.linalg.svd(M)
    low = [(U[:, :r] * S[:r]) @ V[:r] for r in ORDERS]
    blocks = [np.linalg.svd(M[i:, : i + 1], compute_uv=False) for i in range(T)]
    return {
        "toeplitz": [np.linalg.norm(X - M) / size] * len(ORDERS),
        "low_rank": [np.linalg.norm(L - M) / size for L in low],
        "causal_low_rank": [np.linalg.norm(np.tril(L) - M) / size for L in low],
        "block": [max(np.linalg.norm(s[r:]) for s in blocks) / size for r in ORDERS],
    }


def check_fits(what, got, sum_of):
    bound, semi, ssd = (got[k]["mean"] for k in ("bound", "semiseparable", "ssd"))
    for i, r in enumerate(ORDERS):
        check(sum_of["block"][i] - 1e-7 <= bound[i], f"{what}, order {r}: the bound {bound[i]} is below that of one block")
        check(bound[i] <= semi[i] + 1e-6 and semi[i] <= ssd[i] + 1e-6, f"{what}, order {r}: bound {bound[i]}, semi-separable {semi[i]}, SSD {ssd[i]}")
        check(i == 0 or ssd[i] <= ssd[i - 1] + 1e-6, f"{what}, order {r}: SSD is worse than at the order before")
        check(r >= 16 or ssd[i] < sum_of["causal_low_rank"][i], f"{what}, order {r}: SSD is worse than causal low rank")


def real():
    """heads of the bundled model, matrices of 24 tokens"""
    saved, svg = folder / "saved.safetensors", folder / "picture.svg"
    told = matrices("examples/tiny", "--heads", "0.1,1.3,2.3", "--length", 24, "--windows", 2, "--save", saved, "--svg", svg)
    xml.dom.minidom.parse(str(svg))
    tensors = load_file(saved)
    layers = sorted(tensors)
    check(layers == ["layers.000", "layers.001", "layers.002"] and tensors[layers[0]].shape == (2, 1, 24, 24), f"saved: {layers}")
    for name, layer in zip(layers, told["layers"]):
        all_of_them = [closed_forms(M) for M in tensors[name].reshape(-1, 24, 24)]
        check(abs(tensors[name].sum(-1) - 1).max() < 1e-5, f"{name}: rows of attention sum to 1")
        sums = {k: np.mean([x[k] for x in all_of_them], 0) for k in all_of_them[0]}
        for family in ("toeplitz", "low_rank", "causal_low_rank"):
            off = np.abs(np.array(layer[family]["mean"]) - sums[family]).max()
            check(off < 1e-6, f"{name}: {family} is off by {off:.2g}")
            error = np.std([x[family] for x in all_of_them], 0, ddof=1) / len(all_of_them) ** 0.5
            check(np.abs(np.array(layer[family]["error"]) - error).max() < 1e-6, f"{name}: standard error of {family}")
        check_fits(name, layer, sums)


def exact():
    """random SSD matrices: order r is enough, less is not"""
    draw = np.random.default_rng(1)
    made = {}
    for r in (1, 2, 4):
        T = 24
        B, C, a = draw.normal(size=(T, r)), draw.normal(size=(T, r)), draw.uniform(0.85, 1, T)
        decay = np.cumsum(np.log(a))
        made[f"order{r}"] = np.tril((C @ B.T) * np.exp(np.tril(decay[:, None] - decay)))
    save_file(made, folder / "exact.safetensors")
    told = matrices("--from", folder / "exact.safetensors")
    for layer in told["layers"]:
        r = int(layer["name"][5:])
        check_fits(layer["name"], layer, closed_forms(made[layer["name"]]))
        for i, order in enumerate(ORDERS):
            value = layer["ssd"]["mean"][i]
            check((value < 1e-3) == (order >= r), f"an SSD matrix of order {r} is {value} from order {order}")
            check(order < r or layer["bound"]["mean"][i] < 1e-7, f"{layer['name']}: the bound at order {order}")


folder.mkdir(parents=True, exist_ok=True)
real()
exact()
end()
