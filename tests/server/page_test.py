#!/usr/bin/env python3
"""The page at / in a real Chromium, against a running server.

usage: page_test.py PROGRAM SOURCE_DIR
Skipped (77) where chromium or chromedriver is missing.
"""

import json
import sys
import time

from browser import Browser, find_programs
from server_tools import Server

KEY = "page-test-key"
PROMPT = "The sea was"
CANARY = "<img src=x onerror=\"window.hit=1\"><script>window.hit=1</script> <b>bold</b>"
SEND = ("Control", "Enter")
IDLE = "document.querySelector('#stop').hidden && document.querySelector('.answer')"


class PageTest:
    def __init__(self, server):
        self.server = server
        self.failures = []

    def expect(self, condition, what):
        if not condition:
            self.failures.append(what)

    def equal(self, got, wanted, what):
        self.expect(got == wanted, f"{what}: got {got!r}, wanted {wanted!r}")

    def ask(self, path, body):
        """The parsed answer of the API itself."""
        headers = {"Authorization": f"Bearer {KEY}"}
        status, _, data = self.server.request("POST", path, body, headers)
        if status != 200:
            sys.exit(f"{path}: {status}: {data[:300]}")
        return json.loads(data)

    def open(self, browser, is_keyed=True):
        browser.open(self.server.url + "/")
        browser.wait("document.querySelector('#examples button')", "the page")
        if is_keyed:
            browser.clear("#key")  # the tab may remember it
            browser.type("#key", KEY)
            browser.wait("document.getElementById('model').options.length > 0", "the models")

    def set(self, browser, name, value):
        """One of the settings, as its field would."""
        browser.js(
            "const f = document.querySelector(`#set-${arguments[0]}`);"
            "if (f.type === 'checkbox') f.checked = arguments[1] === 'on'; else f.value = arguments[1];"
            "f.dispatchEvent(new Event('input', {bubbles: true}))",
            name,
            str(value),
        )

    def send(self, browser, text):
        browser.js("document.querySelector('#prompt').focus()")
        browser.type("#prompt", text)
        browser.press(*SEND)

    def last_answer(self, browser):
        return browser.js(
            "const a = [...document.querySelectorAll('.answer .text')].at(-1);"
            "return [...a.childNodes].filter(n => !n.classList?.contains('given'))"
            ".map(n => n.textContent).join('')"
        )

    def policy_holds(self, browser, where):
        messages = [m["message"] for m in browser.console() if m["level"] != "INFO"]
        # The browser itself reports answers of 401; all else is a defect of the page.
        messages = [m for m in messages if "401" not in m]
        self.equal(messages, [], f"{where}: console")

    def without_a_key(self, browser):
        self.open(browser, is_keyed=False)
        self.send(browser, PROMPT)
        error = "document.querySelector('.answer .error')?.textContent"
        browser.wait(f"{error} || document.activeElement.id === 'key'", "a word about the key")
        self.expect(
            browser.js("return document.activeElement.id") == "key",
            "a refused request does not lead to the field of the key",
        )

    def completion(self, browser):
        """The streamed text is the API's, whatever is in it; then the same again."""
        self.open(browser)
        browser.click("input[name=mode][value=completion] + span")
        self.set(browser, "temperature", 0)
        self.set(browser, "max_tokens", 24)
        body = {"prompt": PROMPT, "max_tokens": 24, "temperature": 0}
        wanted = self.ask("/v1/completions", body)["choices"][0]["text"]
        self.send(browser, PROMPT)
        browser.wait(IDLE, "the end of the answer")
        self.equal(self.last_answer(browser), wanted, "text of a completion")
        self.equal(browser.text(".answer .given"), PROMPT, "the prompt before it")
        rate = browser.text("[data-stat='tokens/s'] b")
        self.expect(rate is not None and float(rate) > 0, f"tokens/s: {rate!r}")
        self.equal(browser.text("[data-stat=tokens] b"), "24", "tokens")
        browser.press("Alt", "r")
        browser.wait("document.querySelector('.pager')", "a second answer")
        browser.wait(IDLE, "its end")
        self.equal(self.last_answer(browser), wanted, "text of the answer regenerated")

    def probabilities(self, browser):
        """Hovering shows the token's probability, as the API gives it."""
        spans = browser.js("return document.querySelectorAll('.answer .tok').length")
        self.expect(spans >= 10, f"{spans} tokens that tell their probability")
        browser.hover(".answer .tok")
        browser.wait("!document.querySelector('#tip').hidden", "the probabilities of a token")
        body = {"prompt": PROMPT, "max_tokens": 1, "temperature": 0, "logprobs": 1}
        logprob = self.ask("/v1/completions", body)["choices"][0]["logprobs"]["token_logprobs"][0]
        shown = browser.text("#tip h3 span")
        wanted = 100 * 2.718281828459045**logprob
        self.expect(
            abs(float(shown.split()[0]) - wanted) < 0.11, f"probability {shown}, wanted {wanted} %"
        )

    def instruction(self, browser):
        """Chat through the model's template; markup in what was said and answered is only text."""
        self.open(browser)
        browser.js("document.querySelector('input[name=mode][value=chat]').click()")
        self.set(browser, "temperature", 0)
        self.set(browser, "max_tokens", 16)
        body = {"messages": [{"role": "user", "content": CANARY}]}
        body.update({"max_tokens": 16, "temperature": 0})
        wanted = self.ask("/v1/chat/completions", body)["choices"][0]["message"]["content"]
        self.send(browser, CANARY)
        browser.wait(IDLE, "the end of the answer")
        self.equal(self.last_answer(browser), wanted, "text of an answer")
        self.equal(browser.text(".said .text"), CANARY, "what was said")
        self.expect(browser.js("return window.hit === undefined"), "markup in the prompt was run")
        elements = ".turn img, .turn script, .turn b:not([data-stat] b)"
        self.expect(
            browser.js(f"return !document.querySelector('{elements}')"),
            "markup in the prompt became elements",
        )
        # Edit and send again.
        browser.click("[data-act=edit]")
        browser.wait("document.querySelector('.turn textarea')", "the field to edit in")
        browser.clear(".turn textarea")
        browser.type(".turn textarea", "Say hello.")
        browser.press(*SEND)
        said = "document.querySelector('.said .text').textContent"
        browser.wait(f"{IDLE} && {said} === 'Say hello.'", "the edit")
        body["messages"][0]["content"] = "Say hello."
        wanted = self.ask("/v1/chat/completions", body)["choices"][0]["message"]["content"]
        self.equal(self.last_answer(browser), wanted, "text of the answer after an edit")

    def echoed_markup(self, browser):
        """Markup that the *server* sends, as an echo, is text too."""
        browser.click("input[name=mode][value=completion] + span")
        self.set(browser, "echo", "on")
        self.set(browser, "max_tokens", 2)
        self.send(browser, CANARY)
        last = "[...document.querySelectorAll('.answer .text')].at(-1).textContent"
        browser.wait(f"{IDLE} && {last}.startsWith('<img')", "the echo")
        self.expect(self.last_answer(browser).startswith(CANARY), "the echo is not the prompt")
        elements = ".answer img, .answer script"
        self.expect(
            browser.js(f"return window.hit === undefined && !document.querySelector('{elements}')"),
            "markup from the server was run",
        )
        self.set(browser, "echo", "off")

    def stops(self, browser):
        """Escape ends an answer at once, and the server's request with it."""
        self.set(browser, "max_tokens", 900)
        self.set(browser, "ignore_eos", "on")
        self.send(browser, PROMPT)
        browser.wait("document.querySelectorAll('.answer.busy .tok').length > 3", "the first tokens")
        browser.press("Escape")
        browser.wait(IDLE, "the end after Escape", seconds=5)
        self.expect(len(self.last_answer(browser)) < 3000, "Escape did not stop the answer")
        ends = browser.js(
            "return [...document.querySelectorAll('[data-stat=finish]')].map(e => e.textContent)"
        )
        self.equal(ends[-1], "stopped", "how it ended")
        deadline = time.monotonic() + 10
        headers = {"Authorization": f"Bearer {KEY}"}
        while True:
            text = self.server.request("GET", "/metrics", headers=headers)[2].decode()
            lines = [line for line in text.splitlines() if "num_requests_running{" in line]
            if lines and float(lines[0].split()[-1]) == 0:
                break
            if time.monotonic() > deadline:
                self.failures.append(f"the stopped request still runs: {lines}")
                break
            time.sleep(0.1)

    def live_figures(self, browser):
        charts = "document.querySelectorAll('[data-chart] b')"
        browser.wait(f"[...{charts}].length >= 4", "four charts")
        browser.wait(f"[...{charts}].every(b => b.textContent !== '\\u2013')", "figures in all of them")

    def looks(self, programs):
        """Dark and light, wide and narrow: nothing wider than the window, the colours differ."""
        colours = {}
        for width, height, is_dark in [(1280, 860, False), (390, 844, True)]:
            with Browser(programs, width, height, is_dark) as browser:
                self.open(browser, is_keyed=False)
                colour = "return getComputedStyle(document.body).backgroundColor"
                colours[is_dark] = browser.js(colour)
                overflow = browser.js("return document.documentElement.scrollWidth - innerWidth")
                self.expect(overflow <= 0, f"{width} wide: {overflow} pixels too many")
                if is_dark:
                    continue
                before = colours[False]
                for _ in range(3):
                    browser.click("#theme")
                    if browser.js(colour) != before:
                        break
                else:
                    self.failures.append("the theme button changes nothing")
                browser.press("/")
                self.equal(browser.js("return document.activeElement.id"), "prompt", "after /")
        self.expect(colours[True] != colours[False], f"dark as light: {colours}")

    def only_this_origin(self, browser):
        names = browser.js(
            "return performance.getEntriesByType('resource').map(e => e.name)"
            ".filter(n => !n.startsWith(location.origin) && !n.startsWith('data:'))"
        )
        self.equal(names, [], "resources from elsewhere")


def main():
    programs = find_programs()
    if programs is None:
        print("chromium and chromedriver are not installed: apt-get install chromium chromium-driver")
        sys.exit(77)
    program, source = sys.argv[1:3]
    flags = ("--api-key", KEY, "--max-num-seqs", "4", "--no-request-log")
    with Server(program, f"{source}/models/camel-nano", *flags) as server:
        test = PageTest(server)
        with Browser(programs) as browser:
            test.without_a_key(browser)
        with Browser(programs) as browser:
            for step in (test.completion, test.probabilities, test.instruction, test.echoed_markup,
                         test.stops, test.live_figures, test.only_this_origin):  # fmt: skip
                step(browser)
                test.policy_holds(browser, step.__name__)
        test.looks(programs)
    sys.exit("\n".join(test.failures) or 0)


if __name__ == "__main__":
    main()
