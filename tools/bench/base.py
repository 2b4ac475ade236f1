#!/usr/bin/env python3
"""This tree against another revision of it, measured in turns: `make bench-base BASE=REVISION`.

usage: base.py BASE [--filter TEXT,...] [--threads 1,2] [--isa NAME] [--model PATH,...] [--rounds 3] [--pairs 5]
               [--seconds 4] [--limit 3] [--again 2] [--out FILE] [--new PROGRAM]

BASE is a revision of this repository, a folder with its sources, or a built `mohawk`. Both trees are built with the
same compiler and flags (CC, CFLAGS, OPENMP), each with its own header and its own `mohawk bench`. A row is a case at
a number of threads; where the system allows it (Linux) both programs run on the same cores. In each round both programs start afresh for a case and take turns, the first one alternating;
the ratio of a pair is this tree's time over the base's: above 1, this tree is slower. Rows over the limit run again
before they are judged by the median of all their pairs. The table is sorted worst first, with the quartiles as the
spread. Exit code 1: some row is more than --limit percent slower.
"""
import argparse
import atexit
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
import zlib

from served import Program, environment, say, turns

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
BUILD = os.path.join(ROOT, os.environ.get("BUILD", "build"))

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("base")
parser.add_argument("--filter", default="")
parser.add_argument("--threads", default="")
parser.add_argument("--isa", default="best")
parser.add_argument("--model", default="examples/tiny", help="Phi teachers, as for mohawk bench")
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--pairs", type=int, default=5, help="of turns in a round")
parser.add_argument("--seconds", type=float, default=4.0, help="for the pairs of a round, after two of them")
parser.add_argument("--limit", type=float, default=3.0, help="percent that a row may be slower")
parser.add_argument("--again", type=int, default=2, help="rounds more for rows over the limit")
parser.add_argument("--wait", type=float, default=300.0, help="seconds that a program may take to answer")
parser.add_argument("--out", default=os.path.join(BUILD, "bench_base.json"))
parser.add_argument("--new", help="a built mohawk in place of this tree's")


# ---- two programs


def make(source, build):
    """the mohawk of a source folder, built there or brought up to date"""
    flags = [f"{name}={os.environ[name]}" for name in ("CC", "CFLAGS", "OPENMP") if name in os.environ]
    clean = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "BUILD")}
    say(f"building {os.path.relpath(build)}")
    program = os.path.join(build, "mohawk")
    if subprocess.run(["make", "-C", source, *flags, f"BUILD={build}", program], env=clean, stdout=sys.stderr).returncode:
        sys.exit(f"base.py: {source} does not build")
    return program


def unpack(revision):
    """the folder of a revision's sources under build/base"""
    git = ["git", "-C", ROOT]
    found = subprocess.run([*git, "rev-parse", "--verify", "--quiet", revision + "^{commit}"], stdout=subprocess.PIPE,
                           text=True)
    if found.returncode:
        sys.exit(f"base.py: {revision} is neither a revision of this repository nor a folder nor a program")
    folder = os.path.join(BUILD, "base", found.stdout.strip()[:12])
    if not os.path.exists(os.path.join(folder, "Makefile")):
        os.makedirs(folder, exist_ok=True)
        archive = subprocess.Popen([*git, "archive", found.stdout.strip()], stdout=subprocess.PIPE)
        if subprocess.run(["tar", "-x", "-C", folder], stdin=archive.stdout).returncode or archive.wait():
            sys.exit(f"base.py: {revision} cannot be read")
    return folder


def programs(args):
    """(base, new), each (program, folder it runs in)"""
    flags = " ".join(os.environ.get(name, "") for name in ("CC", "CFLAGS", "OPENMP"))
    kind = "build-%08x" % zlib.crc32(flags.encode())
    if os.path.isfile(args.base):
        base = os.path.abspath(args.base), ROOT
    else:
        folder = os.path.abspath(args.base) if os.path.isdir(args.base) else unpack(args.base)
        base = make(folder, os.path.join(folder, "build" if os.path.isdir(args.base) else "", kind)), folder
    new = os.path.abspath(args.new) if args.new else make(ROOT, os.path.join(BUILD, "base", "new-" + kind))
    return base, (new, ROOT)


def models(text):
    """paths as both programs find them; the bundled teacher each takes from its own tree"""
    return ",".join(p if p == "examples/tiny" else os.path.abspath(p) for p in text.split(","))


def cases(program, folder, model):
    listed = subprocess.run([program, "bench", "--list", "--model", model], cwd=folder, env=environment(),
                            stdout=subprocess.PIPE, text=True)
    if listed.returncode:
        sys.exit(f"base.py: {program} bench --list does not work")
    return listed.stdout.split()


# ---- measuring


def cores():
    """one logical processor of each core that this process may use; none where the system does not tell"""
    if not hasattr(os, "sched_getaffinity"):
        return []
    found = {}
    for n in sorted(os.sched_getaffinity(0)):
        try:
            with open(f"/sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list") as file:
                found.setdefault(file.read(), n)
        except OSError:
            found.setdefault(n, n)
    return list(found.values())


class Pinned(Program):
    """both programs on the same cores: those of a shared machine differ by more than two revisions do"""
    places = cores()

    def ask(self, case, threads, rounds, mode=""):
        self.start()
        if len(self.places) >= threads:
            try:
                for task in os.listdir(f"/proc/{self.process.pid}/task"):
                    os.sched_setaffinity(int(task), self.places[-threads:])
            except OSError:
                pass
        return super().ask(case, threads, rounds, mode)


class Row:
    def __init__(self, case, threads):
        self.case, self.threads, self.isa = case, threads, ""
        self.base, self.new = [], []

    def ratios(self):
        return [n / b for n, b in zip(self.new, self.base)]

    def ratio(self):
        return statistics.median(self.ratios())

    def spread(self):
        ratios = self.ratios()
        if len(ratios) < 2:
            return ratios[0], ratios[0]
        low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
        return low, high

    def as_json(self):
        low, high = self.spread()
        return {"case": self.case, "threads": self.threads, "isa": self.isa, "base_ms": statistics.median(self.base),
                "new_ms": statistics.median(self.new), "ratio": self.ratio(), "quartiles": [low, high],
                "pairs": len(self.base)}


def measure(row, base, new, pairs, seconds):
    """one round of a row: whether both programs have it"""
    started = time.perf_counter()
    first = [p.ask(row.case, row.threads, 1) for p in (base, new)]
    if not all(first):
        return False
    row.isa = first[1]["isa"]
    rounds = turns(min(a["ours_ms"] for a in first))
    for i in range(pairs):
        if i >= 2 and time.perf_counter() - started > seconds:
            break
        order = (base, new) if i % 2 == 0 else (new, base)
        answer = {p: p.ask(row.case, row.threads, rounds) for p in order}
        if not all(answer.values()):
            return False
        row.base.append(answer[base]["ours_ms"])
        row.new.append(answer[new]["ours_ms"])
    return True


def run(rows, base, new, pairs, seconds, what):
    """one round of all rows, in their order: those of a case follow each other in the same two processes"""
    for i, row in enumerate(rows):
        if i > 0 and rows[i - 1].case != row.case:
            base.stop()
            new.stop()
        if measure(row, base, new, pairs, seconds):
            low, high = row.spread()
            print(f"{what}  {row.case:<30} {row.threads:>3}  {row.ratio():.3f}  ({low:.3f} to {high:.3f})",
                  file=sys.stderr, flush=True)
    base.stop()
    new.stop()


def report(rows, limit, out):
    """prints the table, writes it as JSON; returns how many rows are over the limit"""
    rows = sorted((r for r in rows if r.base), key=Row.ratio, reverse=True)
    print(f"{'case':<30} {'thr':>3} {'isa':<7} {'base ms':>11} {'new ms':>11} {'new/base':>9}  quartiles")
    for row in rows:
        low, high = row.spread()
        print(f"{row.case:<30} {row.threads:>3} {row.isa:<7} {statistics.median(row.base):>11.3f} "
              f"{statistics.median(row.new):>11.3f} {row.ratio():>9.3f}  {low:.3f} to {high:.3f}")
    slower = [r for r in rows if r.ratio() > 1 + limit / 100]
    if slower:
        print(f"{len(slower)} of {len(rows)} rows are more than {limit:g} % slower")
    else:
        print(f"none of {len(rows)} rows is more than {limit:g} % slower")
    with open(out + ".new", "w") as file:
        file.write("[\n" + ",\n".join("  " + json.dumps(r.as_json()) for r in rows) + "\n]\n")
    os.replace(out + ".new", out)
    print("written: " + os.path.relpath(out))
    return len(slower)


def main():
    args = parser.parse_args()
    built, model = programs(args), models(args.model)
    words = [w for w in args.filter.split(",") if w]
    names = cases(*built[1], model)
    there = set(cases(*built[0], model))
    for name in names:
        if name not in there:
            say(f"{name} is left out: the base does not have it")
    if words:
        names = [n for n in names if n in there and any(w in n for w in words)]
    else:  # those that compare our own cases with each other measure nothing new
        names = [n for n in names if n in there and not n.startswith("ssd_")]
    if not names:
        sys.exit(f"base.py: --filter {args.filter} matches no case of both")
    threads = [int(x) for x in args.threads.split(",") if x] or sorted({1, min(2, os.cpu_count() or 1)})
    base, new = [Pinned(name, [program, "bench", "--serve", "--isa", args.isa, "--model", model], folder, args.wait)
                 for name, (program, folder) in zip(("base", "new"), built)]
    for p in (base, new):
        atexit.register(p.stop)
    rows = [Row(name, n) for name in names for n in threads]
    os.makedirs(os.path.dirname(os.path.abspath(args.out)), exist_ok=True)
    for i in range(args.rounds):
        run(rows, base, new, args.pairs, args.seconds, f"round {i + 1}")
    for i in range(args.again):
        slow = [r for r in rows if r.base and r.ratio() > 1 + args.limit / 100]
        run(slow, base, new, args.pairs, args.seconds, f"again {i + 1}")
    lost = [f"{r.case} ({r.threads})" for r in rows if not r.base]
    if lost:
        say("not measured: " + ", ".join(lost))
    return 1 if report(rows, args.limit, args.out) or lost else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(1)
