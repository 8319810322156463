#!/usr/bin/env python3
"""`caravan serve` as its users start and stop it: flags, loading, draining, templates.

usage: serve_cli_test.py PROGRAM SOURCE_DIR
"""

import http.client
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "cli"))
from cli_tools import Checker, run
from server_tools import Server, free_port

# 29 million parameters of random weights: long enough to load that a client sees it loading.
LOADING_CONFIG = {"n_embd": 512, "n_layer": 8, "n_head": 8, "n_inner": 2048}


def check_refusals(check, model, directory):
    """What is wrong on the command line is said before anything is loaded."""
    serve = ["serve", "--model", model, "--port", free_port()]
    check.refuses(64, "--insecure-no-auth", *serve, "--host", "0.0.0.0")
    check.refuses(66, "no such file", *serve, "--chat-template", directory / "none")
    bad = directory / "bad.txt"
    bad.write_text("{assistant} before {user}")
    check.refuses(65, "{user}", *serve, "--chat-template", bad)
    empty = directory / "keys.txt"
    empty.write_text("\n\n")
    check.refuses(64, "no key in it", *serve, "--api-key-file", empty)
    check.refuses(64, "--api-key: empty", *serve, "--api-key=", "--reuse-port")
    check.refuses(64, "--api-key: empty", *serve, "--api-key=")
    check.refuses(64, "'-'", *serve, "--api-key=--reuse-port")
    check.refuses(64, "'#'", *serve, "--api-key", "#comment-0123456789")
    check.refuses(64, "blanks", *serve, "--api-key", "two words 0123456789")
    check.refuses(64, "16", *serve, "--host", "0.0.0.0", "--api-key", "too-short")
    for host in ("127.example.org", "127.0.0.1.nip.io", "localhost.evil.example"):
        check.refuses(64, "--insecure-no-auth", *serve, "--host", host)
    keys = directory / "bad-keys.txt"
    keys.write_text("# the first\n\n  good-key-0123456789 \nno good\n")
    check.refuses(64, "line 4", *serve, "--api-key-file", keys)
    for flag, value in (("--timeout", "nan"), ("--timeout", "inf"), ("--timeout", -5),
                        ("--drain-timeout", "nan"), ("--watchdog-s", "nan"), ("--min-rate", -1),
                        ("--min-rate", "nan"), ("--timeout", "")):
        result = run(check.program, *serve, f"{flag}={value}")
        check.expect(result.returncode == 64 and flag in result.stderr and len(result.stderr) < 300,
                     f"{flag}={value}: {result.returncode} {result.stderr}")
    for prefix in ("9bad{", "a b", "", "a-b", "\u00e9"):
        check.refuses(64, "--metrics-prefix", *serve, f"--metrics-prefix={prefix}")
    check.refuses(64, "--http-memory", *serve, "--http-memory", "none")
    file = directory / "precious.sock"
    file.write_text("kept")
    check.refuses(74, str(file), *serve, "--host", file)
    check.expect(file.read_text() == "kept", "--host FILE.sock removed the file")
    named = directory / os.fsdecode(b"n\xff\xfeo")
    shutil.copytree(model, named)
    check.refuses(64, "UTF-8", "serve", "--model", named)
    check.refuses(64, "UTF-8", *serve, "--served-model-name", "a\nb")
    check.refuses(64, "5000", *serve, "--max-model-len", 5000)
    check.refuses(64, "--kv-cache-dtype q3", *serve, "-ctk", "q3")
    check.refuses(66, "no such directory", "serve", "--model", directory / "none")


def check_loading(check, model, directory):
    """The server answers 503 while it loads, and 200 after; a signal meanwhile ends it at once."""
    slow = directory / "slow"
    slow.mkdir()
    for path in model.iterdir():
        if path.suffix in (".json", ".txt"):
            shutil.copy(path, slow)
    config = json.loads((model / "config.json").read_text())
    (slow / "config.json").write_text(json.dumps({**config, **LOADING_CONFIG}))
    server = Server(check.program, slow, "--load-format", "dummy", "--max-num-seqs", 2)
    server.start()
    seen = []
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and 200 not in seen and server.process.poll() is None:
        try:
            status, _, body = server.get("/health")
        except OSError:
            time.sleep(0.002)
            continue
        seen.append(status)
        if status == 503:
            check.expect("Loading model" in json.loads(body)["error"]["message"], body)
            check.expect(server.get("/v2/health/live")[0] == 200, "alive while loading")
    check.expect(503 in seen and seen[-1] == 200, f"statuses while loading: {set(seen)}")
    server.__exit__()
    check.expect(server.process.returncode == 0, f"exit {server.process.returncode}: {server.log}")
    server.start()
    while server.process.poll() is None:
        try:
            check.expect(server.get("/health")[0] == 503, "still loading")
            break
        except OSError:
            time.sleep(0.002)
    server.process.send_signal(signal.SIGTERM)
    check.expect(server.process.wait(timeout=30) == 0, "a signal while loading ends with 0")


def read_stream(response):
    """(text, finish_reason, whether [DONE] came) of what is left of a stream."""
    text, reason, is_done = "", None, False
    for line in response:
        if line.startswith(b"data: [DONE]"):
            is_done = True
        elif line.startswith(b"data: "):
            event = json.loads(line[6:])
            if "error" in event:
                return text, event["error"]["message"], is_done
            text += event["choices"][0]["text"]
            reason = event["choices"][0]["finish_reason"] or reason
    return text, reason, is_done


def start_stream(server, num_tokens):
    """A response whose first event has come."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    body = {"prompt": "The sea", "max_tokens": num_tokens, "temperature": 0, "stream": True,
            "ignore_eos": True}
    connection.request("POST", "/v1/completions", json.dumps(body),
                       {"Content-Type": "application/json"})
    response = connection.getresponse()
    first = json.loads(response.readline()[6:])["choices"][0]["text"]
    return connection, response, first


def check_draining(check, model):
    """SIGTERM lets what runs finish; a second one does not wait."""
    with Server(check.program, model) as server:
        whole = server.post("/v1/completions", {"prompt": "The sea", "max_tokens": 400,
                                                "temperature": 0, "ignore_eos": True})[1]
        connection, response, first = start_stream(server, 400)
        server.process.send_signal(signal.SIGTERM)
        text, reason, is_done = read_stream(response)
        connection.close()
        check.expect(is_done and reason == "length", f"a drained stream: {reason} {is_done}")
        check.expect(first + text == whole["choices"][0]["text"], "the text of a drained stream")
        check.expect(server.process.wait(timeout=30) == 0, "exit status after draining")
    with Server(check.program, model) as server:
        connection, response, _ = start_stream(server, 900)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        start = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(timeout=30)
        check.expect(time.monotonic() - start < 5, "a second signal does not wait")
        connection.close()
    with Server(check.program, model) as server:
        start = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        status = server.process.wait(timeout=30)
        check.expect(status == 0 and time.monotonic() - start < 5, "an idle server ends at once")


def check_access(check, model, directory):
    """Keys of a file with comments; names given as one list; a relative Unix socket."""
    keys = directory / "keys.txt"
    keys.write_text("# rotated in May\n\n  first-key-0123456789\t\r\nsecond-key-0123456789\n")
    with Server(check.program, model, "--api-key-file", keys, "--allowed-host", "a.example, b.example",
                "--timeout", 0) as server:
        for key, wanted in (("first-key-0123456789", 200), ("second-key-0123456789", 200),
                            ("# rotated in May", 401), ("", 401)):
            for path in ("/v1/models", "/v1/models/", "//v1/models"):
                status = server.request("GET", path, headers={"Authorization": f"Bearer {key}"})[0]
                check.expect(status == wanted, f"{path} with key {key!r}: {status}")
        for host, wanted in (("a.example", 200), ("b.example:80", 200), ("c.example", 403)):
            status = server.request("GET", "/health", headers={"Host": host})[0]
            check.expect(status == wanted, f"Host {host}: {status}")
        status, _, text = server.request(
            "POST", "/v1/completions", {"prompt": "a", "max_tokens": 1},
            {"Authorization": "Bearer first-key-0123456789"})
        check.expect(status == 200, f"--timeout 0 is no limit: {status} {text[:200]}")
    program, path = pathlib.Path(check.program).resolve(), model.resolve()
    process = subprocess.Popen([program, "serve", "--model", path, "--host", "s.sock"],
                               cwd=directory, stderr=subprocess.DEVNULL)
    answer = b""
    for _ in range(600):
        time.sleep(0.05)
        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(directory / "s.sock"))
                client.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
                answer = client.recv(100)
        except OSError:
            continue
        if b" 503 " not in answer[:13]:
            break
    process.send_signal(signal.SIGTERM)
    check.expect(answer.startswith(b"HTTP/1.1 200"), f"a relative socket path: {answer}")
    check.expect(process.wait(timeout=60) == 0, "the server at a socket ends with 0")


def check_unread_log(check, model):
    """Nobody reads stderr: requests, SIGTERM and the end go on; what is dropped is counted."""
    reader, writer = os.pipe()
    port = free_port()
    process = subprocess.Popen([check.program, "serve", "--model", model, "--port", str(port)],
                               stderr=writer)
    os.close(writer)
    log = b""
    while b"ready:" not in log:
        log += os.read(reader, 65536)
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def get(path):
        client.request("GET", path)
        response = client.getresponse()
        return response.status, response.read().decode()

    for _ in range(20):
        check.expect(get("/health")[0] == 200, "health")
    dropped = 0
    for i in range(12000):
        status, _ = get("/" + "n" * 200)
        check.expect(status == 404, f"request {i} with an unread log: {status}")
        if i % 1000 == 999:
            dropped = int(re.search(r"dropped_log_lines_total\{.*\} (\d+)", get("/metrics")[1])[1])
            if dropped > 0:
                break
    check.expect(dropped > 0, "dropped lines are counted")
    process.send_signal(signal.SIGTERM)
    check.expect(process.wait(timeout=60) == 0, "SIGTERM with an unread log")
    while data := os.read(reader, 65536):
        log += data
    os.close(reader)
    check.expect(log.count(b"/health") <= 1, "polled routes do not fill the log")


def check_stop_and_go(check, model):
    """SIGSTOP for longer than --watchdog-s is no hang."""
    with Server(check.program, model, "--watchdog-s", 5) as server:
        connection, response, _ = start_stream(server, 900)
        server.process.send_signal(signal.SIGSTOP)
        time.sleep(8)
        server.process.send_signal(signal.SIGCONT)
        _, reason, is_done = read_stream(response)
        connection.close()
        check.expect(is_done and reason == "length", f"after SIGCONT: {reason} {is_done}")
        check.expect(server.process.poll() is None, "after SIGCONT the server goes on")


def check_answers(check, model, directory):
    """Flags that change answers."""
    template = directory / "template.txt"
    template.write_text("S={system}\nU={user};A={assistant};<|endoftext|>\n")
    flags = ["--chat-template", template, "--overflow", "head", "--max-model-len", 32,
             "--metrics-prefix", "nano", "--no-enable-prefix-caching", "-np", 3]
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "<|endoftext|>"},
                {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    with Server(check.program, model, *flags) as server:
        _, chat = server.post("/tokenize", {"messages": messages})
        _, text = server.post("/detokenize", {"tokens": chat["tokens"]})
        check.expect(text["prompt"] == "S=s\nU=<|endoftext|>;A=b;<|endoftext|>\nU=c;A=", text)
        check.expect(chat["tokens"].count(50256) == 1, f"one special token: {chat['tokens']}")
        status, cut = server.post("/v1/completions", {"prompt": list(range(100, 200)),
                                                      "max_tokens": 2, "return_token_ids": True})
        check.expect(status == 200, f"--overflow head: {cut}")
        check.expect(cut["choices"][0]["prompt_token_ids"] == list(range(170, 200)), "the head goes")
        check.expect(cut["caravan"]["num_dropped_tokens"] == 70, "and is reported")
        status, refused = server.post("/v1/completions", {"prompt": list(range(100, 200)),
                                                          "overflow": "reject"})
        check.expect(refused["error"]["code"] == "context_length_exceeded", str(refused))
        metrics = server.get("/metrics")[2].decode()
        check.expect("nano:num_requests_running{" in metrics, "--metrics-prefix")
        check.expect('model_name="camel-nano"' in metrics, "the model's name is its directory's")
        check.expect("nano:prefix_cache_hits_total{model_name=\"camel-nano\",engine=\"0\"} 0\n"
                     in metrics, "--no-enable-prefix-caching")
        seeded = {"prompt": "The sea", "max_tokens": 16, "temperature": 1, "seed": 9}
        texts = [server.post("/v1/completions", seeded)[1]["choices"][0]["text"] for _ in range(3)]
        check.expect(len(set(texts)) == 1, "one seed, one text")
        free = {**seeded, "seed": None, "n": 4}
        texts = [c["text"] for c in server.post("/v1/completions", free)[1]["choices"]]
        check.expect(len(set(texts)) > 1, "without a seed texts differ")
    check.expect("3 sequences at once" in server.log, f"-np: {server.log}")


def main():
    program, source = sys.argv[1], pathlib.Path(sys.argv[2])
    model = source / "models" / "camel-nano"
    check = Checker(program)
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        check_refusals(check, model, directory)
        check_loading(check, model, directory)
        check_draining(check, model)
        check_answers(check, model, directory)
        check_access(check, model, directory)
        check_unread_log(check, model)
        check_stop_and_go(check, model)
    for failure in check.failures:
        print(failure, file=sys.stderr)
    return 1 if check.failures else 0


if __name__ == "__main__":
    sys.exit(main())
