#!/usr/bin/env python3
"""Two servers behind deploy/haproxy.cfg: one is killed under load and comes back, the other drains.

usage: haproxy_test.py PROGRAM SOURCE_DIR

Every request that begins after the kill must succeed, and all of those during the drain; every
answer must be token-equal to the one that a server gave alone.
"""

import http.client
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

from server_tools import free_port

NUM_CLIENTS = 8
PROMPTS = [f"Story {i}: the caravan crossed the" for i in range(6)]
START_S = 120


def complete(port, prompt, is_stream):
    """Text and finish reason of one completion; raises when anything is not as it should be."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        body = {"prompt": prompt, "max_tokens": 12, "temperature": 0, "stream": is_stream}
        body["model"] = "camel-nano"
        connection.request(
            "POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"}
        )
        response = connection.getresponse()
        data = response.read().decode()
        if response.status != 200:
            raise RuntimeError(f"status {response.status}: {data[:200]}")
        if not is_stream:
            choice = json.loads(data)["choices"][0]
            return choice["text"], choice["finish_reason"]
        events = [line[6:] for line in data.splitlines() if line.startswith("data: ")]
        if not events or events[-1] != "[DONE]":
            raise RuntimeError(f"the stream ended after {len(events)} events")
        choices = [json.loads(event)["choices"][0] for event in events[:-1]]
        return "".join(choice["text"] for choice in choices), choices[-1]["finish_reason"]
    finally:
        connection.close()


def status_of(port, path="/health"):
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None


def check_names(front):
    """The front under any name, and pages of its own and of other origins."""
    failures = []
    for host, origin, wanted in (
        ("llm.example", None, 200),
        ("llm.example:8000", "http://llm.example:8000", 200),
        ("llm.example", "https://llm.example", 200),
        ("llm.example", "https://evil.example", 403),
        ("10.1.2.3", None, 200),
    ):
        connection = http.client.HTTPConnection("127.0.0.1", front, timeout=20)
        headers = {"Host": host, "Content-Type": "application/json"}
        if origin:
            headers["Origin"] = origin
        connection.request("POST", "/tokenize", '{"prompt": "a"}', headers)
        response = connection.getresponse()
        if response.status != wanted:
            failures.append(f"Host {host}, Origin {origin}: {response.status} {response.read()[:200]}")
        connection.close()
    return failures


def wait_for(condition, what, seconds=START_S):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"not within {seconds} s: {what}")
        time.sleep(0.1)


class Replica:
    def __init__(self, program, source, log):
        self.command = [program, "serve", "--model", f"{source}/models/camel-nano"]
        self.command += ["--threads", "1", "--max-num-seqs", "8", "--port"]
        self.port = free_port()
        self.log = log
        self.process = None

    def start(self):
        command = [*self.command, str(self.port)]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)

    def wait_until_ready(self):
        wait_for(lambda: status_of(self.port) == 200, f"health at port {self.port}")

    def stop(self, number=signal.SIGKILL):
        self.process.send_signal(number)
        return self.process.wait(timeout=60)


class Load:
    """Clients that ask without pause. Keeps (began, ended, error or None) of every request."""

    def __init__(self, port, wanted):
        self.port = port
        self.wanted = wanted
        self.requests = []
        self.is_over = threading.Event()
        self.threads = [threading.Thread(target=self.ask, args=(i,)) for i in range(NUM_CLIENTS)]
        for thread in self.threads:
            thread.start()

    def ask(self, client):
        count = client
        while not self.is_over.is_set():
            prompt = PROMPTS[count % len(PROMPTS)]
            began, error = time.monotonic(), None
            try:
                got = complete(self.port, prompt, is_stream=count % 2 == 0)
                if got != self.wanted[prompt]:
                    error = f"another answer: {got}, wanted {self.wanted[prompt]}"
            except (OSError, http.client.HTTPException, RuntimeError, ValueError) as e:
                error = f"{type(e).__name__}: {e}"
            self.requests.append((began, time.monotonic(), error))
            count += 1

    def end(self):
        self.is_over.set()
        for thread in self.threads:
            thread.join()

    def errors(self, began_after, began_before=float("inf")):
        requests = [r for r in self.requests if began_after <= r[0] < began_before]
        return len(requests), [error for _, _, error in requests if error]


def main():
    program, source = sys.argv[1], pathlib.Path(sys.argv[2])
    if shutil.which("haproxy") is None:
        print("haproxy is not installed: apt-get install haproxy")
        sys.exit(77)
    with tempfile.TemporaryDirectory() as work, open(f"{work}/log", "w+b") as log:
        first, second = Replica(program, source, log), Replica(program, source, log)
        proxy = None
        try:
            for server in (first, second):
                server.start()
            for server in (first, second):
                server.wait_until_ready()
            wanted = {prompt: complete(first.port, prompt, False) for prompt in PROMPTS}
            front = free_port()
            environment = {
                **os.environ,
                "CARAVAN_FRONT": f"127.0.0.1:{front}",
                "CARAVAN_SERVER_1": f"127.0.0.1:{first.port}",
                "CARAVAN_SERVER_2": f"127.0.0.1:{second.port}",
            }
            # presetenv leaves what the environment has.
            command = ["haproxy", "-db", "-f", source / "deploy/haproxy.cfg"]
            proxy = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            wait_for(lambda: status_of(front) == 200, "HAProxy")
            failures = check_names(front)
            failures += exercise(first, second, Load(front, wanted))
            if failures:
                log.seek(0)
                print(log.read()[-4000:].decode(errors="replace"))
        finally:
            for process in (first.process, second.process, proxy):
                if process is not None and process.poll() is None:
                    process.kill()
                    process.wait()
    sys.exit("\n".join(failures) if failures else 0)


def exercise(first, second, load):
    """Kills, starts again, drains; returns what was wrong."""
    failures = []

    def check(name, began_after, began_before=float("inf"), may_fail=0):
        count, errors = load.errors(began_after, began_before)
        print(f"{name}: {count} requests, {len(errors)} failed")
        if count < NUM_CLIENTS:
            failures.append(f"{name}: only {count} requests: no load")
        if len(errors) > may_fail:
            failures.append(f"{name}: {len(errors)} of {count} failed: {errors[:3]}")

    began = time.monotonic()
    time.sleep(3)
    killed = time.monotonic()
    first.stop(signal.SIGKILL)
    time.sleep(4)
    first.start()
    first.wait_until_ready()
    time.sleep(3)  # HAProxy sees it at its next check
    drained = time.monotonic()
    status = second.stop(signal.SIGTERM)
    if status != 0:
        failures.append(f"SIGTERM: exit status {status}")
    time.sleep(3)
    load.end()
    # What the killed server was answering is lost: at most one request a client.
    check("before the kill", began, killed, may_fail=NUM_CLIENTS)
    check("after the kill, and with the server back", killed + 0.05, drained)
    check("while the other one drained, and after", drained)
    return failures


if __name__ == "__main__":
    main()
