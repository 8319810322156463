#!/usr/bin/env python3
"""run and score as users call them, on the trained model.

usage: run_cli_test.py PROGRAM SOURCE_DIR
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

from cli_tools import Checker, run

EOS = 50256
CAMEL = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\nName three colours.\n\n### Response:"
)


def clear_prefix(margins):
    """How many greedy tokens come before the first near tie."""
    for i, margin in enumerate(margins):
        if margin <= 1e-3:
            return i
    return len(margins)


def check_greedy(check, model, prompts, directory):
    """64 greedy tokens of every golden prompt, all prompts in one batch and one at a time."""
    path = directory / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": p["text"]}) + "\n" for p in prompts))
    flags = ["--dtype", "float32", "--ignore-eos", "-n", "64", "--json"]
    result = run(check.program, "run", "--model", model, "--input", path, *flags)
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    check.expect(len(rows) == len(prompts), f"{len(rows)} completions: {result.stderr}")
    num_equal = 0
    for prompt, row in zip(prompts, rows):
        check.expect(row["prompt_ids"] == prompt["ids"], f"prompt ids of {prompt['text']!r}")
        clear = clear_prefix(prompt["greedy_margin"])
        num_equal += clear
        check.expect(
            row["output_ids"][:clear] == prompt["greedy64"][:clear],
            f"greedy tokens of {prompt['text']!r}: {row['output_ids']}",
        )
        check.expect(row["finish_reason"] == "length", "64 tokens end by length")
    check.expect(num_equal > 900, f"only {num_equal} tokens were compared")
    alone = run(check.program, "run", "--model", model, "--prompt", prompts[0]["text"], *flags)
    check.expect(
        json.loads(alone.stdout)["output_ids"] == rows[0]["output_ids"],
        "the first prompt alone gives other tokens than among the others",
    )


def check_score(check, model, prompts):
    """nll, top-20 and logsumexp against the goldens, from ids and from text."""
    lines = [json.dumps({"ids": p["ids"]}) for p in prompts[:3]]
    lines += [json.dumps({"text": p["text"]}) for p in prompts[:3]]
    result = subprocess.run(
        [check.program, "-q", "score", "--model", model, "--dtype", "float32", "--input", "-"],
        input="\n".join(lines), capture_output=True, text=True, check=False,
    )
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    check.expect(len(rows) == 6, f"score: {result.stderr}")
    for prompt, row in zip(prompts[:3] * 2, rows):
        check.expect(abs(row["nll"] / prompt["nll"] - 1) < 1e-3, f"nll {row['nll']}")
        check.expect(row["num_scored"] == len(prompt["ids"]) - 1, "num_scored")
        check.expect(len(row["last_top20"]) == 20, "last_top20")
        check.expect(abs(row["last_logsumexp"] - prompt["last_logsumexp"]) < 1e-3, "logsumexp")


def check_run_flags(check, model, directory):
    """Templates, stopping, sampling, truncation."""
    base = ["run", "--model", model, "--json"]
    camel = check.json(*base, "--template", "camel", "--instruction", "Name three colours.", "-n", 8)
    plain = check.json(*base, "--prompt", CAMEL, "-n", 8)
    check.expect(camel["prompt_ids"] == plain["prompt_ids"], "the camel template")
    check.expect(camel["output_ids"] == plain["output_ids"], "the camel template's output")

    free = check.json(*base, "--prompt", "The ship", "-n", 24, "--ignore-eos")
    stop = free["text"].strip().split()[2]
    stopped = check.json(*base, "--prompt", "The ship", "-n", 24, "--ignore-eos", "--stop", stop)
    check.expect(stopped["finish_reason"] == "stop", "a stop string ends with reason stop")
    check.expect(
        stopped["text"] == free["text"][: free["text"].index(stop)], "text before the stop string"
    )

    story = check.json(*base, "--template", "camel", "--instruction", "Say hello.", "-n", 200)
    if story["finish_reason"] == "stop":
        check.expect(story["output_ids"][-1] == EOS, "the end-of-text token ends the output")
        check.expect("<|endoftext|>" not in story["text"], "special tokens are not text")

    sampled = ["--prompt", "Once", "-n", 12, "--temperature", 0.9, "--top-p", 0.95, "--top-k", 50]
    one = check.json(*base, *sampled, "--seed", 5)
    two = check.json(*base, *sampled, "--seed", 5)
    check.expect(one["output_ids"] == two["output_ids"], "the same seed gives the same tokens")
    several = run(check.program, *base, *sampled, "--seed", 5, "--num-return", 3)
    rows = [json.loads(line) for line in several.stdout.splitlines()]
    check.expect(len(rows) == 3, several.stderr)
    check.expect(rows[0]["output_ids"] == one["output_ids"], "the first of three is seed 5")
    check.expect(len({tuple(r["output_ids"]) for r in rows}) > 1, "seeds differ")

    long_text = "word " * 1100
    long_file = directory / "long.jsonl"
    long_file.write_text(json.dumps({"prompt": long_text}) + "\n")
    base_long = ["run", "--model", model, "--input", long_file, "-n", 4, "--json"]
    refused = run(check.program, *base_long)
    check.expect(refused.returncode == 1 and "--truncate head|tail" in refused.stdout,
                 f"a prompt that is too long: {refused.stdout} {refused.stderr}")
    check.refuses(64, "--truncate head|tail", "run", "--model", model, "--prompt", long_text)
    cut = check.json(*base_long, "--truncate", "head")
    check.expect(len(cut["prompt_ids"]) == 1020, "a cut prompt leaves room for the output")
    check.expect(cut["prompt_tokens_dropped"] > 0, "what was dropped is reported")

    environment = dict(os.environ, CARAVAN_MAX_OUTPUT_LEN="3", CARAVAN_MODEL=str(model))
    result = subprocess.run(
        [check.program, "-q", "run", "--prompt", "A", "--ignore-eos", "--json"],
        capture_output=True, text=True, env=environment, check=False,
    )
    check.expect(
        result.returncode == 0 and len(json.loads(result.stdout)["output_ids"]) == 3,
        f"flags from the environment: {result.stderr}",
    )


def check_logprobs(check, model, prompts):
    """Log probabilities against the goldens' logits; asking for them changes no token."""
    prompt = prompts[0]
    flags = ["run", "--model", model, "--dtype", "float32", "--ignore-eos", "--json", "--prompt",
             prompt["text"], "-n", 8]
    plain = check.json(*flags)
    scored = check.json(*flags, "--logprobs", 20)
    check.expect("logprobs" not in plain, "no log probabilities unless asked for")
    check.expect(scored["output_ids"] == plain["output_ids"], "--logprobs changes the tokens")
    rows = scored["logprobs"]
    check.expect([row["id"] for row in rows] == scored["output_ids"], "one row a token")
    check.expect("".join(row["token"] for row in rows) == scored["text"], "texts of the tokens")
    check.expect(all(row["rank"] == 1 for row in rows), "greedy tokens rank first")
    first = rows[0]["top"]
    check.expect([top["rank"] for top in first] == list(range(1, 21)), "ranks")
    wanted = [(top[0], top[1] - prompt["last_logsumexp"]) for top in prompt["last_top20"]]
    for top, (token, logprob) in zip(first, wanted):
        check.expect(top["id"] == token, f"token {top['id']}, wanted {token}")
        check.expect(abs(top["logprob"] - logprob) < 1e-3, f"{top}, wanted {logprob}")
    sampled = ["--temperature", 1.5, "--seed", 11]
    check.expect(
        check.json(*flags, *sampled, "--logprobs", 0)["output_ids"]
        == check.json(*flags, *sampled)["output_ids"],
        "--logprobs changes sampled tokens",
    )
    check.refuses(64, "add --json", "run", "--model", model, "--prompt", "a", "--logprobs", 1)


def check_token_flags(check, model):
    """What changes which tokens there can be."""
    base = ["run", "--model", model, "--json", "--prompt", "Once upon a time"]
    free = check.json(*base, "-n", 16)["output_ids"]
    check.expect(len(set(free)) < 16, "the plain output repeats a token")
    biased = check.json(*base, "-n", 3, "--logit-bias", "257:1000", "--logit-bias", "11:-1000")
    check.expect(biased["output_ids"] == [257] * 3, f"--logit-bias: {biased['output_ids']}")
    for flag in ("--presence-penalty", "--frequency-penalty"):
        ids = check.json(*base, "-n", 16, flag, 1000)["output_ids"]
        check.expect(len(set(ids)) == 16, f"{flag} 1000 repeats a token: {ids}")
        check.expect(ids[0] == free[0], f"{flag} counts the prompt")
    narrow = check.json(*base, "-n", 16, "--temperature", 2, "--min-p", 1)["output_ids"]
    check.expect(narrow == free, "--min-p 1 leaves the most likely token")
    stop = free[3]
    stopped = check.json(*base, "-n", 16, "--stop-token-id", stop)
    check.expect(stopped["output_ids"] == free[: free.index(stop) + 1], "--stop-token-id")
    check.expect(stopped["finish_reason"] == "stop", "a stop token's reason")
    shorter = check.json(*base, "-n", free.index(stop))
    check.expect(stopped["text"] == shorter["text"], "a stop token is not text")
    later = check.json(*base, "-n", 16, "--stop-token-id", stop, "--min-output-len", 8)
    check.expect(len(later["output_ids"]) >= 9 or stop not in later["output_ids"],
                 f"--min-output-len 8: {later['output_ids']}")
    check.expect(stop not in later["output_ids"][:8], "no stop token before --min-output-len")
    for bias in ("7", "7:", ":1", "7:x", "7:1x", "x:1", "7 :1"):
        check.refuses(64, "expected ID:BIAS", *base, "--logit-bias", bias)
    check.refuses(64, "outside the vocabulary", *base, "--logit-bias", "50258:1")
    check.refuses(64, "names token 7 twice", *base, "--logit-bias", "7:1", "--logit-bias", "7:2")
    check.refuses(64, "stop_token_ids", *base, "--stop-token-id", -1)
    check.refuses(64, "min output length", *base, "-n", 4, "--min-output-len", 5)
    check.refuses(64, "min_p", *base, "--min-p", 1.5)
    check.refuses(64, "presence_penalty nan", *base, "--presence-penalty", "nan")


def check_refusals(check, model, directory):
    """Wrong input ends with one line and the documented status."""
    run_flags = ["run", "--model", model]
    check.refuses(66, "cannot open", *run_flags, "--input", directory / "none.jsonl")
    check.refuses(66, "no such directory", "run", "--model", directory / "none", "--prompt", "a")
    check.refuses(64, "the instruction is empty", *run_flags, "--template", "camel", "--prompt", "")
    check.refuses(64, "temperature -1", *run_flags, "--prompt", "a", "--temperature", -1)
    check.refuses(64, "top_p 0", *run_flags, "--prompt", "a", "--top-p", 0)
    check.refuses(64, "--dtype int8", *run_flags, "--prompt", "a", "--dtype", "int8")
    check.refuses(78, "device cuda", *run_flags, "--prompt", "a", "--device", "cuda")
    check.refuses(64, "CPU instruction set", *run_flags, "--prompt", "a", "--cpu-isa", "mmx")
    check.refuses(71, "1.0", *run_flags, "--prompt", "a", "--memory", "1MB")


def main():
    program, source = sys.argv[1], pathlib.Path(sys.argv[2])
    model = source / "models" / "camel-nano"
    golden = json.loads((source / "tests" / "goldens" / "camel-nano.json").read_text())
    check = Checker(program)
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        check_greedy(check, model, golden["prompts"], directory)
        check_score(check, model, golden["prompts"])
        check_run_flags(check, model, directory)
        check_logprobs(check, model, golden["prompts"])
        check_token_flags(check, model)
        check_refusals(check, model, directory)
    for failure in check.failures:
        print(failure, file=sys.stderr)
    return 1 if check.failures else 0


if __name__ == "__main__":
    sys.exit(main())
