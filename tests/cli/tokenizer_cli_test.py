#!/usr/bin/env python3
"""What the files beside a model's weights do to prompts, samples and texts of the commands.

usage: tokenizer_cli_test.py PROGRAM SOURCE_DIR
"""

import json
import os
import pathlib
import sys
import tempfile

from cli_tools import Checker, run

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "server"))
from server_tools import Server  # pylint: disable=wrong-import-position


def variant(model, directory, **files):
    """A directory with the model's files as links, but for those given as JSON; None: left out."""
    directory.mkdir()
    written = {name.replace("__", "."): content for name, content in files.items()}
    for path in model.iterdir():
        if path.name not in written:
            os.symlink(path, directory / path.name)
    for name, content in written.items():
        if content is not None:
            (directory / name).write_text(json.dumps(content))
    return directory


def check_end_of_text(check, model, directory):
    """A token that ends the text and is not special is no part of it, in run as in serve."""
    base = ["--prompt", "The sea was", "-n", 6, "--json"]
    free = check.json("run", "--model", model, *base, "--ignore-eos")
    eos = free["output_ids"][3]
    first = free["output_ids"].index(eos)
    config = json.loads((model / "config.json").read_text()) | {"eos_token_id": eos}
    ended = variant(model, directory / "eos", config__json=config, generation_config__json=None)
    row = check.json("run", "--model", ended, *base)
    check.expect(row["finish_reason"] == "stop", f"it ends with the end of text: {row}")
    check.expect(row["output_ids"] == free["output_ids"][: first + 1], f"ids up to {eos}: {row}")
    with Server(check.program, ended, "-t", "1") as server:
        status, answer = server.post(
            "/v1/completions",
            {"prompt": "The sea was", "max_tokens": 6, "temperature": 0, "return_token_ids": True},
        )
    check.expect(status == 200, str(answer))
    check.expect(answer["choices"][0]["text"] == row["text"], f"run {row['text']!r}: {answer}")
    shown = check.json("tokenize", "--model", model, "--json", "--decode", "--ids",
                       ",".join(map(str, row["output_ids"][:-1] or [0])))["text"]
    if row["output_ids"][:-1]:
        check.expect(row["text"] == shown, f"the text is {shown!r}, not {row['text']!r}")


def check_generation_config(check, model, directory):
    """generation_config.json gives run and serve the same settings; flags go before it."""
    settings = {"temperature": 0.8, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.3}
    given = variant(
        model, directory / "generation", generation_config__json={"do_sample": True, **settings}
    )
    plain = variant(model, directory / "plain", generation_config__json=None)
    base = ["--prompt", "The sea was", "-n", 12, "--json", "--seed", 5]
    flags = [part for name, value in settings.items() for part in ("--" + name.replace("_", "-"), value)]
    wanted = check.json("run", "--model", plain, *base, *flags)["output_ids"]
    greedy = check.json("run", "--model", plain, *base)["output_ids"]
    check.expect(wanted != greedy, "the settings change the output")
    check.expect(check.json("run", "--model", given, *base)["output_ids"] == wanted, "run reads it")
    cold = check.json("run", "--model", given, *base, "--temperature", 0, "--repetition-penalty", 1)
    check.expect(cold["output_ids"] == greedy, "flags go before the file")
    with Server(check.program, given, "-t", "1") as server:
        _, answer = server.post(
            "/v1/completions",
            {"prompt": "The sea was", "max_tokens": 12, "seed": 5, "return_token_ids": True},
        )
    check.expect(answer["choices"][0]["token_ids"] == wanted, f"serve reads it: {answer}")
    off = variant(
        model, directory / "off", generation_config__json={"do_sample": False, **settings, "repetition_penalty": 1.0}
    )
    check.expect(check.json("run", "--model", off, *base)["output_ids"] == greedy, "do_sample: false")


def check_random_seed(check, model):
    """--seed -1 is another seed each time, and the log tells which."""
    base = ["--model", model, "--prompt", "The", "-n", 16, "--json", "--temperature", 2, "--seed"]
    rows = [check.json("run", *base, -1)["output_ids"] for _ in range(4)]
    check.expect(len({tuple(row) for row in rows}) > 1, f"four random seeds: {rows}")
    check.refuses(64, "--seed", "run", *base, -2)


def check_prompts(check, model, directory):
    """add_bos_token and tokens that are named beside tokenizer.json."""
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = tokenizer["added_tokens"][:1]
    named = variant(
        model,
        directory / "named",
        tokenizer__json=tokenizer,
        tokenizer_config__json={},
        special_tokens_map__json={"additional_special_tokens": ["<speaker1>"]},
        added_tokens__json={"<speaker1>": 50257},
    )
    text = ["--text", "Hi <speaker1>a"]
    ids = check.json("tokenize", "--model", named, "--json", "--parse-special", *text)["ids"]
    check.expect(ids == [17250, 220, 50257, 64], f"the token of added_tokens.json: {ids}")
    ids = check.json("tokenize", "--model", named, "--json", *text)["ids"]
    check.expect(50257 not in ids, f"a special token in a text that is not trusted: {ids}")
    bos = variant(
        model,
        directory / "bos",
        tokenizer__json=None,
        tokenizer_config__json={"add_bos_token": True},
    )
    ids = check.json("tokenize", "--model", bos, "--json", "--text", "Hi")["ids"]
    check.expect(ids == [50256, 17250], f"add_bos_token: {ids}")
    ids = check.json("tokenize", "--model", bos, "--json", "--no-add-special", "--text", "Hi")["ids"]
    check.expect(ids == [17250], f"--no-add-special: {ids}")


def check_no_tokenizer(check, model, directory):
    """convert, build and plan warn; lint says why."""
    bare = variant(model, directory / "bare", tokenizer__json={"version": "1.0"}, vocab__json=None)
    why = "the model runs on token ids only: "
    for command in (
        ["convert", "--output", directory / "c"],
        ["build", "--output", directory / "b", "--max-input-len", 64, "--max-output-len", 64],
        ["plan"],
    ):
        result = run(check.program, command[0], "--model", bare, *command[1:])
        check.expect(result.returncode == 0 and why in result.stderr, f"{command}: {result}")
    check.refuses(78, "pre_tokenizer", "tokenize", "--model", bare, "--text", "Hi")


def main():
    check = Checker(sys.argv[1])
    model = pathlib.Path(sys.argv[2]).resolve() / "models" / "camel-nano"
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        check_end_of_text(check, model, directory)
        check_generation_config(check, model, directory)
        check_random_seed(check, model)
        check_prompts(check, model, directory)
        check_no_tokenizer(check, model, directory)
    for failure in check.failures:
        print(failure)
    sys.exit(1 if check.failures else 0)


if __name__ == "__main__":
    main()
