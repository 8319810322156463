#!/usr/bin/env python3
"""The server as OpenAI's own Python client sees it, and its answers against `caravan run`.

usage: openai_client_test.py PROGRAM SOURCE_DIR
Runs in the environment that tools/install_dependencies.sh makes at SOURCE_DIR/.venv.
"""

import json
import math
import pathlib
import subprocess
import sys
import threading

from server_tools import Server, enter_environment

if len(sys.argv) < 3:
    sys.exit(__doc__)
enter_environment(sys.argv[2])

# These are in that environment only.
import openai
from prometheus_client.parser import text_string_to_metric_families

KEY = "test-key-1"
PROMPTS = ["The ship", "Once upon a time", "The sea was", "He said that", "a", "In the year 1850"]


class Check:
    """Collects what is wrong."""

    def __init__(self):
        self.failures = []

    def expect(self, condition, what):
        if not condition:
            self.failures.append(what)

    def equal(self, got, wanted, what):
        self.expect(got == wanted, f"{what}: got {got!r}, expected {wanted!r}")

    def raises(self, kind, call, what, param=None, code=None):
        try:
            call()
        except kind as error:
            if param is not None:
                self.equal(error.body.get("param"), param, f"{what}: param")
            if code is not None:
                self.equal(error.body.get("code"), code, f"{what}: code")
        except openai.OpenAIError as error:
            self.failures.append(f"{what}: got {error!r}, expected {kind.__name__}")
        else:
            self.failures.append(f"{what}: no error, expected {kind.__name__}")


def run_rows(program, model, prompts, *flags):
    """What `caravan run` writes for the prompts."""
    result = subprocess.run(
        [program, "-q", "run", "--model", model, "--input", "-", "--json", *map(str, flags)],
        input="".join(json.dumps({"prompt": p}) + "\n" for p in prompts),
        capture_output=True, text=True, check=True,
    )
    return [json.loads(line) for line in result.stdout.splitlines()]


def check_equal_to_run(check, client, program, model):
    """Greedy and sampled texts of the server are those of `caravan run`: alone, in one request and
    from many clients at once."""
    greedy = run_rows(program, model, PROMPTS, "-n", 32)
    flags = ["-n", 24, "--temperature", 0.8, "--top-p", 0.9, "--top-k", 40, "--seed", 11]
    sampled = run_rows(program, model, PROMPTS, *flags)
    together = client.completions.create(
        model="nano", prompt=PROMPTS, max_tokens=32, temperature=0
    )
    for row, choice in zip(greedy, together.choices):
        check.equal(choice.text, row["text"], "greedy text in one request")
        check.equal(choice.finish_reason, row["finish_reason"], "finish_reason")
    answers = {}

    def ask(index, copy):
        answer = client.completions.create(
            model="nano", prompt=PROMPTS[index], max_tokens=24, temperature=0.8, top_p=0.9, seed=11,
            extra_body={"top_k": 40, "return_token_ids": True},
        )
        answers[index, copy] = answer.choices[0]

    threads = [threading.Thread(target=ask, args=(i, c)) for c in range(4) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    check.equal(len(answers), len(threads), "answers of clients at once")
    for (index, copy), choice in answers.items():
        check.equal(choice.text, sampled[index]["text"], f"sampled text {index}, copy {copy}")
        check.equal(choice.token_ids, sampled[index]["output_ids"], f"tokens {index}, copy {copy}")
    check.equal(together.usage.total_tokens,
                sum(len(r["prompt_ids"]) + len(r["output_ids"]) for r in greedy), "usage")


def check_streams(check, client):
    """Streams say what whole answers do; usage comes last; several choices keep apart."""
    settings = {"model": "nano", "max_tokens": 24, "temperature": 0.9, "seed": 3, "n": 3}
    whole = client.completions.create(prompt="The sea was", **settings)
    texts, reasons, usage = {}, {}, None
    stream = client.completions.create(
        prompt="The sea was", stream=True, stream_options={"include_usage": True}, **settings
    )
    for chunk in stream:
        check.expect(usage is None, "a chunk after usage")
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
            reasons[choice.index] = choice.finish_reason or reasons.get(choice.index)
        usage = chunk.usage
    for choice in whole.choices:
        check.equal(texts.get(choice.index), choice.text, "streamed text")
        check.equal(reasons.get(choice.index), choice.finish_reason, "streamed finish_reason")
    check.equal(len(set(texts.values())) > 1, True, "choices with other seeds differ")
    check.equal(usage and usage.completion_tokens, whole.usage.completion_tokens, "streamed usage")

    messages = [{"role": "system", "content": "Describe it."}, {"role": "user", "content": "A sea."}]
    chat = {"model": "nano", "messages": messages, "max_completion_tokens": 20, "temperature": 0}
    answer = client.chat.completions.create(**chat)
    deltas = [
        chunk.choices[0].delta for chunk in client.chat.completions.create(stream=True, **chat)
    ]
    check.equal(deltas[0].role, "assistant", "the first delta has the role")
    check.equal("".join(d.content or "" for d in deltas), answer.choices[0].message.content, "chat")
    check.equal(answer.object, "chat.completion", "object")
    with client.chat.completions.create(stream=True, **{**chat, "max_completion_tokens": 900}) as s:
        for _ in s:
            break  # and leave: the server must not mind


def check_logprobs(check, client):
    """Log probabilities agree between the two forms and with echo."""
    text = client.completions.create(
        model="nano", prompt="The ship", max_tokens=6, temperature=0, logprobs=3
    ).choices[0]
    logprobs = text.logprobs
    check.equal("".join(logprobs.tokens), text.text, "tokens are the text")
    for token, value, top in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs):
        check.equal(len(top), 3, "top_logprobs")
        check.equal(max(top, key=top.get), token, "the greedy token is the most likely")
        check.equal(top[token], value, "its log probability")
        check.expect(sum(math.exp(v) for v in top.values()) <= 1 + 1e-5, "probabilities")
    for token, offset in zip(logprobs.tokens, logprobs.text_offset):
        check.equal(text.text[offset:offset + len(token)], token, "text_offset")
    echo = client.completions.create(
        model="nano", prompt="The ship" + text.text, max_tokens=1, temperature=0, logprobs=1,
        echo=True,
    ).choices[0]
    check.expect(echo.text.startswith("The ship" + text.text), "echo begins with the prompt")
    check.equal(echo.logprobs.token_logprobs[0], None, "the first token has none")
    check.equal(echo.logprobs.tokens[2:8], logprobs.tokens, "tokens of the prompt")
    for scored, written in zip(echo.logprobs.token_logprobs[2:8], logprobs.token_logprobs):
        check.equal(scored, written, "prompt and output score a token alike, to the bit")
    only = client.completions.create(
        model="nano", prompt="The ship", max_tokens=0, echo=True, logprobs=0
    ).choices[0]
    check.equal((only.text, len(only.logprobs.tokens)), ("The ship", 2), "echo alone")
    chat = client.chat.completions.create(
        model="nano", messages=[{"role": "user", "content": "Hi"}], max_tokens=4, temperature=0,
        logprobs=True, top_logprobs=2,
    ).choices[0]
    check.equal(len(chat.logprobs.content), 4, "chat logprobs")
    for entry in chat.logprobs.content:
        check.equal(bytes(entry.bytes).decode(), entry.token, "bytes")
        check.equal(entry.top_logprobs[0].token, entry.token, "chat top_logprobs")


def check_stops(check, client, program, model):
    """Stop strings and tokens end the text, and say so."""
    free = run_rows(program, model, ["The ship"], "-n", 24, "--ignore-eos")[0]
    word = free["text"].split()[3]
    ask = {"model": "nano", "prompt": "The ship", "max_tokens": 24, "temperature": 0}
    text = client.completions.create(stop=[word, "\0never"], extra_body={"ignore_eos": True}, **ask)
    cut = free["text"][: free["text"].index(word)]
    check.equal(text.choices[0].text, cut, "text before a stop string")
    check.equal(text.choices[0].finish_reason, "stop", "finish_reason of a stop string")
    check.equal(text.choices[0].stop_reason, word, "stop_reason")
    kept = client.completions.create(
        stop=word, extra_body={"include_stop_str_in_output": True, "ignore_eos": True}, **ask
    )
    check.equal(kept.choices[0].text, cut + word, "include_stop_str_in_output")
    streamed = client.completions.create(
        stop=word, stream=True, extra_body={"ignore_eos": True}, **ask
    )
    check.equal("".join(c.choices[0].text for c in streamed), cut, "streamed with a stop string")
    token = free["output_ids"][2]
    by_id = client.completions.create(
        extra_body={"stop_token_ids": [token], "ignore_eos": True}, **ask
    )
    first = free["output_ids"].index(token)
    check.equal(by_id.usage.completion_tokens, first + 1, "stop_token_ids")
    check.equal(by_id.choices[0].stop_reason, token, "stop_reason of a token")
    forced = client.completions.create(
        model="nano", prompt="The ship", max_tokens=5, temperature=0,
        logit_bias={"464": 100}, extra_body={"return_token_ids": True},
    )
    check.equal(forced.choices[0].token_ids, [464] * 5, "logit_bias decides")
    best = client.completions.create(
        model="nano", prompt="The ship", max_tokens=8, temperature=1.5, n=2, best_of=6, seed=1,
        logprobs=0,
    )
    means = [sum(c.logprobs.token_logprobs) / len(c.logprobs.tokens) for c in best.choices]
    check.expect(len(means) == 2 and means[0] >= means[1], f"best_of orders its choices: {means}")


def check_errors(check, client, server):
    """Each mistake is the client's own exception, with param and code."""
    ask = {"model": "nano", "prompt": "a"}
    create = client.completions.create
    bad, lost = openai.BadRequestError, openai.NotFoundError
    check.raises(bad, lambda: create(**ask, temperature=3), "temperature", "temperature")
    check.raises(bad, lambda: create(**ask, n=0), "n", "n")
    check.raises(bad, lambda: create(**ask, max_tokens=5000), "length", "prompt",
                 "context_length_exceeded")
    check.raises(bad, lambda: create(**ask, suffix="b"), "suffix", "suffix")
    check.raises(bad, lambda: create(**ask, extra_body={"temprature": 1}), "unknown", "temprature")
    check.raises(bad, lambda: create(**ask, logit_bias={"99999": 1}), "logit_bias", "logit_bias")
    check.raises(lost, lambda: create(model="gpt-4", prompt="a"), "model", "model",
                 "model_not_found")
    check.raises(
        bad,
        lambda: client.chat.completions.create(
            model="nano", messages=[{"role": "user", "content": "a"}],
            response_format={"type": "json_object"},
        ),
        "response_format", "response_format.type",
    )
    wrong = openai.OpenAI(base_url=server.url + "/v1", api_key="no", max_retries=0)
    check.raises(openai.AuthenticationError, wrong.models.list, "a wrong key")
    check.equal(server.request("GET", "/v1/models")[0], 401, "no key")
    check.equal(server.request("GET", "/metrics")[0], 401, "metrics without a key")


def check_rest(check, client, server):
    """Models, tokens, overflow, metrics."""
    check.equal([m.id for m in client.models.list()], ["nano", "other"], "models")
    check.equal(client.models.retrieve("other").id, "other", "one model")
    key = {"Authorization": f"Bearer {KEY}"}

    def post(path, body):
        status, headers, text = server.request("POST", path, body, key)
        return status, headers, json.loads(text)

    _, _, tokens = post("/tokenize", {"prompt": "Hello wörld <|endoftext|>"})
    _, _, text = post("/detokenize", {"tokens": tokens["tokens"]})
    check.equal(text["prompt"], "Hello wörld <|endoftext|>", "tokenize and back")
    check.expect(50256 not in tokens["tokens"], "text of a user makes no special token")
    _, headers, cut = post("/v1/completions", {
        "prompt": "word " * 1100, "max_tokens": 4, "overflow": "middle", "temperature": 0,
        "overflow_keep_last": 2, "return_token_ids": True,
    })
    dropped = cut.get("caravan", {}).get("num_dropped_tokens", 0)
    check.expect(dropped > 0, f"overflow is reported: {cut}")
    check.equal(headers.get("x-caravan-dropped-tokens"), str(dropped), "the header says it too")
    check.equal(cut["usage"]["prompt_tokens"], 1024 - 4, "a cut prompt fills the context")
    for name in ("prompt_per_second", "predicted_per_second", "cache_n"):
        check.expect(cut["timings"].get(name, -1) >= 0, f"timings.{name}")

    status, headers, metrics = server.request("GET", "/metrics", headers=key)
    families = {f.name: f for f in text_string_to_metric_families(metrics.decode())}
    for name in (
        "num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "cache_config_info",
        "prefix_cache_queries", "prefix_cache_hits", "prompt_tokens", "generation_tokens",
        "num_preemptions", "request_success", "time_to_first_token_seconds",
        "inter_token_latency_seconds", "e2e_request_latency_seconds", "request_queue_time_seconds",
        "request_prefill_time_seconds", "request_decode_time_seconds",
        "request_inference_time_seconds", "request_prompt_tokens", "request_generation_tokens",
        "request_params_n", "request_params_max_tokens",
    ):
        family = families.get("vllm:" + name)
        check.expect(family is not None and family.samples, f"metric {name}")
        for sample in family.samples if family else []:
            check.equal(sample.labels["model_name"], "nano", f"model_name of {name}")
    done = {s.labels["finished_reason"]: s.value for s in families["vllm:request_success"].samples}
    check.expect(done["stop"] > 0 and done["length"] > 0, f"request_success: {done}")
    first = families["vllm:time_to_first_token_seconds"].samples
    counts = [s.value for s in first if s.name.endswith("_bucket")]
    check.expect(counts == sorted(counts) and counts[-1] > 20, "a histogram rises")


def main():
    program, source = sys.argv[1], pathlib.Path(sys.argv[2])
    model = source / "models" / "camel-nano"
    check = Check()
    flags = ["--api-key", KEY, "--served-model-name", "nano", "--served-model-name", "other"]
    with Server(program, model, *flags) as server:
        client = openai.OpenAI(base_url=server.url + "/v1", api_key=KEY, max_retries=0)
        check_equal_to_run(check, client, program, model)
        check_streams(check, client)
        check_logprobs(check, client)
        check_stops(check, client, program, model)
        check_errors(check, client, server)
        check_rest(check, client, server)
    check.equal(server.process.returncode, 0, f"exit status after SIGTERM ({server.log})")
    for failure in check.failures:
        print(failure, file=sys.stderr)
    return 1 if check.failures else 0


if __name__ == "__main__":
    sys.exit(main())
