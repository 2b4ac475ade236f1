"""A headless Chromium driven through its DevTools protocol over a pipe: the standard library is enough."""
import base64, functools, http.server, json, os, select, shutil, signal, subprocess, tempfile, threading, time

PROGRAMS = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"]
# key: (code, number, text)
KEYS = {"Tab": ("Tab", 9, ""), "Enter": ("Enter", 13, "\r"), " ": ("Space", 32, " "), "ArrowRight": ("ArrowRight", 39, ""), "ArrowLeft": ("ArrowLeft", 37, ""),
        "ArrowDown": ("ArrowDown", 40, ""), "Home": ("Home", 36, ""), "End": ("End", 35, ""), "Backspace": ("Backspace", 8, "")}


def program():
    return next((p for p in map(shutil.which, PROGRAMS) if p), None)


class Server:
    """Serves a folder on a free port of localhost and keeps the paths asked for."""

    def __init__(self, folder):
        log = self.log = []

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, form, *args):
                log.append(form % args)

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
        self.url = "http://localhost:%d/" % self.http.server_address[1]
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def close(self):
        self.http.shutdown()


class Browser:
    """One page and its workers. requests, console and errors collect what all of them did."""

    def __init__(self, width=1280, height=900, timeout=60):
        self.requests, self.console, self.errors, self.events = [], [], [], []
        self.timeout, self.number, self.buffer, self.answers = timeout, 0, b"", {}
        self.profile = tempfile.mkdtemp(prefix="mohawk-browser-")
        to_read, self.to = os.pipe()
        self.back, from_write = os.pipe()

        def pipes():  # the browser reads commands from descriptor 3 and answers on 4
            a, b = os.dup(to_read), os.dup(from_write)
            os.dup2(a, 3)
            os.dup2(b, 4)

        self.process = subprocess.Popen(
            [program(), "--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
             "--disable-extensions", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
             "--user-data-dir=" + self.profile, "--window-size=%d,%d" % (width, height), "about:blank"],
            preexec_fn=pipes, close_fds=False, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        os.close(to_read)
        os.close(from_write)
        page = next(t for t in self.call("Target.getTargets", session=None)["targetInfos"] if t["type"] == "page")
        self.page = self.call("Target.attachToTarget", session=None, targetId=page["targetId"], flatten=True)["sessionId"]
        self.listen(self.page)
        self.call("Page.enable")

    def listen(self, session):
        for domain in ["Network.enable", "Runtime.enable", "Log.enable"]:
            self.send(domain, session)
        self.send("Target.setAutoAttach", session, autoAttach=True, waitForDebuggerOnStart=True, flatten=True)
        self.send("Runtime.runIfWaitingForDebugger", session)

    def send(self, method, session, **parameters):
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self.to, data):]
        return self.number

    def receive(self, until):
        """Handles what has come until the time is over or something came."""
        while b"\0" not in self.buffer:
            wait = until - time.monotonic()
            if wait <= 0 or not select.select([self.back], [], [], wait)[0]:
                return
            part = os.read(self.back, 1 << 20)
            if not part:
                raise RuntimeError("the browser ended")
            self.buffer += part
        *messages, self.buffer = self.buffer.split(b"\0")
        for message in map(json.loads, messages):
            if "id" in message:
                self.answers[message["id"]] = message
                continue
            method, p = message.get("method"), message.get("params", {})
            if method == "Target.attachedToTarget":
                if message.get("sessionId"):
                    self.listen(p["sessionId"])
            elif method == "Network.requestWillBeSent":
                self.requests.append(p["request"]["url"])
            elif method == "Runtime.consoleAPICalled":
                self.console.append("%s: %s" % (p["type"], " ".join(str(a.get("value", a.get("description"))) for a in p["args"])))
            elif method == "Runtime.exceptionThrown":
                d = p["exceptionDetails"]
                self.errors.append(d.get("exception", {}).get("description") or d["text"])
            elif method == "Log.entryAdded":
                self.errors.append("%s: %s %s" % (p["entry"]["level"], p["entry"]["text"], p["entry"].get("url", "")))

    def call(self, method, session="page", **parameters):
        number = self.send(method, self.page if session == "page" else session, **parameters)
        until = time.monotonic() + self.timeout
        while number not in self.answers:
            if time.monotonic() > until:
                raise RuntimeError("no answer to %s within %d s" % (method, self.timeout))
            self.receive(until)
        answer = self.answers.pop(number)
        if "error" in answer:
            raise RuntimeError("%s: %s" % (method, answer["error"]["message"]))
        return answer["result"]

    def value(self, expression):
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError("%s: %s" % (expression, result["exceptionDetails"].get("exception", {}).get("description", "failed")))
        return result["result"].get("value")

    def wait(self, expression, seconds):
        """Seconds until the expression is true; None when it does not become true in time."""
        start = time.monotonic()
        while time.monotonic() - start < seconds:
            if self.value(expression):
                return time.monotonic() - start
            self.receive(time.monotonic() + 0.05)
        return None

    def open(self, url):
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'", self.timeout)

    def size(self, width, height, dark=False, calm=False, scale=1):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
                                                          {"name": "prefers-reduced-motion", "value": "reduce" if calm else "no-preference"}])
        self.value("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")

    def key(self, name, shift=False):
        code, number, text = KEYS.get(name, (name, 0, name))
        modifiers = 8 if shift else 0
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", key=name, code=code, windowsVirtualKeyCode=number, text=text, modifiers=modifiers)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=name, code=code, windowsVirtualKeyCode=number, modifiers=modifiers)

    def write(self, text):
        self.call("Input.insertText", text=text)

    def picture(self, path, top=0, height=None):
        height = height or self.value("document.documentElement.scrollHeight") - top
        width = self.value("document.documentElement.clientWidth")
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip={"x": 0, "y": top, "width": width, "height": height, "scale": 1})["data"]
        with open(path, "wb") as f:
            f.write(base64.b64decode(data))

    def close(self):
        try:
            self.send("Browser.close", None)
            self.process.wait(10)
        except (OSError, subprocess.TimeoutExpired):
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        os.close(self.to)
        os.close(self.back)
        shutil.rmtree(self.profile, ignore_errors=True)
