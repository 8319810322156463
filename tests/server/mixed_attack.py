"""Everything hostile at once, beside 26 well-behaved clients.

usage: mixed_attack.py PROGRAM MODEL_DIR [--seconds S] [--quiet-seconds S] [--server-flags "..."]

26 canaries stream greedy completions all the time; each answer must have the tokens of the first to the
same prompt. They are timed alone, then beside attackers of every kind (processes of low priority), then
after those have gone. Prints the time between events (median, 99th percentile) of each part, what the
attackers were answered, and resident memory. Fails when a canary's answer changed or broke, when the
99th percentile under attack is 3 times that of the quiet part or more, or when memory is not back
within 5 %. A tool to be run by hand on an idle machine, no test: tests assert no time. Standard library
only.
"""

import argparse
import collections
import json
import multiprocessing
import os
import random
import resource
import select
import shlex
import socket
import sys
import threading
import time

from server_tools import Server

MIB = 1 << 20


def post(path, body, length=None):
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = (f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(text) if length is None else length}\r\n\r\n")
    return head.encode() + text


def connect(port, timeout=10):
    return socket.create_connection(("127.0.0.1", port), timeout=timeout)


def ask(port, data, timeout=20):
    """The status of one request, "cut" or "late"; reads all of the answer."""
    try:
        with connect(port, timeout) as client:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            answer = client.recv(65536)
            while client.recv(1 << 20):
                pass
            return answer[9:12].decode() or "cut"
    except TimeoutError:
        return "late"
    except OSError:
        return "cut"


# Attackers: called again and again with the port and a random generator; return what they met.


def colliding_keys(count):
    """Keys of eight ASCII characters in one bucket of libstdc++'s hash (MurmurHash64A, fixed seed)."""
    mask, multiplier, seed, buckets = (1 << 64) - 1, 0xC6A4A7935BD1E995, 0xC70F6907, 351061
    inverse, start, keys, k = pow(multiplier, -1, 1 << 64), (seed ^ 8 * multiplier) & mask, [], 0
    while len(keys) < count:
        k += 1
        h = k * 0x9E3779B97F4A7C15 % (mask // buckets) * buckets
        h = (h ^ (h >> 47)) * inverse & mask
        d = ((h ^ (h >> 47)) * inverse & mask ^ start) * inverse & mask
        d = (d ^ (d >> 47)) * inverse & mask
        if not d & 0x8080808080808080:
            keys.append(d.to_bytes(8, "little").decode())
    return keys


FLOOD = []


def hash_flood(port, rng, state):
    status = ask(port, post(rng.choice(["/tokenize", "/v1/completions"]), FLOOD[0]))
    time.sleep(0.2)
    return status


def deep_json(port, rng, state):
    return ask(port, post("/v1/chat/completions", b'{"messages":' + b"[" * 500_000))


def half_sent(port, rng, state):
    held = state.setdefault("held", collections.deque())
    if len(held) >= 60:
        held.popleft().close()
    client = connect(port)
    held.append(client)
    path = rng.choice(["/health", "/v1/completions", "/tokenize"])
    try:
        client.settimeout(2)
        client.sendall(post(path, b" " * (4 * MIB - 1), 4 * MIB))
    except OSError:
        return "cut"
    return "held"


def half_sent_chunked(port, rng, state):
    held = state.setdefault("held", collections.deque())
    if len(held) >= 60:
        held.popleft().close()
    client = connect(port)
    held.append(client)
    try:
        client.settimeout(2)
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                       b"Transfer-Encoding: chunked\r\n\r\n" + b"%x\r\n" % (3 * MIB) + b" " * (3 * MIB) + b"\r\n")
    except OSError:
        return "cut"
    return "held"


def padded_queue(port, rng, state):
    held = state.setdefault("held", collections.deque())
    if len(held) >= 30:
        held.popleft().close()
    client = connect(port)
    held.append(client)
    body = b'{"prompt":"The sea","max_tokens":8' + b" " * (2 * MIB) + b"}"
    try:
        client.settimeout(2)
        client.sendall(post("/v1/completions", body))
    except OSError:
        return "cut"
    return "held"


def large_answer(port, rng, state):
    body = {"prompt": [5] * 1000, "max_tokens": 1, "n": 47, "prompt_logprobs": 20, "temperature": 1}
    status = ask(port, post("/v1/completions", body), 60)
    time.sleep(2)
    return status


def slow_reader(port, rng, state):
    body = {"prompt": [5] * 200, "max_tokens": 1, "n": 20, "prompt_logprobs": 20, "temperature": 1}
    held = state.setdefault("held", [])
    if len(held) < 4:
        client = connect(port)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(post("/v1/completions", body))
        held.append(client)
    time.sleep(0.5)
    for client in list(held):
        readable = select.select([client], [], [], 0)[0]
        try:
            if readable and not client.recv(1):
                held.remove(client)
                return "cut"
        except OSError:
            held.remove(client)
            return "cut"
    return "held"


def long_text(port, rng, state):
    text = rng.choice(["a!" * 900_000, "'" * 1_800_000, "\u65e5" * 600_000])
    path = rng.choice(["/tokenize", "/v1/completions"])
    body = {"prompt": text, "max_tokens": 1, "return_token_strs": True}
    if path == "/v1/completions":
        del body["return_token_strs"]
    status = ask(port, post(path, body))
    time.sleep(0.5)
    return status


def many_turns(port, rng, state):
    turns = [{"role": ("user", "assistant")[i % 2], "content": "word " * 40} for i in range(4001)]
    return ask(port, post("/v1/chat/completions", {"messages": turns, "max_tokens": 1}))


def priority(port, rng, state):
    body = {"prompt": f"The sea {rng.random()}", "max_tokens": 16, "ignore_eos": True, "priority": -2147483648}
    return ask(port, post("/v1/completions", body))


def silent_sockets(port, rng, state):
    held = state.setdefault("held", collections.deque())
    while len(held) >= 4400:
        held.popleft().close()
    for _ in range(100):
        try:
            held.append(connect(port, 1))
        except OSError:
            time.sleep(0.5)
            return "cut"
    time.sleep(0.1)
    return "held"


def slow_heads(port, rng, state):
    held = state.setdefault("held", [])
    if len(held) < 100:
        client = connect(port)
        client.sendall(b"GET /health HTTP/1.1\r\nX-Slow: ")
        held.append(client)
    time.sleep(0.05)
    for client in list(held):
        try:
            client.send(b"x")
        except OSError:
            held.remove(client)
    return "held"


def leavers(port, rng, state):
    client = connect(port)
    client.sendall(post("/v1/completions", {"prompt": "Once", "max_tokens": 60, "stream": True, "n": 2}))
    time.sleep(rng.random() * 0.05)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()
    time.sleep(0.2)
    return "left"


def broken_heads(port, rng, state):
    bad = rng.choice([b"\0" * 5000, b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 3000 + b"\r\n",
                      b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
                      b"GET " + b"/" * 70_000 + b" HTTP/1.1\r\n\r\n"])
    time.sleep(0.02)
    return ask(port, bad, 5)


ATTACKERS = [hash_flood, deep_json, half_sent, half_sent_chunked, padded_queue, large_answer, slow_reader, long_text,
             many_turns, priority, silent_sockets, slow_heads, leavers, broken_heads]


def attack(attacker, port, seconds, results):
    os.nice(19)
    rng, state, counts = random.Random(attacker.__name__), {}, collections.Counter()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            counts[attacker(port, rng, state)] += 1
        except OSError:
            counts["cut"] += 1
            time.sleep(0.1)
    results.put((attacker.__name__, dict(counts)))


class Canaries:
    """26 clients that stream; one thread each, as their work is small."""

    def __init__(self, port, count=26):
        self.port, self.gaps, self.errors, self.is_over = port, [], [], False
        self.answers, self.lock, self.num_answers = {}, threading.Lock(), 0
        self.threads = [threading.Thread(target=self.run, args=(i,)) for i in range(count)]
        for thread in self.threads:
            thread.start()

    def run(self, number):
        body = {"prompt": f"Chapter {number}. It was a calm day and", "max_tokens": 48, "stream": True,
                "temperature": 0, "ignore_eos": True, "return_token_ids": True}
        client = None
        while not self.is_over:
            try:
                if client is None:
                    client = connect(self.port, 120)
                client.sendall(post("/v1/completions", body))
                text, last = b"", time.monotonic()
                while not text.endswith(b"0\r\n\r\n"):
                    part = client.recv(65536)
                    if not part:
                        raise OSError("cut")
                    now = time.monotonic()
                    self.gaps.append(now - last)
                    last, text = now, text + part
                self.judge(number, text)
            except OSError as error:
                self.errors.append(f"canary {number}: {error}")
                client = None

    def judge(self, number, text):
        tokens = [json.loads(line[6:])["choices"][0].get("token_ids") for line in text.split(b"\n")
                  if line.startswith(b"data: {") and b'"choices":[{' in line]
        tokens = [t for part in tokens if part for t in part]
        with self.lock:
            self.num_answers += 1
            if self.answers.setdefault(number, tokens) != tokens or len(tokens) != 48:
                self.errors.append(f"canary {number}: {len(tokens)} tokens, other than the first time")

    def take(self):
        gaps, self.gaps = sorted(self.gaps), []
        return gaps

    def stop(self):
        self.is_over = True
        for thread in self.threads:
            thread.join()


def resident_mib(server):
    with open(f"/proc/{server.process.pid}/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmRSS"))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("model")
    parser.add_argument("--seconds", type=float, default=80)
    parser.add_argument("--quiet-seconds", type=float, default=20)
    parser.add_argument("--server-flags", default="")
    args = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    failures = []
    FLOOD.append(json.dumps({"prompt": "a", **{key: 1 for key in colliding_keys(20_000)}}).encode())
    with Server(args.program, args.model, *shlex.split(args.server_flags)) as server:
        canaries = Canaries(server.port)
        time.sleep(5)
        canaries.take()
        time.sleep(args.quiet_seconds)
        p99 = {}

        def report(part):
            gaps = canaries.take()
            p99[part] = gaps[int(len(gaps) * 0.99)]
            print(f"{part:8} {len(gaps):6} events: median {gaps[len(gaps) // 2] * 1e3:7.1f} ms, "
                  f"p99 {p99[part] * 1e3:7.1f} ms, longest {gaps[-1] * 1e3:7.1f} ms; {resident_mib(server):.0f} MiB")

        report("quiet")
        before = resident_mib(server)
        results = multiprocessing.Queue()
        attackers = [multiprocessing.Process(target=attack, args=(a, server.port, args.seconds, results))
                     for a in ATTACKERS]
        for process in attackers:
            process.start()
        peak, end = 0.0, time.monotonic() + args.seconds
        while time.monotonic() < end:
            peak = max(peak, resident_mib(server))
            time.sleep(0.2)
        report("attacked")
        met = [results.get(timeout=120) for _ in attackers]
        for process in attackers:
            process.join()
        time.sleep(20)
        canaries.take()
        time.sleep(args.quiet_seconds)
        report("after")
        after = resident_mib(server)
        for name, counts in sorted(met):
            print(f"  {name:18} {counts}")
        ratio = p99["attacked"] / p99["quiet"]
        print(f"p99 {ratio:.2f} times that of the quiet part; memory {before:.0f} MiB before, {peak:.0f} at most, "
              f"{after:.0f} after; {canaries.num_answers} canaries' answers")
        canaries.stop()
        failures += canaries.errors
        if ratio >= 3:
            failures.append(f"p99 under attack is {ratio:.2f} times the quiet one")
        if after > before * 1.05:
            failures.append(f"memory is {after / before:.2f} times what it was")
    for failure in failures[:20]:
        print("FAILED", failure)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
