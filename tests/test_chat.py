#!/usr/bin/env python3
"""mohawk generate --chat: the bundled model with the special tokens of ChatML and of Llama 3 in place of its last four words. The text that is fed is what the
families' own chat templates give, if jinja2 is here; otherwise only what is known here."""
import json
import os
import pathlib
import shutil
import subprocess

from check import check, end

BUILD = os.environ.get("BUILD", "build")
TOKENS = {"chatml": ["<|im_start|>", "<|im_end|>"], "llama3": ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]}
TEMPLATES = {
    "chatml": "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
              "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "llama3": "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ "
              "message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
              "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
}
KNOWN = {
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n Hello\n<|im_end|>\n<|im_start|>assistant\n",
    "llama3": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>"
              "<|start_header_id|>assistant<|end_header_id|>\n\n",
}


def model(name):
    """The bundled model under another tokenizer; returns the folder and the ids of the tokens."""
    folder = pathlib.Path(BUILD) / "chat" / name
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree("examples/tiny", folder)
    path = folder / "tokenizer.json"
    t = json.loads(path.read_text(encoding="utf-8"))
    size, tokens = 1024, TOKENS[name]
    ids = range(size - len(tokens), size)
    t["model"]["vocab"] = {text: i for text, i in t["model"]["vocab"].items() if i < ids[0]}
    t["model"]["merges"] = [m for m in t["model"]["merges"] if "".join(m if isinstance(m, list) else m.split()) in t["model"]["vocab"]]
    t["added_tokens"] += [{"id": i, "content": c, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True} for i, c in zip(ids, tokens)]
    path.write_text(json.dumps(t), encoding="utf-8")
    return folder, dict(zip(tokens, ids))


def generate(folder, *arguments):
    return subprocess.run([f"{BUILD}/mohawk", "generate", "--model", str(folder), "--tokens", "8", "--greedy", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def rendered(name, messages):
    try:
        from jinja2 import Environment
    except ImportError:
        return None
    return Environment().from_string(TEMPLATES[name]).render(messages=messages, bos_token="<|begin_of_text|>", add_generation_prompt=True)


def check_format(name):
    folder, ids = model(name)
    other = next(x for x in TOKENS if x != name)
    ends = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>"}
    for system in (None, "Be brief."):
        turns = ([{"role": "system", "content": system}] if system else []) + [{"role": "user", "content": " Hello\n"}]
        said = generate(folder, "--chat", name, "--prompt", " Hello\n", "--json", *(["--system", system] if system else []))
        got = json.loads(said.stdout or "{}")
        want = rendered(name, turns) or (KNOWN[name] if system else got.get("prompt"))
        check(got.get("prompt") == want, f"{name}: the prompt is {got.get('prompt')!r}, not {want!r} {said.stderr.decode()}")
        if system:
            check(got.get("prompt") == KNOWN[name], f"{name}: the prompt is {got.get('prompt')!r}, not {KNOWN[name]!r}")
        # nothing goes before the format's own start, and the text alone comes out
        same = json.loads(generate(folder, "--no-start", f"--prompt={want}", "--json").stdout)
        check(same["text"] == got.get("text"), f"{name}: {got.get('text')!r} is said instead of {same['text']!r}")
        plain = generate(folder, "--chat", name, "--prompt", " Hello\n", *(["--system", system] if system else []))
        check(plain.stdout.decode() == got.get("text", "") + "\n", f"{name}: {plain.stdout!r} is printed")
    stopped = generate(folder, "--chat", name, "--prompt", "Hello", "--bias", f"{ids[ends[name]]}:1e4", "--json")
    got = json.loads(stopped.stdout or "{}")
    check(got.get("stopped") == "end of turn" and got.get("text") == "" and got.get("tokens") == 0, f"{name}: the end of the turn does not stop it: {got}")
    wrong = generate(folder, "--chat", other, "--prompt", "Hello")
    check(wrong.returncode == 1 and f"needs the special token {ends[other]}".encode() in wrong.stderr,
          f"{name}: the format {other} is taken: {wrong.stderr!r}")


def main():
    for name in TOKENS:
        check_format(name)
    tiny = "examples/tiny"
    for code, why, arguments in ((1, b"--prompt TEXT", ("--chat", "chatml")), (2, b"--chat", ("--prompt", "x", "--system", "y")), (2, b"chatml|llama3", ("--prompt", "x", "--chat", "alpaca")),
                                 (1, b"<|im_end|>", ("--prompt", "x", "--chat", "chatml")), (1, b"<|eot_id|>", ("--prompt", "x", "--chat", "llama3"))):
        done = generate(tiny, *arguments)
        check(done.returncode == code and why in done.stderr, f"{arguments}: {done.returncode}, {done.stderr!r}")
    end()


main()
