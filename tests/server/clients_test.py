"""Clients that leave, do nothing or are slow, beside ones that work; keys on every route; SIGTERM.

usage: clients_test.py CARAVAN SOURCE_DIR [--disconnects N] [--idle N] [--terminations N]

The defaults suit a test run; a full one is 10000, 1000 and 20.
"""

import argparse
import http.client
import json
import os
import pathlib
import random
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "cli"))
from cli_tools import scaled  # noqa: E402
from server_tools import Server  # noqa: E402

CANARY = {"prompt": "The sea was", "max_tokens": 8, "temperature": 0, "return_token_ids": True}
failures = []


def check(is_right, message):
    if not is_right:
        failures.append(message)


def canary_ids(server):
    status, answer = server.post("/v1/completions", CANARY)
    return answer["choices"][0]["token_ids"] if status == 200 else f"status {status}: {answer}"


def raw_post(path, body, headers=""):
    text = json.dumps(body)
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{headers}"
        f"Content-Length: {len(text)}\r\n\r\n{text}"
    ).encode()


def metrics(server):
    """{name without labels: value} of the gauges and counters."""
    text = server.get("/metrics")[2].decode()
    return {m[1]: float(m[2]) for m in re.finditer(r"^vllm:(\w+)\{[^}]*\} (\S+)$", text, re.MULTILINE)}


def wait_until_idle(server):
    """Nothing runs or waits, and every block is free; what is left otherwise, after 20 s."""
    names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
    for _ in range(200):
        figures = metrics(server)
        left = {name: figures[name] for name in names if figures[name] != 0}
        if not left:
            return None
        time.sleep(0.1)
    return left


def resident_mib(server):
    status = pathlib.Path(f"/proc/{server.process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024


def num_fds(server):
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


def test_disconnects(server, count):
    """Clients leave at any moment, streaming or not: their blocks are free soon after."""
    canary, fds = canary_ids(server), num_fds(server)
    rng = random.Random(3)
    begin = time.monotonic()
    for first in range(0, count, 25):
        clients = []
        for i in range(first, min(first + 25, count)):
            client = socket.create_connection(("127.0.0.1", server.port), timeout=20)
            clients.append(client)
            path = "/v1/chat/completions" if i % 4 == 3 else "/v1/completions"
            body = {"max_tokens": 200, "stream": i % 2 == 0, "n": 1 + i % 3 // 2, "ignore_eos": True}
            if i % 4 == 3:
                body["messages"] = [{"role": "user", "content": f"Tell me of {i}."}]
            else:
                body["prompt"] = f"Chapter {i}. " + "It was late. " * rng.randrange(20)
            request = raw_post(path, body)
            if i % 11 == 0:
                request = request[: rng.randrange(len(request))]
            client.sendall(request)
        time.sleep(rng.random() * 0.02)
        for i, client in enumerate(clients):
            if i % 6 == 0:
                select.select([client], [], [], 0.05)
            if i % 3 == 0:  # RST
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.close()
    seconds = time.monotonic() - begin
    left = wait_until_idle(server)
    check(left is None, f"after {count} disconnects: {left}")
    check(canary_ids(server) == canary, "the canary's answer changed after disconnects")
    for _ in range(100):
        if num_fds(server) <= fds:
            break
        time.sleep(0.1)
    check(num_fds(server) <= fds, f"descriptors: {fds} before, {num_fds(server)} after")
    print(f"{count} disconnects in {seconds:.1f} s, blocks free again, {resident_mib(server):.0f} MiB")


def test_idle_and_slow(server, count, is_sanitized):
    """A third says nothing, a third sends its head slowly, a third its body; others are served."""
    canary, before = canary_ids(server), resident_mib(server)
    slow = []
    for i in range(count):
        client = socket.create_connection(("127.0.0.1", server.port), timeout=20)
        slow.append(client)
        if i % 3 == 1:
            client.sendall(b"GET /health HTTP/1.1\r\nX-Slow: ")
        elif i % 3 == 2:
            client.sendall(raw_post("/v1/completions", CANARY)[:-20])
    begin = time.monotonic()
    num_right, waits = 0, []
    while time.monotonic() - begin < 11:
        for i in range(1, count, 3):
            try:
                slow[i].send(b"x")
            except OSError:
                pass  # cut by now
        start = time.monotonic()
        check(canary_ids(server) == canary, "a canary beside slow clients")
        waits.append(time.monotonic() - start)
        num_right += 1
        time.sleep(0.05)
    growth = (resident_mib(server) - before) * 1024 / count
    # A sanitizer keeps what was freed.
    check(growth < 64 or is_sanitized, f"{growth:.0f} KiB a slow connection, at most 64 are allowed")
    num_cut = 0
    for i in range(1, count, 3):  # 10 s for a head
        try:
            num_cut += slow[i].recv(12).startswith(b"HTTP/1.1 408")
        except OSError:
            num_cut += 1  # reset, because it went on sending
    check(num_cut == len(range(1, count, 3)), f"only {num_cut} slow heads were cut after 10 s")
    check(select.select([slow[0]], [], [], 5)[0] != [] and slow[0].recv(1) == b"",
          "a connection that never asked for anything is still open after 11 s")
    for client in slow:
        client.close()
    print(f"{count} idle and slow connections, {growth:.1f} KiB each; {num_right} canaries beside them, "
          f"the slowest {max(waits) * 1000:.0f} ms")


def test_keys(program, model):
    """Every route of the description, with every kind of key."""
    with Server(program, model, "--api-key", "sk-one", "--api-key", "sk-two", "--no-request-log") as server:
        status, _, text = server.request("GET", "/openapi.json", headers={"Authorization": "Bearer sk-two"})
        check(status == 200, f"/openapi.json: {status}")
        routes = [(m.upper(), p) for p, item in json.loads(text)["paths"].items() for m in item]
        check(len(routes) >= 10, f"only {len(routes)} routes in /openapi.json")
        public = {"/health", "/v1/health", "/ready", "/ping", "/v2/health/live", "/v2/health/ready", "/"}
        keys = {None: False, "Bearer sk-one": True, "bearer sk-two": True, "Bearer sk-on": False,
                "Bearer sk-onex": False, "Bearer": False, "Basic sk-one": False, "sk-one": False,
                "Bearer sk-one, Bearer sk-two": False}
        num_guarded = 0
        for method, path in routes + [("GET", "/none"), ("POST", "/none"), ("GET", "/v1/"), ("GET", "//none")]:
            path = re.sub(r"\{\w+\}", "camel-nano", path)
            for key, is_right in keys.items():
                body = {} if method == "POST" else None
                headers = {"Authorization": key} if key else {}
                status = server.request(method, path, body, headers)[0]
                if path in public or path.endswith("/ready") and path.startswith("/v2/health"):
                    check(status == 200, f"{method} {path} is public, but: {status}")
                else:
                    num_guarded += 1
                    check((status == 401) == (not is_right), f"{method} {path} with key {key}: {status}")
            raw = socket.create_connection(("127.0.0.1", server.port), timeout=20)
            raw.sendall(f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer sk-one\r\n"
                        "Authorization: Bearer sk-one\r\nContent-Length: 0\r\n\r\n".encode())
            check(raw.recv(12) == b"HTTP/1.1 400", f"{method} {path} with two keys")
            raw.close()
    print(f"{len(routes)} routes, {num_guarded} requests to guarded ones judged by their key")


def terminate_once(program, model, round_number):
    """A server gets SIGTERM while a stream runs: the stream ends whole, then the process."""
    # The drain may take longer than the test waits: a server that ends has not waited for its end.
    with Server(program, model, "--max-num-seqs", 4, "--drain-timeout", 600) as server:
        if round_number % 4 == 3:  # idle, with a connection that is kept
            kept = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
            kept.request("GET", "/health")
            kept.getresponse().read()
            server.process.send_signal(signal.SIGTERM)
            check(server.process.wait(timeout=60) == 0, "SIGTERM, idle: status is not 0")
            return
        stream = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        body = {"prompt": "Once", "max_tokens": 300, "stream": True, "ignore_eos": True, "temperature": 0}
        stream.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = stream.getresponse()
        first = response.read1(100)
        server.process.send_signal(signal.SIGTERM)
        if round_number % 4 == 2:  # and a second one
            time.sleep(0.05)
            server.process.send_signal(signal.SIGTERM)
            status = server.process.wait(timeout=60)
            check(status in (0, 128 + signal.SIGTERM), f"the second SIGTERM: status {status}")
            return
        time.sleep(0.02)
        try:  # still listening: new requests and health get 503
            status = server.get("/health")[0]
            check(status == 503 or server.process.poll() is not None, f"health while stopping: {status}")
        except OSError:
            pass  # the stream ended in the meantime
        try:
            text = (first + response.read()).decode()
            check(text.endswith("data: [DONE]\n\n"), f"the stream ended with {text[-80:]!r}")
            check(text.count("data: ") > 5, f"the stream was short: {text!r}")
        except (OSError, http.client.HTTPException) as error:
            check(False, f"the stream broke: {error!r}")
        check(server.process.wait(timeout=30) == 0, f"SIGTERM: status {server.process.returncode}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("root")
    parser.add_argument("--disconnects", type=int, default=scaled(1000))
    parser.add_argument("--idle", type=int, default=scaled(600))
    parser.add_argument("--terminations", type=int, default=scaled(4))
    parser.add_argument("--sanitized", action="store_true", help="memory is not judged")
    args = parser.parse_args()
    model = pathlib.Path(args.root) / "models" / "camel-nano"
    with Server(args.program, model, "--max-num-seqs", 16, "--no-request-log") as server:
        try:
            test_disconnects(server, args.disconnects)
            test_idle_and_slow(server, max(args.idle, 9), args.sanitized)
        except (OSError, http.client.HTTPException) as error:
            failures.append(f"{error!r}; the server's status: {server.process.poll()}")
    check(server.process.returncode == 0, f"the server ended with {server.process.returncode}: {server.log[-2000:]}")
    test_keys(args.program, model)
    for i in range(args.terminations):
        terminate_once(args.program, model, i)
    print(f"{args.terminations} terminations")
    for failure in failures[:50]:
        print("FAILED", failure)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
