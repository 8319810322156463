"""`caravan bench serve` on `caravan serve`, and on servers that answer wrongly in every way.

usage: bench_serve_test.py CARAVAN SOURCE_DIR
"""

import json
import pathlib
import re
import resource
import socketserver
import subprocess
import sys
import tempfile
import threading
import time

from server_tools import Server

CRLF = "\r\n"
failures = []


def check(is_right, message):
    if not is_right:
        failures.append(str(message))


def bench(program, url, *flags, status=0, as_json=True, before=()):
    """The JSON object, or the block of lines, of a run that must end with this status.

    `before` stands between the program and its arguments.
    """
    command = [program, *before, "--quiet", "bench", "serve", "--base-url", url, *map(str, flags)]
    result = subprocess.run(
        command + ["--json"] * as_json, capture_output=True, text=True, timeout=120, check=False
    )
    check(result.returncode == status, f"{flags}: status {result.returncode}: {result.stderr}")
    if not as_json:
        return result.stdout
    return json.loads(result.stdout) if result.stdout else {"stderr": result.stderr}


def event(data):
    return f"data: {json.dumps(data) if not isinstance(data, str) else data}\n\n"


def text_event(text, **more):
    return event({"choices": [{"index": 0, "text": text, **more}]})


class FakeServer:
    """Answers each request by what `answer(request body, send, count)` sends; `send` takes text.

    answer returns False to close the connection afterwards. `count` is the number of the request.
    """

    HEAD = f"HTTP/1.1 200 OK{CRLF}Content-Type: text/event-stream{CRLF}"

    def __init__(self, answer):
        self.bodies = []
        self.num_connections = 0
        outer = self

        class Handler(socketserver.StreamRequestHandler):
            disable_nagle_algorithm = True

            def handle(self):
                outer.num_connections += 1
                while self.rfile.readline():
                    headers = {}
                    while (line := self.rfile.readline().strip()) != b"":
                        name, _, value = line.decode().partition(":")
                        headers[name.lower()] = value.strip()
                    body = json.loads(self.rfile.read(int(headers["content-length"])))
                    outer.bodies.append((headers, body))
                    try:
                        if answer(body, self.send, len(outer.bodies)) is False:
                            return
                    except OSError:
                        return

            def send(self, text):
                self.wfile.write(text.encode())
                self.wfile.flush()

        class Threads(socketserver.ThreadingTCPServer):
            daemon_threads = True
            request_queue_size = 2048

        self.server = Threads(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


def whole(body):
    return f"{FakeServer.HEAD}Content-Length: {len(body.encode())}{CRLF * 2}{body}"


def test_figures(program):
    """Times that the server sets, an answer in pieces of one byte, chunked, without usage."""

    def answer(_, send, __):
        send(f"{FakeServer.HEAD}Transfer-Encoding: chunked{CRLF * 2}")
        time.sleep(0.2)
        for i in range(4):
            if i > 0:
                time.sleep(0.1)
            for byte in f": ping\n\n{text_event(f'a{i}')}":
                send(f"1{CRLF}{byte}{CRLF}")
        last = event("[DONE]")
        send(f"{len(last):x}{CRLF}{last}{CRLF}0{CRLF * 2}")

    flags = ["--num-prompts", 6, "--max-concurrency", 2, "--random-input-len", 3, "--model", "m"]
    with FakeServer(answer) as fake:
        figures = bench(program, fake.url, *flags, "--api-key", "secret")
        check(fake.num_connections == 2, f"{fake.num_connections} connections, expected 2")
        headers, body = fake.bodies[0]
        check(headers.get("authorization") == "Bearer secret", headers)
        check(len(body["prompt"]) == 3 and body["model"] == "m" and body["stream"], body)
    check(figures["completed"] == 6 and figures["failed"] == 0, figures)
    check(figures["total_output_tokens"] == 24, figures)  # counted by events
    # No time is shorter than the server's sleeps; a busy machine makes them longer.
    check(figures["median_ttft_ms"] >= 200, figures)
    check(100 <= figures["median_itl_ms"] <= figures["p99_itl_ms"], figures)
    check(figures["median_tpot_ms"] >= 100 and figures["median_e2el_ms"] >= 500, figures)
    check(figures["median_ttft_ms"] < figures["median_e2el_ms"] - 290, figures)
    check(figures["duration"] >= 1.5, figures)  # three after each other


def test_usage(program):
    """The server's own counts win; tokens without text have a time to the first token too."""

    def answer(_, send, __):
        time.sleep(0.1)
        usage = {"prompt_tokens": 7, "completion_tokens": 2}
        stream = text_event("", finish_reason="stop") + event({"choices": [], "usage": usage})
        send(whole(stream + event("[DONE]")))

    with FakeServer(answer) as fake:
        figures = bench(program, fake.url, "--num-prompts", 3)
    check(figures["total_input_tokens"] == 21 and figures["total_output_tokens"] == 6, figures)
    check(figures["mean_ttft_ms"] >= 100, figures)


def test_failures(program):
    """Each kind is counted under its own name, the good ones beside it are measured."""
    good = text_event("a") + event("[DONE]")
    refusal = '{"error":{"message":"full"}}'

    def answer(body, send, _):
        kind = body["prompt"]
        if kind == "busy":
            head = f"HTTP/1.1 429 Too Many Requests{CRLF}Content-Length: {len(refusal)}"
            send(f"{head}{CRLF * 2}{refusal}")
        elif kind == "event":
            send(whole(text_event("a") + event({"error": {"message": "engine failed"}})))
        elif kind == "json":
            send(whole(event("{no json") + event("[DONE]")))
        elif kind == "undone":
            send(whole(text_event("a")))
        elif kind == "empty":
            send(whole(event("[DONE]")))
        elif kind == "cut":
            send(f"{FakeServer.HEAD}Content-Length: 1000{CRLF * 2}{text_event('a')}")
            return False
        elif kind == "noise":
            send("this is no HTTP\n\n")
            return False
        elif kind == "slow":
            time.sleep(3)
        else:
            send(whole(good))

    kinds = ["busy", "event", "json", "undone", "empty", "cut", "noise", "slow", "good"]
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as prompts, FakeServer(answer) as fake:
        prompts.writelines(json.dumps({"prompt": kind}) + "\n" for kind in kinds)
        prompts.flush()
        flags = ["--dataset-name", "jsonl", "--dataset-path", prompts.name, "--num-prompts", 18]
        figures = bench(program, fake.url, *flags, "--timeout", 1.5, status=1)
    check(figures["completed"] == 2 and figures["failed"] == 16, figures)
    errors = figures["errors"]
    check(sum(errors.values()) == 16, errors)
    for pattern in (
        "^status 429: .*full",
        "^error event: .*engine failed",
        "^event .no json",
        "without .DONE",
        "^no token came",
        "^receive: ",
        "^timeout$",
    ):
        found = [count for name, count in errors.items() if re.search(pattern, name)]
        wanted = 2 if not pattern.startswith("^receive") else 4
        check(sum(found) == wanted, f"{pattern}: {found} in {errors}")


def test_connections(program):
    """A server that closes idle connections fails nobody; an address without one fails all."""

    def answer(_, send, __):
        send(whole(text_event("a") + event("[DONE]")))
        return False  # although the response kept the connection alive

    with FakeServer(answer) as fake:
        figures = bench(program, fake.url, "--num-prompts", 20, "--max-concurrency", 2)
        check(figures["completed"] == 20, figures)
        url = fake.url
    figures = bench(program, url, "--num-prompts", 3, status=1)
    check(figures["failed"] == 3 and all("connect" in name for name in figures["errors"]), figures)


def test_repeats(program):
    """Answers that change are found, whichever way they are asked for."""

    def answer(_, send, count):
        send(whole(text_event("b" if count == 5 else "a") + event("[DONE]")))

    flags = ["--num-prompts", 9, "--max-concurrency", 1]
    for every, status in ((1, 1), (4, 1), (3, 0)):
        with FakeServer(answer) as fake:
            figures = bench(program, fake.url, *flags, "--canary-every", every, status=status)
        check(figures["unequal_repeats"] == status, f"every {every}: {figures}")


def test_many(program):
    """More than a thousand streams that are all open at the same time."""
    count = 1100
    everyone = threading.Barrier(count)
    # This process holds their other ends; the program gets the low limit and must raise it itself.
    low, high = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (high, high))

    def answer(_, send, __):
        everyone.wait(timeout=60)
        send(whole(text_event("a") + event("[DONE]")))

    with FakeServer(answer) as fake:
        flags = ["--num-prompts", count, "--random-input-len", 1, "--timeout", 100]
        before = ["-c", 'ulimit -S -n 256; exec "$@"', "sh", program]
        figures = bench("/bin/sh", fake.url, *flags, before=before)
    resource.setrlimit(resource.RLIMIT_NOFILE, (low, high))
    check(figures["completed"] == count, figures)


def test_caravan(program, root):
    """Against the real one: counts that the request fixes, and the block that vLLM prints."""
    model = pathlib.Path(root) / "models" / "camel-nano"
    flags = ["--num-prompts", 24, "--max-concurrency", 6, "--random-input-len", 20, "--ignore-eos"]
    flags += ["--random-output-len", 9, "--num-warmups", 1]
    with Server(program, model) as server:
        figures = bench(program, server.url, *flags, "--canary-every", 5)
        check(figures["completed"] == 24 and figures["unequal_repeats"] == 0, figures)
        check(figures["total_input_tokens"] == 480, figures)
        check(figures["total_output_tokens"] == 216, figures)
        check(0 < figures["median_ttft_ms"] <= figures["median_e2el_ms"], figures)
        chat = ["--endpoint", "/v1/chat/completions", "--request-rate", 50]
        figures = bench(program, server.url, *flags, *chat)
        check(figures["completed"] == 24 and figures["total_output_tokens"] == 216, figures)
        block = bench(program, server.url, *flags, "--goodput", "ttft:60000", as_json=False)
        check("Total input tokens:                      480       \n" in block, block)
        names = re.findall(r"^(?:Mean|Median|P99) (\w+) \(ms\):\s+\d+\.\d\d\s*$", block, re.MULTILINE)
        check(names == [n for n in ("TTFT", "TPOT", "ITL", "E2EL") for _ in range(3)], block)
        figures = bench(program, server.url, "--num-prompts", 2, "--model", "other", status=1)
        check(any("404" in name for name in figures["errors"]), figures)


def main():
    program, root = sys.argv[1:3]
    for test in (
        test_figures,
        test_usage,
        test_failures,
        test_connections,
        test_repeats,
        test_many,
    ):
        began = time.monotonic()
        test(program)
        print(f"{test.__name__}: {time.monotonic() - began:.1f} s", flush=True)
    test_caravan(program, root)
    for failure in failures:
        print(f"FAILED: {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
