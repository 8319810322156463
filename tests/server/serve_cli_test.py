#!/usr/bin/env python3
"""`caravan serve` as its users start and stop it: flags, loading, draining, templates.

usage: serve_cli_test.py PROGRAM SOURCE_DIR
"""

import http.client
import json
import pathlib
import shutil
import signal
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "cli"))
from cli_tools import Checker
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
            choice = json.loads(line[6:])["choices"][0]
            text += choice["text"]
            reason = choice["finish_reason"] or reason
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
    for failure in check.failures:
        print(failure, file=sys.stderr)
    return 1 if check.failures else 0


if __name__ == "__main__":
    sys.exit(main())
