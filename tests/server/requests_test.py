#!/usr/bin/env python3
"""Requests as ordinary clients send them, and what one client may ask of the others: a second turn
with the client's own message, turns in any order, the model's own chat template, token ids alone,
priorities, and whose cached prefixes are found.

usage: requests_test.py PROGRAM SOURCE_DIR
Runs in the environment that tools/install_dependencies.sh makes at SOURCE_DIR/.venv.
"""

import json
import pathlib
import shutil
import sys
import tempfile

from server_tools import Server, enter_environment

if len(sys.argv) < 3:
    sys.exit(__doc__)
enter_environment(sys.argv[2])

# In that environment only.
import openai

PROGRAM, MODEL = sys.argv[1], pathlib.Path(sys.argv[2]) / "models" / "camel-nano"
HI = {"role": "user", "content": "Hi"}
failures = []


def equal(got, wanted, what):
    if got != wanted:
        failures.append(f"{what}: got {got!r}, expected {wanted!r}")


def check_chats(server):
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="x", max_retries=0)
    model = client.models.list().data[0].id
    ask = lambda messages: client.chat.completions.create(
        model=model, messages=messages, max_tokens=2, temperature=0)
    first = ask([HI]).choices[0].message
    dumped = [HI, first.model_dump(), {"role": "user", "content": "And then?"}]
    bare = [HI, {"role": "assistant", "content": first.content}, dumped[2]]
    equal(ask(dumped).usage.prompt_tokens, ask(bare).usage.prompt_tokens, "a dumped message")
    a, s = {"role": "assistant", "content": "Hello"}, {"role": "system", "content": "Be brief"}
    for messages in ([HI, HI], [a, HI], [HI, s, HI], [s], [HI, a, s, HI], [s, HI], [a], [HI, a, a],
                     [HI, {**a, "content": None}, HI], [{**HI, "role": "tool"}],
                     [{**s, "role": "developer"}, HI]):
        status, body = server.post("/v1/chat/completions", {"messages": messages, "max_tokens": 1})
        equal(status, 200, f"{[m['role'] for m in messages]} {body.get('error')}")


def check_prefixes():
    """A hit across keys or salts would be seen in cached_tokens."""
    prompt = list(range(100, 164))

    def cached(server, key, **more):
        headers = {"Authorization": f"Bearer {key}"}
        body = {"prompt": prompt, "max_tokens": 1, **more}
        status, _, text = server.request("POST", "/v1/completions", body, headers)
        equal(status, 200, "a prompt to be cached")
        return json.loads(text)["usage"]["prompt_tokens_details"]["cached_tokens"] > 0

    with Server(PROGRAM, MODEL, "--api-key", "k1", "--api-key", "k2") as server:
        steps = [("k1", {}, False), ("k1", {}, True), ("k2", {}, False), ("k2", {}, True),
                 ("k1", {"cache_salt": "a"}, False), ("k1", {"cache_salt": "a"}, True),
                 ("k1", {"cache_salt": "b"}, False), ("k2", {"cache_salt": "a"}, False)]
        for i, (key, more, wanted) in enumerate(steps):
            equal(cached(server, key, **more), wanted, f"prefix step {i}")
    with Server(PROGRAM, MODEL, "--api-key", "k1", "--api-key", "k2",
                "--prefix-cache-scope", "all") as server:
        equal([cached(server, "k1"), cached(server, "k2")], [False, True], "a scope of all")


def check_templates(directory):
    """A model with a template of its own, in each form, and the same with --chat-template."""
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        model = directory / name
        shutil.copytree(MODEL, model)
        if name.endswith(".json"):
            config = json.loads((model / name).read_text())
            (model / name).write_text(json.dumps({**config, "chat_template": template}))
        else:
            (model / name).write_text(template)
        with Server(PROGRAM, model) as server:
            status, body = server.post("/v1/chat/completions", {"messages": [HI], "max_tokens": 1})
            equal((status, name in body["error"]["message"]), (400, True), f"chat with {name}")
            equal(server.post("/tokenize", {"messages": [HI]})[0], 400, f"tokenize with {name}")
            equal(server.post("/v1/completions", {"prompt": "a", "max_tokens": 1})[0], 200, name)
        equal("chat template is not read" in server.log, True, "a line in the log")
        with Server(PROGRAM, model, "--chat-template", "plain") as server:
            equal(server.post("/tokenize", {"messages": [HI]})[0], 200, "another form, when asked for")


def check_ids(directory):
    model = directory / "ids"
    model.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(MODEL / name, model)
    (model / "vocab.txt").write_text("[PAD]\n[UNK]\n")
    body = {"prompt": [464, 5417, 373], "max_tokens": 4, "temperature": 0}
    with Server(PROGRAM, model) as server:
        status, answer = server.post("/v1/completions", body)
        equal(status, 200, "ids without a tokenizer")
        equal(server.post("/v1/completions", {"prompt": "a"})[0], 400, "text without a tokenizer")
        equal(server.post("/v1/chat/completions", {"messages": [HI]})[0], 400, "a chat without one")
    with Server(PROGRAM, MODEL) as server:
        wanted = server.post("/v1/completions", {**body, "return_token_ids": True})[1]
    equal(answer["choices"][0].get("token_ids"), wanted["choices"][0]["token_ids"], "the same ids")
    with Server(PROGRAM, MODEL, "--skip-tokenizer-init") as server:
        equal(server.post("/v1/completions", body)[1]["choices"][0]["token_ids"],
              wanted["choices"][0]["token_ids"], "--skip-tokenizer-init")


def check_limits():
    flags = ["--max-num-seqs", 2, "--max-waiting", 2, "--scheduling-policy", "priority",
             "--max-answer-bytes", 100000]
    with Server(PROGRAM, MODEL, *flags) as server:
        ask = lambda **more: server.post("/v1/completions", {"prompt": "a", "max_tokens": 1, **more})
        equal(ask(priority=-10)[0], 200, "a priority with the flag")
        equal(ask(priority=-11)[0], 400, "a priority out of range")
        equal(ask(n=5)[0], 400, "what no empty queue could take")
        status, body = ask(n=4, max_tokens=900, logprobs=20)
        equal((status, "--max-answer-bytes" in body["error"]["message"]), (400, True), "a large answer")
        equal(ask(stream_options={})[0], 200, "options that are off")
    with Server(PROGRAM, MODEL) as server:
        equal(server.post("/v1/completions", {"prompt": "a", "priority": 1})[0], 400,
              "a priority without the flag")


def main():
    with Server(PROGRAM, MODEL) as server:
        check_chats(server)
    check_prefixes()
    check_limits()
    with tempfile.TemporaryDirectory() as directory:
        check_templates(pathlib.Path(directory))
        check_ids(pathlib.Path(directory))
    for failure in failures:
        print("FAILED", failure, file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
