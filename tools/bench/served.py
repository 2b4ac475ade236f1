"""A program that is measured in turns with others: it reads lines "CASE THREADS ROUNDS MODE" and answers each with a
JSON object, as `mohawk bench --serve` does."""
import json
import os
import select
import subprocess
import sys


def say(text):
    print(os.path.basename(sys.argv[0]) + ": " + text, file=sys.stderr, flush=True)


def environment(**more):
    """Threads of all programs spin for about 0.1 ms before they sleep: enough from one loop to the next, and not
    ruinous on a machine that has other work."""
    found = {"GOMP_SPINCOUNT": "5000", **os.environ, **more}
    found.pop("OMP_WAIT_POLICY", None)
    return found


class Program:
    def __init__(self, name, command, folder, limit, modes=("",), **more):
        """folder: where it runs; limit: seconds that it may take to answer; more: of its environment"""
        self.name, self.command, self.modes, self.folder, self.limit = name, command, modes, folder, limit
        self.environment = environment(**more)
        self.process = None

    def stop(self):
        if self.process:
            self.process.kill()
            self.process.wait()
        self.process = None

    def start(self):
        if not self.process:
            self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                            cwd=self.folder, env=self.environment)

    def ask(self, case, threads, rounds, mode=""):
        """the answer, or None where there is none"""
        self.start()
        try:
            self.process.stdin.write(f"{case} {threads} {rounds} {mode}\n")
            self.process.stdin.flush()
        except OSError:
            self.stop()
            return None
        if not select.select([self.process.stdout], [], [], self.limit)[0]:
            say(f"{self.name} {mode} took too long for {case} and is left out there")
            self.stop()
            return None
        line = self.process.stdout.readline()
        if not line:
            self.stop()
            return None
        answer = json.loads(line)
        return None if "unsupported" in answer else answer


def turns(ms, seconds=0.04):
    """how many rounds of that many milliseconds one turn has: several of what is short"""
    return max(1, min(50, int(1e3 * seconds / ms)))
