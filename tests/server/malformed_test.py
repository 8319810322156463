"""Malformed requests against a running server: every one gets a 4xx, none a 5xx, none hangs, and a
canary after each hundred gets the same answer as before.

usage: malformed_test.py CARAVAN SOURCE_DIR
"""

import collections
import gzip
import json
import os
import pathlib
import random
import socket
import sys
import time

from server_tools import Server

CANARY = {"prompt": "The sea was", "max_tokens": 4, "temperature": 0, "return_token_ids": True}
BODY = json.dumps({"prompt": "The sea", "max_tokens": 1, "stop": ["x", "y"], "n": 1}).encode()
MAX_SECONDS = 5  # for one answer; all time limits of the server are longer


def head(*lines, request="POST /v1/completions HTTP/1.1", host="Host: localhost"):
    kept = [request, *([host] if host else []), *lines]
    return ("\r\n".join(kept) + "\r\n\r\n").encode("latin-1")


JSON = "Content-Type: application/json"


def post(body, *lines):
    """A request that is well-formed as HTTP."""
    return head(JSON, f"Content-Length: {len(body)}", *lines) + body


def chunked(*pieces, end=b"0\r\n\r\n"):
    return head(JSON, "Transfer-Encoding: chunked") + b"".join(pieces) + end


def chunks(count):
    """A valid JSON body of `count` chunks; spaces in front."""
    body = b" " * (count - len(BODY)) + BODY
    return chunked(*(b"1\r\n%c\r\n" % byte for byte in body))


def framing_cases():
    """What two programs could read differently, and other errors of HTTP itself."""
    length = f"Content-Length: {len(BODY)}"
    te = "Transfer-Encoding: chunked"
    for lines in (
        [length, length], [length, "Content-Length: 1"], [length, te], [te, length], [te, te],
        ["Content-Length: 1, 1"], ["Content-Length: +1"], ["Content-Length: -1"],
        ["Content-Length: 0x10"], ["Content-Length: 1e3"], ["Content-Length:"],
        ["Content-Length: 1 1"], ["Content-Length: " + "9" * 30], ["Content-Length: 4194305"],
        ["Transfer-Encoding: gzip, chunked"], ["Transfer-Encoding: chunked, chunked"],
        ["Transfer-Encoding: identity"], ["Transfer-Encoding: Chunked\x0b"],
        ["Transfer-Encoding: xchunked"], ["Transfer-Encoding : chunked"], ["Transfer-Encoding:"],
        [length, " folded: x"], [length, "X: a", "\tb"], [length, "X y: z"], [length, ": z"],
        [length, "no colon"], [length, "X: \x00"], [length, "X: \x1b[31m"], [length, "\xff: a"],
        [length, "Expect: something"], [length, "Host: other"], [length, "Host: localhost"],
        [length, "Content-Encoding: gzip"], [length, "Content-Encoding: deflate, gzip"],
        [length, "Origin: https://evil.example"], [length, "Origin: null"],
        [length, "Authorization: Bearer a", "Authorization: Bearer b"],
        [length, "X: " + "a" * 8200], [length, *["X: a"] * 100], [length, *["X: " + "a" * 4000] * 9],
    ):
        yield "head: " + "; ".join(lines)[:60], head(JSON, *lines) + BODY
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "json"):
        yield "content type " + kind, head(f"Content-Type: {kind}", length) + BODY
    yield "no content type", head(length) + BODY
    yield "no length", head(JSON)
    yield "two content types", head(JSON, JSON, length) + BODY
    for host in ("", "Host:", "Host: a b", "Host: evil.example", "Host: a@b", "Host: localhost:x",
                 "Host: [::1", "Host: localhost/", "Host: 127.0.0.1.evil.example", "Host: \xe9"):
        yield "host: " + host, head(JSON, length, host=host) + BODY
    for line in (
        "POST /v1/completions", "POST  /v1/completions HTTP/1.1", "POST /v1/completions HTTP/1.1 ",
        " POST /v1/completions HTTP/1.1", "POST /v1/completions HTTP/2.0", "POST /v1/completions HTTP/0.9",
        "POST /v1/completions HTTP/1.10", "POST /v1/completions http/1.1", "POST /v1/completions FTP/1.1",
        "P(ST /v1/completions HTTP/1.1", "POST v1/completions HTTP/1.1", "POST * HTTP/1.1",
        "CONNECT localhost:80 HTTP/1.1", "POST http://evil.example/v1/completions HTTP/1.1",
        "POST ftp://localhost/ HTTP/1.1", "PRI * HTTP/2.0", "POST /" + "a" * 9000 + " HTTP/1.1",
        "POST /v1/completions#x HTTP/1.1", "POST /\xe9 HTTP/1.1", "TRACE /v1/completions HTTP/1.1",
        "DELETE /v1/completions HTTP/1.1", "PUT /v1/completions HTTP/1.1", "GET /v1/completions HTTP/1.1",
        "POST /health HTTP/1.1", "post /v1/completions HTTP/1.1", "A" * 40 + " / HTTP/1.1",
    ):
        yield "request line: " + line[:60], head(JSON, length, request=line) + BODY
    for path in ("%", "%2", "%zz", "%00", "%0a", "%0d%0aX: y", "%7f", "%80", "%ff", "%c0%af", "%ed%a0%80",
                 "..", "../x", "a/../b", "%2e%2e", "%2e%2e%2f", ".%2e/x", "\\x", "%5cx", "nothing",
                 "v1/models/none", "v1/models/%f0%9f%92%a9"):
        yield "path " + path, head(request=f"GET /{path} HTTP/1.1")
    for start in (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"\x00", b"\r\n" * 4, b"\n", b"\r\r\n",
                  BODY, b"\xef\xbb\xbfGET / HTTP/1.1\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n", b"SSH-2.0-x\r\n"):
        yield f"not HTTP: {start[:12]}", start
    yield "a gzip bomb", post(gzip.compress(b"\0" * 10_000_000), "Content-Encoding: gzip")


def head_corruption_cases():
    """One byte that does not belong, at every place of a head."""
    valid = post(BODY)
    end = valid.index(b"\r\n\r\n") + 3
    for place in range(end):
        for byte in (b"\0", b"\x01", b"\n", b"\r"):
            yield f"{byte} at {place}", valid[:place] + byte + valid[place:]


def truncation_cases():
    """A request whose client ends it early, at every place."""
    for valid in (post(BODY), chunked(b"%x\r\n" % len(BODY), BODY, b"\r\n")):
        for place in range(1, len(valid)):
            yield f"cut at {place}", valid[:place]


def chunk_cases():
    size = b"%x" % len(BODY)
    for bad in (b"x", b"", b" ", b"-1", b"+1", b"0x1", b"1 1", b"g", b"1" * 17, b"f" * 16, b"400001",
                b";", b"1\0", b"\xff", b"1,2", b"1:2", b"#"):
        yield f"chunk size {bad}", chunked(bad + b"\r\n" + BODY + b"\r\n")
        yield f"second chunk size {bad}", chunked(size + b"\r\n" + BODY + b"\r\n", bad + b"\r\n")
    yield "LF after the size", chunked(size + b"\n" + BODY + b"\r\n")
    yield "LF after the data", chunked(size + b"\r\n" + BODY + b"\n")
    yield "more data than the size", chunked(b"1\r\n" + BODY + b"\r\n")
    yield "less data than the size", chunked(b"ff\r\n" + BODY + b"\r\n")
    yield "a long extension", chunked(size + b";" + b"x" * 40000 + b"\r\n" + BODY + b"\r\n")
    yield "a long trailer", chunked(size + b"\r\n" + BODY + b"\r\n", end=b"0\r\nX: " + b"x" * 40000)
    yield "a bad trailer", chunked(size + b"\r\n" + BODY + b"\r\n", end=b"0\r\nno colon\r\n\r\n")
    yield "65,537 chunks", chunks(65537)
    yield "5 MiB in chunks", chunked(*[b"10000\r\n" + b" " * 65536 + b"\r\n"] * 80)


def json_cases():
    for place in range(len(BODY)):
        yield f"JSON cut at {place}", post(BODY[:place])
        for byte in (b"\0", b"\x01", b"\xff", b"\xc3", b"\xed\xa0\x80"):
            yield f"JSON with {byte} at {place}", post(BODY[:place] + byte + BODY[place:])
    for depth in (100, 100_000, 1_000_000):
        yield f"depth {depth}", post(b"[" * depth)
        yield f"depth {depth}, closed", post(b"[" * depth + b"]" * depth)
        yield f"objects {depth}", post(b'{"a":' * min(depth, 500_000))
    for text in ("", " ", "null", "1", '"x"', "[]", "{}", "{,}", '{"prompt"}', '{"prompt":}', "{'prompt': 1}",
                 '{"prompt": "a", "prompt": "b"}', '{"prompt": "a",}', '{"prompt": "a"} x',
                 '{"prompt": "a"}{"prompt": "a"}',
                 '{"prompt": "\\u12"}', '{"prompt": "\\x41"}', '{"prompt": "a\nb"}', '// c\n{"prompt": "a"}',
                 '{"prompt": "a", "unknown_field": 1}', '{"prompt": 1.5}',
                 '{"prompt": [1, "a"]}', '{"prompt": [-1]}', '{"prompt": [999999999]}', '{"prompt": [[]]}',
                 '{"prompt": {"a": 1}}', '{"prompt": "a", "stop": [""]}', '{"prompt": "a", "model": "none"}'):
        yield f"body {text[:40]!r}", post(text.encode())
    wrong = ['"x"', "[]", "{}", "true", "1e400", "-1e400", "NaN", "Infinity", "0x10", "01", "+1", "1.", ".5"]
    number = ["temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"]
    integer = ["max_tokens", "n", "best_of", "logprobs", "top_k", "min_tokens", "priority"]
    for field in number + integer:
        for value in wrong + ["9223372036854775808", "-9223372036854775809", "1e300", "-1e300"]:
            yield f"{field}: {value}", post(f'{{"prompt": "a", "{field}": {value}}}'.encode())
    for field in integer:
        for value in ("1.5", "-2147483649", "99999999999999999999999999"):
            yield f"{field}: {value}", post(f'{{"prompt": "a", "{field}": {value}}}'.encode())
    for field in ("stream", "echo", "ignore_eos", "logit_bias", "stop", "stop_token_ids", "overflow"):
        for value in ("1.5", "-1", "[[1]]", "[{}]", '{"a": []}'):
            yield f"{field}: {value}", post(f'{{"prompt": "a", "{field}": {value}}}'.encode())


def garbage_cases(count):
    rng = random.Random(7)
    for i in range(count):
        start = rng.choice([b"", b"GET ", b"POST /", head(JSON)[:-2], b"GET / HTTP/1.1\r\n"])
        yield f"garbage {i}", start + bytes(rng.randrange(256) for _ in range(rng.randrange(1, 200)))


def ask(port, request, ends):
    """The status of the answer; 0 when the connection ends without one, None when nothing comes."""
    with socket.create_connection(("127.0.0.1", port), timeout=MAX_SECONDS) as client:
        answer = b""
        try:
            client.sendall(request)
            if ends:
                client.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # refused before all was sent; the answer says why
        try:
            while b"\r\n" not in answer:
                piece = client.recv(65536)
                if not piece:
                    break
                answer += piece
        except socket.timeout:
            return None
        except OSError:
            pass
    return int(answer[9:12]) if answer.startswith(b"HTTP/1.1 ") else 0


def main():
    program, root = sys.argv[1:]
    # True: the client ends its side, because the request could go on.
    groups = [
        (framing_cases(), True), (head_corruption_cases(), True), (truncation_cases(), True),
        (chunk_cases(), True), (json_cases(), False), (garbage_cases(400), True),
    ]
    cases = [(name, request, ends) for group, ends in groups for name, request in group]
    failures, statuses = [], collections.Counter()
    model = pathlib.Path(root) / "models" / "camel-nano"
    with Server(program, model, "--max-num-seqs", 4, "--no-request-log") as server:
        fds = f"/proc/{server.process.pid}/fd"
        canary = server.post("/v1/completions", CANARY)[1]["choices"][0]["token_ids"]
        num_fds = len(os.listdir(fds))
        begin = time.monotonic()
        for i, (name, request, ends) in enumerate(cases):
            status = ask(server.port, request, ends)
            statuses[status] += 1
            if status is None or not 400 <= status < 500:
                failures.append(f"{name}: {status}")
            if i % 100 == 99 or i == len(cases) - 1:
                status, answer = server.post("/v1/completions", CANARY)
                if status != 200 or answer["choices"][0]["token_ids"] != canary:
                    failures.append(f"canary after {name}: {status} {answer}")
        seconds = time.monotonic() - begin
        # Exactly the limits, and what only looks odd, is served.
        for name, request in (
            ("65,536 chunks", chunks(65536)),
            ("an absolute target", head(JSON, f"Content-Length: {len(BODY)}",
                                        request="POST http://localhost/v1/completions HTTP/1.1") + BODY),
            ("empty lines before", b"\r\n\r\n" + post(BODY)),
            ("an escaped path", head(JSON, f"Content-Length: {len(BODY)}",
                                     request="POST /v1/%63ompletions?x=%zz HTTP/1.1") + BODY),
        ):
            status = ask(server.port, request, False)
            if status != 200:
                failures.append(f"{name}: {status}, wanted 200")
        for _ in range(100):
            if len(os.listdir(fds)) <= num_fds:
                break
            time.sleep(0.1)
        else:
            failures.append(f"file descriptors: {num_fds} before, {len(os.listdir(fds))} after")
    if len(cases) < 2000:
        failures.append(f"only {len(cases)} cases")
    if server.process.returncode != 0:
        failures.append(f"the server ended with {server.process.returncode}: {server.log}")
    print(f"{len(cases)} malformed requests in {seconds:.1f} s: {dict(statuses)}")
    for failure in failures[:50]:
        print("FAILED", failure)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
