#!/usr/bin/env python3
"""mohawk against other libraries, measured in turns: `make bench-peers`.

usage: peers.py [--filter TEXT,...] [--threads 1,2] [--isa NAME] [--model PATH,...] [--pairs 5] [--seconds 2]
                [--peers NAME,...] [--bench PROGRAM] [--no-install] [--no-compile] [--compile-jobs N] [--out FILE]

Peers: OpenBLAS and oneDNN (Debian packages libopenblas-dev and libdnnl-dev), PyTorch (of this Python, or installed into
build/venv), and ggml where GGML_DIR names its source tree. Those that cannot be installed or built are left out;
--peers openblas,onednn,torch,ggml chooses some. --bench is a mohawk that is there, instead of build/mohawk. Each
case first runs with every peer and mode; then ours, the best of the first three and ggml take turns, and a ratio is
the median over these rounds of the peer's time over ours: above 1, mohawk is faster. Results go to build/bench.json,
one row a peer, with the cases that have none.
"""
import argparse
import atexit
import glob
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from served import Program, say, turns

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
BUILD = os.path.join(ROOT, os.environ.get("BUILD", "build"))
TORCH = "2.13.0"
# what holds the peers to a lower instruction set
LOWER = {"avx2": {"OPENBLAS_CORETYPE": "Haswell", "ONEDNN_MAX_CPU_ISA": "AVX2", "DNNL_MAX_CPU_ISA": "AVX2",
                  "ATEN_CPU_CAPABILITY": "avx2"}}

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--filter", default="")
parser.add_argument("--threads", default="")
parser.add_argument("--isa", default="best")
parser.add_argument("--model", default="examples/tiny", help="Phi teachers, as for mohawk bench")
parser.add_argument("--pairs", type=int, default=5)
parser.add_argument("--seconds", type=float, default=2.0, help="for the pairs of a row, at least two of them")
parser.add_argument("--limit", type=float, default=300.0, help="seconds that a peer may take to answer")
parser.add_argument("--peers", default="openblas,onednn,torch,ggml", help="those to compare with")
parser.add_argument("--bench", default=os.path.join(BUILD, "mohawk"), help="the program mohawk")
parser.add_argument("--compile-jobs", type=int, default=0,
                    help="first compile all cases with torch.compile, that many at a time, so that measuring finds them")
parser.add_argument("--no-install", action="store_true")
parser.add_argument("--no-compile", action="store_true", help="PyTorch without torch.compile")
parser.add_argument("--out", default=os.path.join(BUILD, "bench.json"))
args = parser.parse_args()
args.peers = [p for p in args.peers.split(",") if p]
for unknown in set(args.peers) - {"openblas", "onednn", "torch", "ggml"}:
    parser.error(f"--peers {unknown} is not one of openblas, onednn, torch, ggml")


def quiet(command, **more):
    try:
        return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **more)
    except OSError as error:
        return subprocess.CompletedProcess(command, 1, str(error))


# ---- what is there


def install_packages():
    if args.no_install or not shutil.which("apt-get") or not shutil.which("dpkg"):
        return
    packages = {"openblas": "libopenblas-dev", "onednn": "libdnnl-dev"}
    wanted = [p for name, p in packages.items() if name in args.peers and quiet(["dpkg", "-s", p]).returncode != 0]
    if not wanted:
        return
    say("installing " + " and ".join(wanted))
    sudo = [] if os.geteuid() == 0 or not shutil.which("sudo") else ["sudo", "-n"]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = sudo + ["apt-get", "install", "-y", "--no-install-recommends"] + wanted
    if quiet(install, env=environment).returncode != 0:
        quiet(sudo + ["apt-get", "update"], env=environment)
        result = quiet(install, env=environment)
        if result.returncode != 0:
            say("they could not be installed: " + (result.stdout.strip().splitlines() or ["?"])[-1])


def python_with_torch():
    if "torch" not in args.peers:
        return None
    for python in (sys.executable, os.path.join(BUILD, "venv/bin/python"), "/usr/bin/python3"):
        if os.path.exists(python) and quiet([python, "-c", "import torch; torch.compile"]).returncode == 0:
            return python
    if args.no_install:
        return None
    say(f"installing torch {TORCH} into {BUILD}/venv")
    quiet([sys.executable, "-m", "venv", os.path.join(BUILD, "venv")])
    python = os.path.join(BUILD, "venv/bin/python")
    result = quiet([python, "-m", "pip", "install", "-q", f"torch=={TORCH}", "numpy"])
    if result.returncode == 0:
        return python
    say("torch could not be installed: " + (result.stdout.strip().splitlines() or ["?"])[-1])
    return None


def build(name, source, *flags):
    """a peer's program, or None"""
    if name.removeprefix("peer_") not in args.peers:
        return None
    out = os.path.join(BUILD, "peers", name)
    os.makedirs(os.path.dirname(out), exist_ok=True)
    compiler = os.environ.get("CXX", "c++") if source.endswith("cpp") else os.environ.get("CC", "cc")
    result = quiet([*compiler.split(), "-O2", os.path.join(HERE, source), "-o", out, *flags, "-lm"])
    if result.returncode == 0:
        return out
    say(f"{name} is left out, its program does not build: " + (result.stdout.strip().splitlines() or ["?"])[0])
    return None


def build_ggml():
    source = os.environ.get("GGML_DIR")
    if not source or "ggml" not in args.peers:
        return None
    work = os.path.join(BUILD, "peers", "ggml")
    for command in (["cmake", "-S", source, "-B", work, "-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON",
                     "-DGGML_LLAMAFILE=ON", "-DBUILD_SHARED_LIBS=OFF", "-DGGML_BUILD_TESTS=OFF",
                     "-DGGML_BUILD_EXAMPLES=OFF"], ["cmake", "--build", work, "--target", "ggml"]):
        result = quiet(command)
        if result.returncode != 0:
            say("ggml is left out: " + (result.stdout.strip().splitlines() or ["?"])[-1])
            return None
    libraries = glob.glob(work + "/**/libggml*.a", recursive=True)
    return build("peer_ggml", "peer_ggml.cpp", "-I" + os.path.join(source, "include"), "-Wl,--start-group", *libraries,
                 "-Wl,--end-group", "-fopenmp", "-lpthread", "-ldl")


# ---- programs that answer lines


def program(name, command, *modes):
    return Program(name, command, ROOT, args.limit, modes or ("",), **LOWER.get(args.isa, {}), PYTHONWARNINGS="ignore")


def programs():
    install_packages()
    found = []
    multiarch = [f"-I{p}" for p in glob.glob("/usr/include/*/openblas*")]
    blas = build("peer_openblas", "peer_openblas.c", "-lopenblas", *multiarch)
    if blas:
        found.append(program("OpenBLAS", [blas]))
    dnn = build("peer_onednn", "peer_onednn.c", "-fopenmp", "-ldnnl")
    if dnn:
        found.append(program("oneDNN", [dnn], "plain", "packed"))
    python = python_with_torch()
    if python:
        modes = ["eager"] if args.no_compile else ["eager", "compile"]
        found.append(program("PyTorch", [python, os.path.join(HERE, "peer_torch.py"), *args.model.split(",")], *modes))
    ggml = build_ggml()
    if ggml:
        found.append(program("ggml", [ggml], "plain", "packed"))
    return found


# ---- measuring

FORMAT = "{:<30} {:>3} {:<7} {:>11} {:>9} {:>9}  {:<18} {:>11} {:>6}"


def show(row):
    def number(x, text):
        return "-" if x is None else text.format(x)

    share = number(row["percent_of_limit"], "{:.0f} %") + (" rd" if row["limit"] == "read" else "   ")
    print(FORMAT.format(row["case"], row["threads"], row["isa"], f"{row['ours_ms']:.3f}",
                        number(row["gflops"], "{:.1f}"), share, row["peer"] or "-", number(row["peer_ms"], "{:.3f}"),
                        number(row["ratio"], "{:.2f}")), flush=True)


def fastest(case, threads, peers):
    """every peer and mode once: {(peer, mode): ms} of those that have the case"""
    first = {}
    for peer in peers:
        for mode in peer.modes:
            answer = peer.ask(case, threads, 1, mode)
            if answer and answer["ms"] < 300:
                answer = peer.ask(case, threads, 5, mode) or answer
            if answer:
                first[peer, mode] = answer["min_ms"]
        if len(peers) > 1:
            peer.stop()
    return first


def compare(case, threads, ours, peers):
    """rows against the best library, and against ggml where it has the case; none where no peer does"""
    first = fastest(case, threads, peers)
    groups = [[k for k in first if (k[0].name == "ggml") == ggml] for ggml in (False, True)]
    chosen = [min(group, key=first.get) for group in groups if group]
    row = ours.ask(case, threads, 1) if chosen else None
    if not row:
        return []

    for peer, mode in chosen:
        if len(peers) > 1 or len(peer.modes) > 1:
            peer.ask(case, threads, 1, mode)
    mine, theirs, started = [], [[] for _ in chosen], time.perf_counter()
    while len(mine) < args.pairs or time.perf_counter() - started < args.seconds:
        if len(mine) >= 200 or (len(mine) >= 2 and time.perf_counter() - started > 5 * args.seconds):
            break
        row = ours.ask(case, threads, turns(row["ours_ms"]))
        answers = [p.ask(case, threads, turns(first[p, mode]), mode) for p, mode in chosen]
        if not row or not all(answers):
            break
        mine.append(row)
        for their, answer in zip(theirs, answers):
            their.append(answer)
    for peer, _ in chosen:
        if len(peers) > 1:
            peer.stop()
    return [summary(mine, their, peer, mode, first) for their, (peer, mode) in zip(theirs, chosen)] if mine else []


def summary(mine, theirs, peer, mode, first):
    row = dict(mine[-1])
    share = row["percent_of_limit"] and row["percent_of_limit"] * row["ours_ms"]
    work = row["gflops"] and row["gflops"] * row["ours_ms"]
    row["ours_ms"] = statistics.median(r["ours_ms"] for r in mine)
    row["gflops"], row["percent_of_limit"] = work and work / row["ours_ms"], share and share / row["ours_ms"]
    row["peer"] = (peer.name + " " + mode).strip()
    row["peer_ms"] = statistics.median(r["ms"] for r in theirs)
    row["ratio"] = statistics.median(b["ms"] / a["ours_ms"] for a, b in zip(mine, theirs))
    row["ours_min_ms"], row["rounds"] = min(r["ours_min_ms"] for r in mine), len(mine)
    row["peers_min_ms"] = {(p.name + " " + m).strip(): round(ms, 4) for (p, m), ms in first.items()}
    if "memory" in theirs[-1]:
        row["peer_memory"] = max(r["memory"] for r in theirs)
        if row["peer_memory"] > 0 and row["ours_memory"] > 0:
            row["memory_ratio"] = row["ours_memory"] / row["peer_memory"]
    return row


def compile_all(peers, names, threads):
    """each case and number of threads in a process of its own; what torch.compile makes stays on disk"""
    def one(job):
        alone = {**peer.environment, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        torch = Program(peer.name, peer.command, ROOT, args.limit, **alone)
        torch.ask(*job, 1, "compile")
        torch.stop()

    for peer in peers:
        if "compile" in peer.modes and args.compile_jobs:
            with ThreadPoolExecutor(args.compile_jobs) as pool:
                list(pool.map(one, [(name, n) for n in threads for name in names]))


def alone(names, threads, ours):
    """rows of cases that no peer has"""
    part = args.out + ".alone"
    command = [args.bench, "bench", "--filter", ",".join("=" + name for name in names), "--threads",
               ",".join(map(str, threads)), "--isa", args.isa, "--model", args.model, "--out", part, "--json"]
    subprocess.run(command, cwd=ROOT, env=ours.environment, stdout=subprocess.DEVNULL, check=True)
    with open(part) as file:
        rows = json.load(file)
    os.remove(part)
    return rows


def processor():
    try:
        with open("/proc/cpuinfo") as file:
            name = next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        name = "a processor without a name"
    return f"{name}, {os.cpu_count()} CPUs"


def keep(rows, more, machine):
    """adds rows, shows them, and writes all there are, so that what is measured survives what comes"""
    done = {(row["case"], row["threads"]) for row in rows}
    for row in more:
        if (row["case"], row["threads"]) in done:
            continue
        row["machine"] = machine
        rows.append(row)
        show(row)
    with open(args.out + ".new", "w") as file:
        file.write("[\n" + ",\n".join("  " + json.dumps(r) for r in rows) + "\n]\n")
    os.replace(args.out + ".new", args.out)


def main():
    args.bench, args.out = os.path.abspath(args.bench), os.path.abspath(args.out)
    listing = [args.bench, "bench", "--list", "--model", args.model] + (["--filter", args.filter] if args.filter else [])
    names = subprocess.run(listing, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    threads = [int(x) for x in args.threads.split(",") if x] or sorted({1, min(2, os.cpu_count() or 1)})
    os.makedirs(os.path.dirname(args.out), exist_ok=True)
    peers = programs()
    ours = program("mohawk", [args.bench, "bench", "--serve", "--isa", args.isa, "--model", args.model])
    for p in [ours, *peers]:
        atexit.register(p.stop)
    compile_all(peers, names, threads)
    rows, left, machine = [], [], processor()
    print(FORMAT.format("case", "thr", "isa", "ms", "GFLOP/s", "of limit   ", "best peer", "ms", "ratio"))
    for name in names:
        own = name.startswith(("ssd_", "model_forward_"))
        found = [] if own else [compare(name, n, ours, peers) for n in threads]
        keep(rows, [row for each in found for row in each], machine)
        if own or not all(found):
            left.append(name)
        for p in [ours, *peers]:
            p.stop()
    if left:
        keep(rows, alone(left, threads, ours), machine)
    print("written: " + os.path.relpath(args.out))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(1)
