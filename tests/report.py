#!/usr/bin/env python3
"""The report in a headless Chromium: widths, light, dark and forced colors, keyboard, script on and off, axe where it is there.

AXE names axe.min.js (Debian's node-axe-core; or in the wheel axe-core-python); usual places are searched without it."""
import glob, json, os, re, shutil, site, subprocess, sys
import browser

BUILD = os.environ.get("BUILD", "build")
WORK = os.path.join(BUILD, "test", "report-page")
MOHAWK = os.path.join(BUILD, "mohawk")
passed = failed = 0


def check(what, ok, *found):
    global passed, failed
    passed, failed = passed + bool(ok), failed + (not ok)
    if not ok:
        print("report: %s%s" % (what, ": " + ", ".join(map(str, found)) if found else ""))


def axe():
    places = [os.environ.get("AXE", "")] + glob.glob("/usr/share/nodejs/axe-core/axe.min.js") + glob.glob("/usr/lib/nodejs/axe-core/axe.min.js")
    for folder in site.getsitepackages() + [site.getusersitepackages()]:
        places += glob.glob(os.path.join(folder, "axe*", "**", "axe.min.js"), recursive=True)
    return next((open(p).read() for p in places if p and os.path.exists(p)), None)


def mohawk(*words):
    subprocess.run([MOHAWK, *words], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=600)


def write():
    shutil.rmtree(WORK, ignore_errors=True)
    os.makedirs(WORK)
    common = ["distill", "--teacher", "examples/tiny", "--text", "examples/story.txt", "--eval", "examples/story.txt", "--eval-windows", "4", "--tokens", "1k,2k,1k",
              "--batch", "2", "--length", "64"]
    runs = [os.path.join(WORK, name) for name in ("one", "two", "three")]
    mohawk(*common, "--report", "--out", runs[0])
    mohawk(*common, "--window", "8", "--out", runs[1])
    mohawk(*common, "--tokens", "0,0,4k", "--out", runs[2])
    tables = os.path.join(WORK, "table")
    mohawk("ablate", "--run", "all: --tokens 1k,1k,1k", "alone: --tokens 0,0,3k", "--teacher", "examples/tiny", "--text", "examples/story.txt", "--eval", "examples/story.txt",
           "--eval-windows", "4", "--batch", "2", "--length", "64", "--seeds", "1,2", "--out", tables)
    several = os.path.join(WORK, "several.html")
    mohawk("report", *runs, tables, "--out", several)
    return [os.path.join(runs[0], "report.html"), several]


OUTSIDE = """[...document.querySelectorAll('main *')].filter((e) => !e.closest('.scroll, svg') && e.getClientRects().length)
  .filter((e) => { const r = e.getBoundingClientRect(); return r.left < -1 || r.right > innerWidth + 1 }).map((e) => e.tagName + '.' + e.className)"""


def looking(b, page, what):
    for dark in (False, True):
        for width in (320, 390, 768, 1280, 1440):
            b.size(width, 900, dark=dark)
            b.open(page)
            b.size(width, 900, dark=dark)
            at = "%s at %d px, %s" % (what, width, "dark" if dark else "light")
            check("nothing is wider than the page: " + at, b.value("document.documentElement.scrollWidth") <= width, b.value("document.documentElement.scrollWidth"))
            outside = b.value(OUTSIDE)
            check("all is in sight: " + at, outside == [], outside[:5])
            small = b.value("[...document.querySelectorAll('input:not([type=radio]), select, .pick label')].filter((e) => e.getBoundingClientRect().height < 40).map((e) => e.id)")
            check("controls are large enough to touch: " + at, small == [], small)
            shown = b.value("['.wide', '.narrow'].map((s) => getComputedStyle(document.querySelector(s)).display)")
            check("one of the two figures: " + at, sorted(shown) == ["block", "none"], shown)
            if SCRIPT and width in (390, 768, 1280):
                b.value(SCRIPT + ";1")
                found = b.value("axe.run().then((r) => r.violations.map((v) => v.id + ' ' + v.nodes[0].html.slice(0, 90)))")
                check("axe finds nothing: " + at, found == [], found)
    b.call("Emulation.setEmulatedMedia", features=[{"name": "forced-colors", "value": "active"}])
    check("forced colors keep the map: " + what, b.value("getComputedStyle(document.querySelector('.heat td[data-h]')).backgroundColor") not in ("rgb(0, 0, 0)", "rgb(255, 255, 255)"))
    b.call("Emulation.setEmulatedMedia", media="print", features=[])
    check("four heads on paper: " + what, b.value("[...document.querySelectorAll('.still, .fixed')].every((e) => getComputedStyle(e).display !== 'none') && getComputedStyle(document.querySelector('.pick')).display === 'none'"))
    b.call("Emulation.setEmulatedMedia", media="", features=[])
    pages = len(re.findall(rb"/Type\s*/Page\b", __import__("base64").b64decode(b.call("Page.printToPDF", printBackground=True)["data"])))
    check("it prints: " + what, 3 <= pages <= 20, pages)


def choosing(b, page):
    b.size(1280, 900)
    b.open(page)
    which = lambda: b.value("document.getElementById('which').textContent")
    image = lambda i: b.value("document.getElementById('c%d').toDataURL()" % i)
    check("the median head comes first", which().endswith("(the median head)"), which())
    check("the figures of the script take the place of the still ones", b.value("getComputedStyle(document.querySelector('.still')).display") == "none")
    before = image(1)
    b.value("document.getElementById('layer').focus(), 1")
    for _ in range(3):
        b.key("ArrowLeft")
    b.key("ArrowRight")
    check("the arrow keys choose a layer", "layer 1," in which(), which())
    b.value("document.getElementById('head').focus(), 1")
    for _ in range(3):
        b.key("ArrowRight")
    check("and a head", "layer 1, head 3" in which(), which())
    check("another one looks different", image(1) != before)
    b.value("document.querySelector('#moments input').click(), 1")
    check("a moment", "before training" in which(), which())
    error = b.value("document.querySelector('td[data-h=\"0.1.3\"][data-m=start]').textContent")
    check("its error is that of the map", which().endswith("error " + error), which(), error)
    check("the address keeps it", b.value("location.hash") == "#r=0&l=1&h=3&m=start", b.value("location.hash"))
    b.call("Page.reload")
    b.wait("document.readyState === 'complete' && document.getElementById('which').textContent", 30)
    check("for the page that is loaded again", "layer 1, head 3, before training" in which(), which())
    b.value("document.querySelector('td[data-h=\"0.2.0\"][data-m=stage2]').click(), 1")
    check("a click on the map chooses", "layer 2, head 0, after stage 2" in which(), which())
    b.value("document.getElementById('c1').focus(), 1")
    for _ in range(6):
        b.key("ArrowDown")
    said = b.value("document.getElementById('say').textContent")
    check("a row says what it reads", said.startswith("Row 5: ") and "teacher reads" in said and "student reads" in said, said)


def still(b, page):
    b.call("Emulation.setScriptExecutionDisabled", value=True)
    b.open(page)
    check("without its script a head stands there", b.value("getComputedStyle(document.querySelector('.still')).display") != "none")
    check("and no controls do", b.value("getComputedStyle(document.getElementById('pick')).display") == "none")
    b.call("Emulation.setScriptExecutionDisabled", value=False)


def main():
    global SCRIPT
    if not browser.program():
        print("report: 0 passed, 0 failed (skipped: no Chromium)")
        return 0
    SCRIPT = axe()
    one, several = ["file://" + os.path.abspath(p) for p in write()]
    b = browser.Browser(1280, 900)
    try:
        looking(b, one, "a run")
        looking(b, several, "several")
        choosing(b, one)
        still(b, one)
        check("three runs to choose from", b.value("document.querySelectorAll('#run').length") == 0)
        b.open(several)
        check("in the other", b.value("document.querySelectorAll('#run option').length") == 3)
        b.value("document.getElementById('run').value = 2, document.getElementById('run').dispatchEvent(new Event('change')), 1")
        check("the third one", b.value("document.getElementById('which').textContent").startswith("three, layer"), b.value("document.getElementById('which').textContent"))
        check("a dot for each of two seeds", b.value("document.querySelectorAll('.dots circle').length") == 4)
        check("the console is empty", b.console == [] and b.errors == [], b.console, b.errors)
        away = sorted({u for u in b.requests if not u.startswith(("file:", "data:"))})
        check("nothing is asked of other machines", away == [], away)
    finally:
        b.close()
    print("report: %d passed, %d failed%s" % (passed, failed, "" if SCRIPT else " (1 skipped: no axe.min.js)"))
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
