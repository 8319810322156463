"""A headless Chromium driven over WebDriver (W3C) with the standard library alone."""

import base64
import json
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
KEYS = {"Control": "\ue009", "Alt": "\ue00a", "Enter": "\ue007", "Escape": "\ue00c", "Tab": "\ue004",
        "Right": "\ue014", "Left": "\ue012", "Backspace": "\ue003"}  # fmt: skip


def find_programs():
    """(chromium, chromedriver), or None when this machine lacks one."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    return (chromium, driver) if chromium and driver else None


class Browser:
    """One window. Use as a context manager; `close` ends the browser and its driver."""

    def __init__(self, programs, width=1280, height=860, is_dark=False, downloads=None):
        chromium, driver = programs
        self.profile = tempfile.TemporaryDirectory(
            prefix="caravan-browser-", ignore_cleanup_errors=True
        )
        self.driver = subprocess.Popen(
            [driver, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.base = None
        for line in self.driver.stdout:
            match = re.search(r"started successfully on port (\d+)", line)
            if match:
                self.base = f"http://127.0.0.1:{match[1]}"
                break
        if not self.base:
            raise RuntimeError("chromedriver did not start")
        arguments = [
            *("--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"),
            *("--no-first-run", "--disable-background-networking", "--lang=en"),
            f"--user-data-dir={self.profile.name}",
            f"--window-size={width},{height}",
            *(["--no-sandbox"] if os.geteuid() == 0 else []),
            *(["--blink-settings=preferredColorScheme=0"] if is_dark else []),
        ]
        options = {"binary": chromium, "args": arguments}
        if downloads:
            options["prefs"] = {"download.default_directory": str(downloads)}
        always = {"browserName": "chrome", "goog:chromeOptions": options,
                  "goog:loggingPrefs": {"browser": "ALL"}}  # fmt: skip
        try:
            reply = self.call("POST", "/session", {"capabilities": {"alwaysMatch": always}})
            self.base += f"/session/{reply['sessionId']}"
            self.resize(width, height)
        except Exception:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        try:
            if "/session/" in (self.base or ""):
                self.call("DELETE", "")
        except OSError:
            pass
        self.driver.terminate()
        self.driver.wait(10)
        self.driver.stdout.close()
        self.profile.cleanup()

    def call(self, method, path, body=None):
        data = json.dumps(body if body is not None else {}).encode() if method == "POST" else None
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.base + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return json.load(response)["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{method} {path}: {json.load(error)['value']['message']}") from None

    def resize(self, width, height):
        """The size of the page itself, below the widths that windows allow too."""
        self.devtools("Emulation.setDeviceMetricsOverride", width=width, height=height,
                      deviceScaleFactor=1, mobile=width < 600)  # fmt: skip

    def devtools(self, command, **params):
        return self.call("POST", "/goog/cdp/execute", {"cmd": command, "params": params})

    def open(self, url):
        self.call("POST", "/url", {"url": url})

    def js(self, script, *arguments):
        """The value of `return ...` in the page."""
        return self.call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def find(self, css):
        return self.call("POST", "/element", {"using": "css selector", "value": css})[ELEMENT]

    def click(self, css):
        self.call("POST", f"/element/{self.find(css)}/click")

    def type(self, css, text):
        self.call("POST", f"/element/{self.find(css)}/value", {"text": text})

    def clear(self, css):
        self.call("POST", f"/element/{self.find(css)}/clear")

    def press(self, *names):
        """Keys held down together, the last one pressed: press("Control", "Enter")."""
        values = [KEYS.get(name, name) for name in names]
        actions = [{"type": "keyDown", "value": v} for v in values]
        actions += [{"type": "keyUp", "value": v} for v in reversed(values)]
        keys = {"type": "key", "id": "keys", "actions": actions}
        self.call("POST", "/actions", {"actions": [keys]})

    def hover(self, css):
        origin = {ELEMENT: self.find(css)}
        move = {"type": "pointerMove", "duration": 0, "origin": origin, "x": 0, "y": 0}
        mouse = {"type": "pointer", "id": "mouse", "actions": [move]}
        mouse["parameters"] = {"pointerType": "mouse"}
        self.call("POST", "/actions", {"actions": [mouse]})

    def text(self, css):
        """textContent of the first element, or None."""
        return self.js("return document.querySelector(arguments[0])?.textContent ?? null", css)

    def wait(self, condition, what, seconds=20.0):
        """Waits until the JavaScript expression holds; returns its value."""
        deadline = time.monotonic() + seconds
        while True:
            value = self.js(f"return {condition}")
            if value:
                return value
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {seconds} s: {what} ({condition})")
            time.sleep(0.03)

    def console(self):
        """What the page wrote to the console since the last call, policy violations included."""
        return self.call("POST", "/se/log", {"type": "browser"})

    def screenshot(self, path):
        pathlib.Path(path).write_bytes(base64.b64decode(self.call("GET", "/screenshot")))
