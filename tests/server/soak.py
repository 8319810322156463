"""Load held for long: N streaming clients for some seconds, canaries beside them.

usage: soak.py (--caravan PROGRAM --model DIR | --url http://127.0.0.1:8000) [--clients N]
               [--seconds S] [--api-key KEY] [--seed S] [--server-flags "..."]

Every client asks for one streamed completion after the other, greedy or with a seed, of mixed
lengths; some leave in the middle. Every prompt comes from a small set with fixed settings, so its
answer is known after the first time: each later one must have the same tokens. Fails on any error,
any other tokens, a stream without [DONE], or, with --caravan, when descriptors or KV blocks are not
back to the start afterwards. Memory before and after is printed. Standard library only; one thread.
"""

import argparse
import json
import pathlib
import random
import re
import resource
import selectors
import shlex
import socket
import sys
import time
import urllib.parse

from server_tools import Server

WORDS = "the sea was calm and old men spoke of winter ships that never came home to harbour".split()


class Question:
    """One prompt with its settings, and the tokens that it was answered with the first time."""

    def __init__(self, number):
        rng = random.Random(number)
        self.body = {
            "prompt": " ".join(rng.choice(WORDS) for _ in range(rng.choice([3, 10, 40, 120]))),
            "max_tokens": rng.choice([4, 16, 32, 64]),
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
            "ignore_eos": True,
            "temperature": rng.choice([0, 0.8]),
            "seed": number,
        }
        self.tokens = None


class Totals:
    requests = left = tokens = compared = 0
    errors = []
    first_token_s = []

    @classmethod
    def error(cls, text):
        cls.errors.append(text)
        if len(cls.errors) <= 20:
            print("ERROR", text, file=sys.stderr)


class Client:
    """A connection that asks again and again; fed by the selector."""

    def __init__(self, run, number):
        self.run, self.rng = run, random.Random(number)
        self.socket = None

    def ask(self):
        self.question = self.rng.choice(self.run.questions)
        text = json.dumps(self.question.body)
        request = (
            f"POST /v1/completions HTTP/1.1\r\nHost: {self.run.host}:{self.run.port}\r\n"
            f"Content-Type: application/json\r\n{self.run.authorization}Content-Length: {len(text)}\r\n\r\n{text}"
        ).encode()
        if self.socket is None:
            self.socket = socket.create_connection((self.run.host, self.run.port), timeout=30)
            self.run.selector.register(self.socket, selectors.EVENT_READ, self)
        self.leaves_after = self.rng.randrange(2000) if self.rng.random() < 0.02 else None
        self.input, self.begin, self.first = b"", time.monotonic(), None
        self.socket.sendall(request)

    def close(self):
        if self.socket is not None:
            self.run.selector.unregister(self.socket)
            self.socket.close()
            self.socket = None

    def read(self):
        """True when this answer is over."""
        try:
            piece = self.socket.recv(1 << 16)
        except OSError as error:
            return self.fail(repr(error))
        if not piece:
            return self.fail(f"the connection ended after {self.input[-100:]!r}")
        self.input += piece
        if self.first is None and b"data: " in self.input:
            self.first = time.monotonic() - self.begin
            Totals.first_token_s.append(self.first)
        if self.leaves_after is not None and len(self.input) > self.leaves_after:
            Totals.left += 1
            self.close()
            return True
        if not self.input.endswith(b"0\r\n\r\n"):
            return False
        self.check()
        return True

    def fail(self, text):
        Totals.error(text)
        self.close()
        return True

    def check(self):
        head, _, rest = self.input.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            return self.fail(self.input[:300].decode(errors="replace"))
        body = b""
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            body += rest[: int(size, 16)]
            rest = rest[int(size, 16) + 2 :]
        events = [e[6:] for e in body.decode().split("\n\n") if e.startswith("data: ")]
        if not events or events[-1] != "[DONE]":
            return self.fail(f"no [DONE]: {body[-200:]!r}")
        tokens = []
        for event in map(json.loads, events[:-1]):
            if "error" in event:
                return self.fail(str(event))
            for choice in event["choices"]:
                tokens += choice.get("token_ids") or []
        Totals.requests += 1
        Totals.tokens += len(tokens)
        if len(tokens) != self.question.body["max_tokens"]:
            Totals.error(f"{len(tokens)} tokens, wanted {self.question.body['max_tokens']}")
        elif self.question.tokens is None:
            self.question.tokens = tokens
        elif self.question.tokens != tokens:
            Totals.error(f"other tokens for {self.question.body}: {tokens}, before {self.question.tokens}")
        else:
            Totals.compared += 1


class Run:
    def __init__(self, url, args):
        parts = urllib.parse.urlsplit(url)
        self.host, self.port = parts.hostname, parts.port or 80
        self.authorization = f"Authorization: Bearer {args.api_key}\r\n" if args.api_key else ""
        self.questions = [Question(args.seed * 1000 + i) for i in range(48)]
        self.selector = selectors.DefaultSelector()
        self.args = args

    def hold(self, report):
        """Load for args.seconds, then the answers that are under way."""
        args = self.args
        clients = [Client(self, args.seed * 100000 + i) for i in range(args.clients)]
        for client in clients:
            client.ask()
        begin = next_report = time.monotonic()
        busy = set(clients)
        while busy:
            now = time.monotonic()
            if now >= next_report:
                report(now - begin)
                next_report = now + 30
            for key, _ in self.selector.select(timeout=1):
                client = key.data
                if not client.read():
                    continue
                if time.monotonic() - begin < args.seconds and len(Totals.errors) < 100:
                    try:
                        client.ask()
                    except OSError as error:
                        client.fail(repr(error))
                        busy.discard(client)
                else:
                    client.close()
                    busy.discard(client)
            for client in list(busy):
                if now - client.begin > 300:
                    client.fail("no end of an answer after 300 s")
                    busy.discard(client)
        return time.monotonic() - begin


def process_figures(server):
    """(MiB resident, descriptors, threads)."""
    process = pathlib.Path(f"/proc/{server.process.pid}")
    status = (process / "status").read_text()
    return (int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024, len(list((process / "fd").iterdir())),
            int(re.search(r"Threads:\s+(\d+)", status)[1]))


def blocks_in_use(server):
    text = server.get("/metrics")[2].decode()
    return [float(re.search(rf"^vllm:{name}\{{[^}}]*\}} (\S+)$", text, re.MULTILINE)[1])
            for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")]


def soak(url, args, server=None):
    before = process_figures(server) if server else None

    def report(seconds):
        line = f"{seconds:6.0f} s  {Totals.requests} answers  {Totals.tokens} tokens  {len(Totals.errors)} errors"
        if server:
            line += "  {:.0f} MiB, {} descriptors, {} threads".format(*process_figures(server))
        print(line, file=sys.stderr, flush=True)

    seconds = Run(url, args).hold(report)
    first = sorted(Totals.first_token_s) or [0]
    print(f"{args.clients} clients, {seconds:.0f} s: {Totals.requests} answers, {Totals.tokens} tokens "
          f"({Totals.tokens / seconds:.0f}/s), {Totals.left} clients left in the middle; "
          f"first token: median {first[len(first) // 2] * 1000:.0f} ms, "
          f"p99 {first[len(first) * 99 // 100] * 1000:.0f} ms")
    print(f"{Totals.compared} answers compared with the first of their kind, {len(Totals.errors)} errors")
    if server is None:
        return
    for _ in range(300):
        if blocks_in_use(server) == [0, 0, 0] and process_figures(server)[1] <= before[1]:
            break
        time.sleep(0.1)
    after = process_figures(server)
    print("before: {:.0f} MiB, {} descriptors, {} threads; after: {:.0f} MiB, {} descriptors, {} threads; "
          "running, waiting, KV use: {}".format(*before, *after, blocks_in_use(server)))
    if blocks_in_use(server) != [0, 0, 0] or after[1] > before[1]:
        Totals.error("blocks or descriptors are not back to the start")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--caravan")
    parser.add_argument("--model")
    parser.add_argument("--url")
    parser.add_argument("--clients", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--api-key", default="")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--server-flags", default="--max-num-seqs 64")
    args = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4 * args.clients + 100)), hard))
    if args.url:
        soak(args.url, args)
    elif args.caravan and args.model:
        with Server(args.caravan, args.model, "--no-request-log", *shlex.split(args.server_flags)) as server:
            soak(server.url, args, server)
        if server.process.returncode != 0:
            Totals.error(f"the server ended with {server.process.returncode}: {server.log}")
    else:
        parser.error("give --url, or --caravan and --model")
    sys.exit(1 if Totals.errors or Totals.requests == 0 else 0)


if __name__ == "__main__":
    main()
