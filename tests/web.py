#!/usr/bin/env python3
"""The page of examples/web in a headless Chromium, judged by the page's own numbers. `make test-web` builds what it needs.

usage: web.py [quick|normal|long]: how far contexts are measured, see READS in app.js."""
import json, math, os, subprocess, sys
import browser

BUILD = os.environ.get("BUILD", "build")
WEB = os.path.join(BUILD, "web")
MODELS = ("teacher", "student")
passed = failed = 0


def check(what, ok, *found):
    global passed, failed
    if ok:
        passed += 1
    else:
        failed += 1
        print("web: %s%s" % (what, ": " + ", ".join(map(str, found)) if found else ""))


def focused(b):
    return b.value("document.activeElement.id || document.activeElement.value || document.activeElement.getAttribute('href') || document.activeElement.tagName")


def tab_to(b, name, most=60):
    for _ in range(most):
        if focused(b) == name:
            return True
        b.key("Tab")
    check("Tab reaches " + name, False, focused(b))
    return False


def press(b, name, key="Enter"):
    if tab_to(b, name):
        b.key(key)


def fill(b, name, text):
    if tab_to(b, name):
        b.value("document.activeElement.select()")
        b.write(text)


def native(model, prompt, tokens):
    run = subprocess.run([os.path.join(BUILD, "mohawk"), "generate", "--model", os.path.join(WEB, model + ".safetensors"), "--prompt", prompt, "--tokens", str(tokens), "--greedy", "--json"],
                         stdout=subprocess.PIPE, check=True, timeout=120)
    return json.loads(run.stdout)["text"]


def write(b, prompt, tokens, seed=1):
    fill(b, "prompt", prompt)
    fill(b, "seed", str(seed))
    fill(b, "tokens", str(tokens))
    press(b, "write-start", " ")
    check("writing ends within a minute", b.wait("mohawk.write && mohawk.write.done", 60) is not None)
    return b.value("mohawk.write")


def writing(b):
    tab_to(b, "temperature")
    b.key("Home")
    check("Home turns the temperature to greedy", b.value("document.getElementById('temperature-value').textContent") == "0: greedy")
    for row in json.load(open("examples/tiny/greedy.json"))["greedy"]:
        w = write(b, row["prompt"], len(row["continuation_ids"]))
        check("the teacher writes PyTorch's tokens after %r" % row["prompt"], w["teacher"]["ids"] == row["continuation_ids"], w["teacher"]["ids"])
        for model in MODELS:
            expected = native(model, row["prompt"], len(row["continuation_ids"]))
            check("the %s writes after %r what the native build writes" % (model, row["prompt"]), w[model]["text"] == expected, repr(w[model]["text"]), repr(expected))
            shown = b.value("document.getElementById('%s-text').textContent" % model)
            check("the page shows it", shown == row["prompt"] + w[model]["text"], repr(shown))
    tab_to(b, "temperature")
    for _ in range(9):
        b.key("ArrowRight")
    texts = [write(b, "The little rabbit", 40, seed) for seed in (5, 5, 6)]
    for model in MODELS:
        one, again, other = (t[model]["ids"] for t in texts)
        check("equal seeds write equal text, %s" % model, one == again and len(one) > 0, one, again)
        check("another seed writes another text, %s" % model, one != other)
    fill(b, "tokens", "4000")
    fill(b, "prompt", "Once")
    b.value("window.pieces = 0; new MutationObserver(() => window.pieces++).observe(document.getElementById('student-text'), {characterData: true, subtree: true}), 1")
    tab_to(b, "write-start")
    b.key("Enter")
    b.wait("mohawk.write.teacher.ids.length > 100", 30)
    b.key("Tab")
    check("Stop follows Write", focused(b) == "write-stop", focused(b))
    b.key("Enter")
    check("Stop ends the writing", b.wait("mohawk.write.done", 30) is not None)
    ids = b.value("[mohawk.write.teacher.ids.length, mohawk.write.student.ids.length]")
    check("before all tokens are there", max(ids) < 4000, ids)
    check("text comes in pieces", b.value("window.pieces") >= 2, b.value("window.pieces"), ids)
    check("a stopped button keeps the focus", focused(b) == "write-stop", focused(b))


CONTEXTS = [64, 256, 1024, 4096, 16384, 65536, 262144, 1048576]
UNTIL = {"quick": (4096, 65536), "normal": (16384, 1048576), "long": (65536, 1048576)}


def native_bytes():
    """bytes of the contexts of the teacher and of a student of its shape, by the native build"""
    run = subprocess.run([os.path.join(BUILD, "mohawk"), "bench", "--context", os.path.join(BUILD, "web-run", "context.svg"), "--context-most", "1024", "--threads", "1", "--json"],
                         stdout=subprocess.PIPE, check=True, timeout=120)
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    return {m: {r["context"]: r[m + "_bytes"] for r in rows} for m in MODELS}


def measuring(b):
    run = sys.argv[1] if len(sys.argv) > 1 else "quick"
    seconds = {"quick": 120, "normal": 900, "long": 3600}[run]
    tab_to(b, "cost-run")
    b.key("Home")
    for _ in range(list(UNTIL).index(run)):
        b.key("ArrowDown")
    check("the run is chosen by key", b.value("document.getElementById('cost-run').value") == run)
    press(b, "cost-start")
    check("measuring ends within %d s" % seconds, b.wait("mohawk.cost && mohawk.cost.done", seconds) is not None, b.value("document.getElementById('cost-status').textContent"))
    cost, native = b.value("mohawk.cost"), native_bytes()
    for model, until, each in zip(MODELS, UNTIL[run], (4 * 2 * 128 * 4, 0)):  # of each token: keys and values of 4 layers of 128 floats; nothing
        points, computed = cost[model], cost["computed"][model]
        check("the %s is measured as far as was asked" % model, [p["tokens"] for p in points] == [n for n in CONTEXTS if n <= until], points)
        check("and its memory computed from there to a million", [p["tokens"] for p in computed] == [n for n in CONTEXTS if n > until] and not any("ms" in p for p in computed), computed)
        expected = [native[model][64] + each * (n - 64) for n in CONTEXTS]
        check("the %s's memory is the native build's" % model, native[model] == dict(zip(CONTEXTS[:3], expected)), native[model], expected)
        check("at every context, read or computed", [p["bytes"] for p in points + computed] == expected, points, computed, expected)
        check("times are numbers", all(p["ms"] > 0 and math.isfinite(p["ms"]) for p in points), points)
        check("all of it was read", b.value("document.getElementById('read-%s').value" % model) == 1)
        shape = "circle" if model == "teacher" else "rect"
        for chart, open_dots in (("ms", 0), ("bytes", len(computed))):
            dots = [b.value("document.querySelectorAll('#chart-%s %s.dot%s').length" % (chart, shape, kind)) for kind in (":not(.open)", ".open")]
            check("a mark for each in the chart of %s, open where computed" % chart, dots == [len(points), open_dots], model, dots)
    teacher, student = (cost["whole"][m] for m in MODELS)
    check("a student's session, work space and all, is the same at every context", len(set(student)) == 1 and student[0] > cost["student"][0]["bytes"], student)
    check("a teacher's grows by what its tokens take, at least, and at a million is more than there are addresses",
          teacher[7] == 0 and min(teacher[:6]) > 0 and all(b - a >= 4096 * (n - m) for a, b, m, n in zip(teacher, teacher[1:6], CONTEXTS, CONTEXTS[1:])), teacher)
    for chart in ("ms", "bytes"):
        labels = b.value("[...document.querySelectorAll('#chart-%s text')].map((t) => t.textContent.replace(/\\u00a0/g, ' '))" % chart)
        check("the axis of %s goes from 64 to a million" % chart, [t for t in labels if t in ("64", "4 k", "64 k", "1 M")] == ["64", "4 k", "64 k", "1 M"], labels)
    table = b.value("[...document.querySelectorAll('#cost-table tr')].map((r) => [...r.cells].map((c) => c.textContent.replace(/\\u00a0/g, ' ')))")
    check("a row for each context in the table", [r[0] for r in table] == ["{:,}".format(n) for n in CONTEXTS], table)
    check("which says what was not read and what was computed", [r[1] == "n/a" for r in table] == [n > UNTIL[run][0] for n in CONTEXTS] and table[7][3] == "(4.29 GB)" and table[7][5] == "n/a", table)
    if run != "quick":
        return
    b.key("Tab")
    b.key("Tab", shift=True)
    b.key("Tab", shift=True)
    check("before Measure stands the choice", focused(b) == "cost-run", focused(b))
    b.key("End")
    press(b, "cost-start")
    b.wait("mohawk.cost.student.length >= 2 && mohawk.cost.teacher.length >= 2", 60)
    b.key("Tab")
    b.key("Enter")
    check("Stop ends the measuring", focused(b) == "cost-stop" and b.wait("mohawk.cost.done", 30) is not None, focused(b))
    cost = b.value("mohawk.cost")
    check("on the way, and keeps what is there", cost["stopped"] and all(2 <= len(cost[m]) < 8 and len(cost[m]) + len(cost["computed"][m]) == 8 for m in MODELS), cost)
    check("the button keeps the focus", focused(b) == "cost-stop", focused(b))


def picture(b, canvas):
    return b.value("document.getElementById('%s').toDataURL()" % canvas)


def mean(x):
    return sum(x) / len(x)


def distilling(b):
    tab_to(b, "run")
    b.key("Home")
    check("the quick run is chosen by key", b.value("document.getElementById('run').value") == "quick")
    press(b, "distil-start")
    check("distilling starts", b.wait("mohawk.distil.matrices > 0", 60) is not None)
    errors = b.value("mohawk.distil.errors")
    check("and stage 1 follows", b.wait("mohawk.distil.losses[1].length > 20", 120) is not None)
    b.key("Tab")
    check("Pause follows Distil", focused(b) == "distil-pause", focused(b))
    b.key("Enter")
    check("Pause pauses", b.wait("mohawk.distil.state === 'paused'", 20) is not None)
    before = picture(b, "matrix-teacher")
    step = b.value("mohawk.distil.losses[1].length")
    tab_to(b, "1")  # the head that is drawn
    b.key("ArrowRight")
    check("another head is drawn while it is paused", b.wait("document.getElementById('matrix-teacher').getAttribute('aria-label').includes('head 2')", 20) is not None)
    check("and looks different", picture(b, "matrix-teacher") != before)
    b.value("new Promise((done) => setTimeout(done, 400))")
    check("nothing is learned meanwhile", b.value("mohawk.distil.losses[1].length") == step)
    student = picture(b, "matrix-student")
    tab_to(b, "distil-pause")
    b.key(" ")
    took = b.wait("mohawk.distil.state !== 'running' && mohawk.distil.state !== 'paused'", 240)
    d = b.value("mohawk.distil")
    check("the three stages end within four minutes", took is not None and d["state"] == "done", d["state"])
    for stage, factor in ((1, 8), (2, 1.5)):
        losses = [p[1] for p in d["losses"][str(stage)]]
        check("stage %d divides its loss by %g" % (stage, factor), len(losses) > 50 and mean(losses[-10:]) * factor < mean(losses[:3]), mean(losses[:3]), mean(losses[-10:]))
    check("all losses are numbers", all(math.isfinite(p[1]) for s in "123" for p in d["losses"][s]) and len(d["losses"]["3"]) > 50)
    check("matrices come closer", mean(d["errors"]) < 1 < mean(errors), mean(errors), mean(d["errors"]))
    check("the student's is drawn anew", picture(b, "matrix-student") != student)
    samples = {s["key"]: s for s in d["samples"]}
    check("a sample at every step", list(samples) == ["teacher", "0", "1a", "1", "2a", "2b", "2", "3a", "3"], list(samples))
    check("the student comes to agree with the teacher", samples["0"]["agreement"] < 0.1 and samples["3"]["agreement"] > 0.5, samples["0"]["agreement"], samples["3"]["agreement"])
    check("KL falls from stage to stage", samples["0"]["kl"] > samples["1"]["kl"] > samples["2"]["kl"] > 0 and samples["3"]["kl"] < 0.7, [s["kl"] for s in d["samples"]])
    check("the samples are on the page", b.value("[...document.querySelectorAll('#samples p')].every((p) => p.textContent.length > 0)"))
    press(b, "distil-start")
    b.wait("mohawk.distil.matrices > 0", 60)
    press(b, "distil-stop")
    check("Stop stops", b.wait("mohawk.distil.state === 'stopped'", 30) is not None, b.value("mohawk.distil.state"))


CONTRAST = """(() => {
  const rgb = (c) => c.match(/[\\d.]+/g).map(Number);
  const light = (c) => { const [r, g, b] = rgb(c).map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const ground = (e) => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor; if (!/, 0\\)$|transparent/.test(c)) return c; } return 'rgb(255, 255, 255)'; };
  return ['p.lede', '.note', '.models dd', 'h2', 'h3 small', 'button.primary', '#write-stop', 'input', '.story', '.figures dt', 'figcaption', '.ticks', 'footer p', 'nav a', 'summary'].map((s) => {
    const e = document.querySelector(s), a = light(getComputedStyle(e).color), b = light(ground(e));
    return [s, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
  }).filter((p) => p[1] < 4.5);
})()"""


def looking(b):
    for dark in (False, True):
        b.size(1280, 900, dark=dark)
        low = b.value(CONTRAST)
        check("text stands out, %s" % ("dark" if dark else "light"), low == [], low)
    check("dark is dark", b.value("getComputedStyle(document.body).backgroundColor") != "rgb(251, 250, 247)")
    for width in (390, 1280):
        b.size(width, 844)
        check("nothing is wider than %d px" % width, b.value("document.documentElement.scrollWidth") <= width, b.value("document.documentElement.scrollWidth"))
        outside = b.value("[...document.querySelectorAll('button, input, select, canvas, svg, .story')].filter((e) => e.getClientRects().length).filter((e) => { const r = e.getBoundingClientRect(); return r.left < 0 || r.right > innerWidth }).map((e) => e.id || e.tagName)")
        check("all of it is in sight at %d px" % width, outside == [], outside)
        small = b.value("[...document.querySelectorAll('button, input:not([type=radio]), select, .heads label')].filter((e) => e.getBoundingClientRect().height < 40).map((e) => e.id || e.tagName)")
        check("controls are large enough to touch at %d px" % width, small == [], small)
    b.size(1280, 900, calm=True)
    check("reduced motion: no smooth scrolling", b.value("getComputedStyle(document.documentElement).scrollBehavior") == "auto")
    check("nothing is animated", b.value("document.getAnimations().length") == 0)
    b.size(1280, 900)


def reaching(b):
    order, bare = [], []
    b.value("document.activeElement.blur(), scrollTo(0, 0), 1")
    for _ in range(60):
        b.key("Tab")
        name = focused(b)
        if name == "BODY" or len(order) > 5 and name == order[0]:
            break
        order.append(name)
        ring = b.value("(() => { const e = document.activeElement, c = e.type === 'radio' ? e.parentElement : e, s = getComputedStyle(c); return s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) >= 2 })()")
        if not ring:
            bare.append(name)
    wanted = ["#write", "#write", "#cost", "#distil", "prompt", "temperature", "seed", "tokens", "write-start", "write-stop", "teacher-text", "student-text", "cost-run", "cost-start", "cost-stop",
              "SUMMARY", "run", "distil-start", "distil-pause", "distil-stop", "1"]
    check("Tab goes through the page in reading order", [n for n in order if n in wanted] == wanted, order)
    check("what has the focus is outlined", bare == [], bare)
    nameless = []
    for node in b.call("Accessibility.getFullAXTree")["nodes"]:
        role = node.get("role", {}).get("value")
        if role in ("button", "textbox", "slider", "spinbutton", "combobox", "radio", "link", "progressbar", "image", "img", "log", "region") and not node.get("ignored"):
            if not node.get("name", {}).get("value"):
                nameless.append(role)
    check("every control and picture has a name", nameless == [], nameless)


def main():
    if not browser.program():
        print("web: 0 passed, 0 failed (skipped: no Chromium)")
        return 0
    server = browser.Server(WEB)
    b = browser.Browser(1280, 900)
    try:
        b.size(1280, 900)
        b.call("Page.addScriptToEvaluateOnNewDocument", source="window.shift = 0; new PerformanceObserver((l) => l.getEntries().forEach((e) => { if (!e.hadRecentInput) window.shift += e.value; })).observe({type: 'layout-shift', buffered: true});")
        b.open(server.url)
        check("both models load within half a minute", b.wait("window.mohawk && mohawk.ready", 30) is not None, b.value("document.body.innerText"))
        weights = [b.value("mohawk.models.%s.weights" % m) for m in MODELS]
        check("the student is quantized", weights == ["BF16", "Q8"], weights)
        looking(b)
        reaching(b)
        for width, part in ((390, writing), (390, measuring), (1280, distilling), (1280, looking)):
            b.size(width, 900)
            b.value("window.shift = 0")
            part(b)
            if part != looking:
                check("the layout does not jump, %s at %d px" % (part.__name__, width), b.value("window.shift") < 0.02, b.value("window.shift"))
        check("no trouble is shown", b.value("mohawk.errors.length") == 0, b.value("mohawk.errors"))
        check("the console is empty", b.console == [] and b.errors == [], b.console, b.errors)
        away = sorted({u for u in b.requests if not u.startswith((server.url, "data:", "blob:"))})
        check("nothing is asked of other machines", away == [], away)
        asked = {u[len(server.url):] for u in b.requests}
        check("the worker's requests were seen", {"worker.js", "mohawk.wasm", "index.html" if "index.html" in asked else ""} <= asked, sorted(asked))
    finally:
        b.close()
        server.close()
    print("web: %d passed, %d failed" % (passed, failed))
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
