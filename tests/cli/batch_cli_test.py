#!/usr/bin/env python3
"""`run --input` and `score` on files of prompts: nothing is lost and nothing is ignored.

usage: batch_cli_test.py PROGRAM SOURCE_DIR
"""

import json
import pathlib
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time

from cli_tools import Checker, one_error_line, run, run_or_die

EOS = 50256


def lines_of(*rows):
    """JSON Lines of the rows; strings stand as they are."""
    return "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows)


class Batch(Checker):
    """Calls on one model with a file or standard input."""

    def __init__(self, program, model, directory):
        super().__init__(program)
        self.model = model
        self.directory = directory

    def call(self, command, text, *flags, model=None):
        """The finished process, bytes on standard input."""
        data = text if isinstance(text, bytes) else text.encode()
        return subprocess.run(
            [self.program, "--quiet", command, "--model", str(model or self.model), "--input", "-",
             *map(str, flags)],
            input=data, capture_output=True, check=False,
        )

    def rows(self, command, text, *flags, status=0, model=None):
        """The rows of a call that ends with `status`."""
        result = self.call(command, text, *flags, model=model)
        self.expect(result.returncode == status,
                    f"{command} {flags}: exit {result.returncode}, expected {status}: "
                    f"{result.stderr.decode()}")
        # No NaN, no Infinity: they are not JSON.
        return [json.loads(line, parse_constant=lambda name: f"not JSON: {name}")
                for line in result.stdout.splitlines()]

    def run_rows(self, text, *flags, **options):
        return self.rows("run", text, "--json", "--ignore-eos", *flags, **options)


def without_timings(path):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row.pop("timings", None)
    return rows


def check_stream(check):
    """A line is answered while standard input stays open, so nothing waits for the end."""
    for command in ("run", "score"):
        flags = ["--json", "-n", "2"] if command == "run" else []
        with subprocess.Popen(
            [check.program, "-q", command, "--model", str(check.model), "--input", "-", *flags],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        ) as process:
            for i in range(3):
                process.stdin.write(json.dumps({"id": i, "prompt": "The sea was"}) + "\n")
                process.stdin.flush()
                row = json.loads(process.stdout.readline())
                check.expect(row["id"] == i and row["line"] == i + 1, f"{command}: row {row}")
            process.stdin.close()
            check.expect(process.wait() == 0, f"{command}: status of a stream")


def check_order(check):
    """Rows come in the order of the input, however long each takes."""
    prompts = [{"id": i, "prompt": f"The number {i} is", "max_tokens": 1 + (7 * i) % 30}
               for i in range(150)]
    rows = check.run_rows(lines_of(*prompts))
    check.expect([row["id"] for row in rows] == list(range(150)), "the order of 150 prompts")
    check.expect([len(row["output_ids"]) for row in rows] == [p["max_tokens"] for p in prompts],
                 "max_tokens of each line")


def check_fields(check):
    """A line's fields do what the flags do; names come back."""
    fields = {"max_tokens": 6, "temperature": 0.9, "top_p": 0.9, "top_k": 40, "seed": 4}
    flags = ["-n", 6, "--temperature", 0.9, "--top-p", 0.9, "--top-k", 40, "--seed", 4]
    prompt = {"prompt": "The sea was"}
    by_line = check.run_rows(lines_of({**prompt, **fields, "id": "q7"}), "-n", 2)[0]
    by_flag = check.run_rows(lines_of(prompt), *flags)[0]
    check.expect(by_line["output_ids"] == by_flag["output_ids"], "a line's sampling fields")
    check.expect(by_line["id"] == "q7" and "id" not in by_flag, "the id comes back")
    batch = check.run_rows(lines_of({"custom_id": "r1", "method": "POST", "url": "/v1/completions",
                                     "body": {"model": "m", **prompt, **fields}}))[0]
    check.expect(batch["output_ids"] == by_line["output_ids"] and batch["custom_id"] == "r1",
                 "a line of OpenAI's batch format")
    greedy = check.run_rows(lines_of(prompt), "-n", 8)[0]
    word = greedy["text"].split()[1]
    stopped = check.run_rows(lines_of({**prompt, "stop": word}), "-n", 8)[0]
    check.expect(stopped["text"] == greedy["text"][: greedy["text"].index(word)], "a line's stop")
    several = check.run_rows(lines_of({**prompt, **fields, "n": 3}, {"prompt": "A", "id": "z"}),
                             "-n", 2)
    check.expect([row.get("index") for row in several] == [0, 1, 2, None], "index of n")
    check.expect([row["line"] for row in several] == [1, 1, 1, 2], "line of n")
    check.expect(several[0]["output_ids"] == by_line["output_ids"], "the first of n")
    check.expect(len({tuple(row["output_ids"]) for row in several[:3]}) > 1, "seeds of n differ")
    scored = check.run_rows(lines_of({**prompt, "logprobs": 2, "prompt_logprobs": 0}), "-n", 2)[0]
    check.expect(len(scored["logprobs"]) == 2 and len(scored["logprobs"][0]["top"]) == 2,
                 "a line's logprobs")
    check.expect(len(scored["prompt_logprobs"]) == len(scored["prompt_ids"]) - 1,
                 "a line's prompt_logprobs")
    ids = greedy["prompt_ids"]
    for name in ("ids", "prompt_ids", "prompt"):
        row = check.run_rows(lines_of({name: ids}), "-n", 8)[0]
        check.expect(row["output_ids"] == greedy["output_ids"], f"token ids as {name}")
    twins = check.run_rows(lines_of({"id": "a", **prompt}, {"id": "a", "prompt": "A cat"}), "-n", 1)
    check.expect([(row["id"], row["line"]) for row in twins] == [("a", 1), ("a", 2)],
                 "two lines of one id")


def check_bad_lines(check):
    """Each wrong line is named and costs no other."""
    good = {"prompt": "A cat"}
    bad = [
        ('{"prompt": "a", "max_new_tokens": 3}', 'unknown field "max_new_tokens"'),
        ('{"messages": [{"role": "user", "content": "hi"}]}', "messages: run completes prompts"),
        ('{"prompt": "a", "temperature": "hot"}', "temperature: got"),
        (json.dumps({"prompt": "word " * 2000}), "tokens, expected at most 1022"),
        ("not JSON", "not valid JSON"),
        ("[1, 2]", "expected a JSON object"),
        ('{"prompt": "a"', "not valid JSON"),
        ('{"prompt": "a", "prompt": "b"}', "appears twice"),
        ('{"prompt": 3}', "prompt: got the number 3"),
        ('{"ids": [50258]}', "ids[0]: got the number 50258"),
        ('{"id": "x", "prompt": "a", "stop": [7]}', "stop: got"),
        ('{"prompt": "a", "max_tokens": 5000}', "leave no room"),
        ('{"url": "/v1/chat/completions", "body": {"prompt": "a"}}', "url: got"),
    ]
    text = lines_of(good, *[line for pair in bad for line in (pair[0], good)])
    rows = check.run_rows(text, "-n", 2, status=1)
    check.expect(len(rows) == 2 * len(bad) + 1, f"{len(rows)} rows of {2 * len(bad) + 1} lines")
    for row, (line, wanted) in zip(rows[1::2], bad):
        number = row["line"]
        check.expect(wanted in row.get("error", "") and row["error"].startswith(f"-:{number}: "),
                     f"{line[:60]}: {row}")
        check.expect(row.get("id") == ("x" if '"x"' in line else None), f"id of {row}")
    first = rows[0]["output_ids"]
    check.expect(all(row.get("output_ids") == first for row in rows[::2]), "the good lines")

    result = check.call("run", text, "-n", "2")
    stderr = result.stderr.decode()
    check.expect(result.returncode == 1, "texts: exit status 1")
    check.expect(stderr.count("caravan: error: -:") == len(bad), f"texts: errors: {stderr}")
    check.expect(result.stdout.count(b"--- ") == len(bad) + 1, "texts: the good lines")

    invalid = b'{"prompt": "a"}\n{"prompt": "\xff"}\n{"prompt": "b"}\n'
    rows = check.run_rows(invalid, "-n", 1, status=1)
    check.expect("error" in rows[1] and "error" not in rows[2], f"ill-formed UTF-8: {rows}")
    huge = b'{"prompt": "a"}\n{"prompt": "' + b"x" * (65 << 20) + b'"}\n{"prompt": "b"}\n'
    rows = check.run_rows(huge, "-n", 1, status=1)
    check.expect(len(rows) == 3 and "-:2: the line has more than" in rows[1].get("error", "")
                 and "output_ids" in rows[2], "a line beyond the limit")
    for empty in ("", "\n\n", "\r\n"):
        result = check.call("run", empty)
        check.expect(result.returncode == 65 and b"-: no prompts" in result.stderr,
                     f"{empty!r}: {result.stderr}")


def check_bytes(check):
    """Line ends, marks, blank lines and NUL change no prompt."""
    plain = check.run_rows(lines_of({"prompt": "a b"}, {"prompt": "c"}), "-n", 2)
    wanted = [(row["prompt_ids"], row["output_ids"]) for row in plain]
    for text in (b'{"prompt": "a b"}\r\n{"prompt": "c"}\r\n', b'{"prompt": "a b"}\n{"prompt": "c"}',
                 b'\xef\xbb\xbf{"prompt": "a b"}\n\n  \n{"prompt": "c"}\n\n'):
        rows = check.run_rows(text, "-n", 2)
        check.expect([(row["prompt_ids"], row["output_ids"]) for row in rows] == wanted,
                     f"{text}: {rows}")
    check.expect([row["line"] for row in rows] == [1, 4], "lines are counted with blank ones")
    kept = check.run_rows(lines_of({"prompt": "a\0b\r\nc "}), "-n", 1)[0]["prompt_ids"]
    text = subprocess.run(
        [check.program, "tokenize", "--model", str(check.model), "--decode", "--ids",
         ",".join(map(str, kept))], capture_output=True, check=False,
    ).stdout
    check.expect(text == b"a\0b\r\nc \n", f"NUL and CR LF in a prompt: {text}")
    # An output with NUL is not cut: token 188 is that byte.
    out = check.call("run", lines_of({"prompt": "a", "logit_bias": {"188": 100}}), "-n", 2).stdout
    check.expect(out == b"--- 0\n\0\0\n", f"NUL in an output: {out}")


def check_resume(check):
    """A killed job continues with the lines that are missing."""
    source = check.directory / "prompts.jsonl"
    rows = [{"id": i, "prompt": f"The number {i} is"} for i in range(60)]
    rows[7] = {"id": 7, "prompt": "a", "wrong": 1}
    rows[9] = {"id": 9, "prompt": "many", "n": 3, "temperature": 1}
    source.write_text(lines_of(*rows))
    base = ["run", "--model", check.model, "--input", source, "-n", 24, "--ignore-eos"]
    whole = check.directory / "whole.jsonl"
    result = run(check.program, *base, "--output", whole)
    check.expect(result.returncode == 1 and result.stdout == "", f"whole: {result.stderr}")
    wanted = without_timings(whole)
    check.expect(len(wanted) == 62, f"{len(wanted)} rows")

    for sign in (signal.SIGTERM, signal.SIGKILL):
        path = check.directory / f"killed{sign}.jsonl"
        process = subprocess.Popen([check.program, "-q", *map(str, base), "--output", str(path)])
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if path.exists() and path.read_bytes().count(b"\n") >= 12:
                process.send_signal(sign)
                break
            time.sleep(0.002)
        process.wait()
        num_there = path.read_bytes().count(b"\n")
        check.expect(num_there >= 12, f"{sign}: {num_there} lines are out")
        result = run(check.program, *base, "--output", path, "--resume")
        check.expect(result.returncode == 1, f"{sign}: resumed: {result.stderr}")
        check.expect(without_timings(path) == wanted, f"{sign}: the continued file differs")

    text = whole.read_bytes()
    lines = text.splitlines(keepends=True)
    path = check.directory / "cut.jsonl"
    # Between lines, in a line, in the middle of the three completions of one prompt.
    for cut in (0, 5, len(lines[0]), sum(map(len, lines[:10])), sum(map(len, lines[:11])),
                sum(map(len, lines[:11])) + 40, len(text) - 1, len(text)):
        path.write_bytes(text[:cut])
        result = run(check.program, *base, "--output", path, "--resume")
        check.expect(result.returncode == 1, f"cut to {cut}: {result.stderr}")
        check.expect(without_timings(path) == wanted, f"cut to {cut}: the continued file differs")

    half = b"".join(lines[:20])
    path.write_bytes(half)
    resume = [*base, "--output", path, "--resume"]
    check.refuses(64, "(--temperature changed)", *resume, "--temperature", 0.5)
    check.refuses(64, "(--dtype, --stop changed)", *resume, "--dtype", "bfloat16", "--stop", "x")
    check.refuses(64, "exists already", *base, "--output", path)
    other = check.directory / "other.jsonl"
    other.write_text(lines_of(*rows[:3], {"prompt": "another"}, *rows[4:]))
    base_other = ["run", "--model", check.model, "--input", other, "-n", 24, "--ignore-eos"]
    check.refuses(64, "cut.jsonl:4: made from line 4 of another --input", *base_other, "--output",
                  path, "--resume")
    other.write_text(lines_of(*rows[:3]))
    check.refuses(64, "made from line 4 of another --input, this one ends before", *base_other,
                  "--output", path, "--resume")
    check.refuses(64, "--resume needs --output FILE", *base, "--resume")
    check.refuses(64, "--resume needs --input", "run", "--model", check.model, "--prompt", "a",
                  "--output", path, "--resume")
    check.expect(path.read_bytes() == half, "a refusal changes nothing")

    check.refuses(64, "the file that is read", *base, "--output", source, "--resume")
    check.refuses(64, "exists already", *base, "--output", source)
    check.refuses(64, "replaces no other", *base_other, "--output", source, "--force")
    check.expect(json.loads(source.read_text().splitlines()[0]) == rows[0], "the input is whole")
    check.refuses(64, "is a directory", *base, "--output", check.directory)

    score_base = ["score", "--model", check.model, "--input", other]
    check.expect(run(check.program, *score_base, "--output", whole, "--force").returncode == 0,
                 "score --force")
    scored = whole.read_bytes()
    whole.write_bytes(scored[: scored.index(b"\n") + 9])
    check.expect(run(check.program, *score_base, "--output", whole, "--resume").returncode == 0,
                 "score --resume")
    check.expect(whole.read_bytes() == scored, "score: the continued file differs")
    check.refuses(64, "(--parse-special changed)", *score_base, "--output", whole, "--resume",
                  "--parse-special")


def check_write_errors(check):
    """The first line that cannot be written ends the command, with 74."""
    text = lines_of(*[{"prompt": "a"}] * 3)
    for command in ("run", "score"):
        for flags in ([], ["--output", "/dev/full"]):
            with open("/dev/full", "wb") as full:
                result = subprocess.run(
                    [check.program, "-q", command, "--model", str(check.model), "--input", "-",
                     *flags], input=text.encode(), stdout=full, stderr=subprocess.PIPE, check=False)
            check.expect(result.returncode == 74 and b"write failed" in result.stderr,
                         f"{command} {flags}: exit {result.returncode}: {result.stderr}")
    result = run(check.program, "run", "--model", check.model, "--prompt", "a", "-n", 2,
                 "--output", "/dev/full")
    check.expect(result.returncode == 74 and one_error_line(result), f"--prompt: {result.stderr}")


def check_special_tokens(check):
    """Special tokens of trusted text, an empty prompt, and the warning."""
    text = "Hi<|endoftext|>"
    base = ["run", "--model", check.model, "-n", 1, "--json"]
    plain = run(check.program, *base, "--prompt", text)
    check.expect(len(json.loads(plain.stdout)["prompt_ids"]) > 2, "plain text by default")
    check.expect(plain.stderr.count("--parse-special") == 1 and "<|endoftext|>" in plain.stderr,
                 f"a warning: {plain.stderr}")
    parsed = run(check.program, *base, "--prompt", text, "--parse-special")
    check.expect(json.loads(parsed.stdout)["prompt_ids"] == [17250, EOS], "--parse-special")
    check.expect(parsed.stderr == "", f"no warning: {parsed.stderr}")
    empty = check.json(*base, "--prompt", "")
    check.expect(empty["prompt_ids"] == [EOS], "an empty prompt begins with bos_token_id")

    prompts = lines_of({"prompt": text}, {"prompt": text, "parse_special": True}, {"prompt": ""},
                       {"prompt": text})
    result = check.call("run", prompts, "--json", "-n", 1)
    rows = [json.loads(line)["prompt_ids"] for line in result.stdout.splitlines()]
    check.expect(rows[1] == [17250, EOS] and rows[2] == [EOS] and len(rows[0]) > 2, f"{rows}")
    check.expect(result.stderr.count(b"2 prompts have the text of a special token (-:1:") == 1,
                 f"one warning for all: {result.stderr}")
    scored = check.rows("score", lines_of({"text": text}, {"text": text, "parse_special": True},
                                          {"ids": [17250, EOS]}))
    check.expect(scored[1]["nll"] == scored[2]["nll"] != scored[0]["nll"], "score: parse_special")

    no_bos = check.directory / "no-bos"
    shutil.copytree(check.model, no_bos)
    config = json.loads((no_bos / "config.json").read_text())
    config["bos_token_id"] = None
    (no_bos / "generation_config.json").unlink(missing_ok=True)
    (no_bos / "config.json").write_text(json.dumps(config))
    check.refuses(64, "the prompt is empty", "run", "--model", no_bos, "--prompt", "")


def check_standard_input(check):
    """A prompt from standard input."""
    base = [check.program, "-q", "run", "--model", str(check.model), "-n", "2", "--json"]
    wanted = check.json("run", "--model", check.model, "-n", 2, "--json", "--prompt", "Good day")
    for flags in ([], ["--prompt", "-"]):
        for data in (b"Good day", b"Good day\n", b"Good day\r\n"):
            result = subprocess.run([*base, *flags], input=data, capture_output=True, check=False)
            check.expect(result.returncode == 0
                         and json.loads(result.stdout)["prompt_ids"] == wanted["prompt_ids"],
                         f"{flags} {data}: {result.stderr}")
    result = subprocess.run(base, input=b"a\0b\n\n", capture_output=True, check=False)
    ids = json.loads(result.stdout)["prompt_ids"]
    text = subprocess.run([check.program, "tokenize", "--model", str(check.model), "--decode",
                           "--ids", ",".join(map(str, ids))], capture_output=True, check=False)
    check.expect(text.stdout == b"a\0b\n\n", f"NUL from standard input: {text.stdout}")
    result = subprocess.run(base, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    check.expect(result.returncode == 64 and b"standard input is empty" in result.stderr,
                 f"nothing at all: {result.stderr}")


def check_dash(check):
    """- is standard input, or output, where a file is read or written."""
    text = "The sea was calm that day. " * 3
    path = check.directory / "calm.txt"
    path.write_text(text)
    passages = lines_of({"text": "The sea was calm"}, {"text": "A cat sat on the mat"})
    (check.directory / "calm.jsonl").write_text(passages)
    for command, flags, data, name in (
        ("perplexity", ["--json"], text, "calm.txt"),
        ("lambada", ["--format", "jsonl", "--output", "-"], passages, "calm.jsonl"),
    ):
        from_file = run(check.program, command, "--model", check.model, "--data",
                        check.directory / name, *flags)
        piped = run(check.program, command, "--model", check.model, "--data", "-", *flags,
                    input=data)
        figures = [result.stdout.splitlines()[0].split('"model"')[0]
                   for result in (from_file, piped)]
        check.expect(from_file.returncode == piped.returncode == 0 and figures[0] == figures[1],
                     f"{command} --data -: {piped.stderr} {figures}")


def check_without_tokenizer(check):
    """Token ids in, token ids out."""
    model = check.directory / "ids-only"
    model.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(check.model / name, model)
    (model / "vocab.txt").write_text("[PAD]\n[UNK]\n")
    ids = [464, 5417, 373]
    wanted = check.run_rows(lines_of({"ids": ids}), "-n", 3)[0]
    rows = check.run_rows(lines_of({"ids": ids}, {"prompt": "a"}, {"ids": ids, "stop": "x"},
                                   {"prompt_ids": ids, "logprobs": 1}), "-n", 3, model=model,
                          status=1)
    check.expect(rows[0]["output_ids"] == wanted["output_ids"] and "text" not in rows[0],
                 f"ids: {rows[0]}")
    check.expect("-:2: " in rows[1]["error"] and "-:3: stop" in rows[2]["error"],
                 f"texts are refused: {rows[1:3]}")
    check.expect(rows[3]["logprobs"][0]["id"] == wanted["output_ids"][0], "log probabilities")
    nll = [check.rows("score", lines_of({"ids": ids}), model=m)[0]["nll"]
           for m in (model, check.model)]
    check.expect(nll[0] == nll[1], "score of ids")
    result = run(check.program, "run", "--model", model, "--prompt", "a")
    check.expect(result.returncode != 0 and one_error_line(result), f"a text: {result.stderr}")


def check_chat_template(check):
    """A model with a chat template of its own is not answered with another one in silence."""
    model = check.directory / "chatty"
    shutil.copytree(check.model, model)
    (model / "chat_template.jinja").write_text("{{ messages[0].content }}")
    for flags, warns in (([], True), (["--template", "none"], False),
                         (["--template", "camel"], True)):
        result = run(check.program, "run", "--model", model, "--prompt", "a", "-n", 1, *flags)
        check.expect(result.returncode == 0, f"{flags}: {result.stderr}")
        check.expect(("chat_template.jinja" in result.stderr) == warns, f"{flags}: {result.stderr}")


def make_nan_model(check):
    """A tiny model with NaN in the embedding of the first tokens."""
    model = check.directory / "nan"
    run_or_die(check.program, "synth", "--shape", "custom", "--n-embd", 8, "--n-layer", 1,
               "--n-head", 2, "--vocab-size", 50258, "--n-positions", 64, "--output", model,
               "--tokenizer", check.model)
    path = model / "model.safetensors"
    with path.open("r+b") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        begin = json.loads(file.read(size))["transformer.wte.weight"]["data_offsets"][0]
        file.seek(8 + size + begin)
        file.write(struct.pack("<24f", *[float("nan")] * 24))
    return model


def check_not_finite(check):
    """Numbers that are none end with 1 (or are refused when the weights are read), as JSON."""
    model = make_nan_model(check)
    text = check.directory / "text.txt"
    text.write_text("The sea was calm that day. " * 3)
    passages = check.directory / "passages.jsonl"
    passages.write_text(lines_of({"text": "The sea was calm"}))
    for command in (["run", "--prompt", "Hi", "-n", 4, "--json"], ["perplexity", "--data", text],
                    ["perplexity", "--data", text, "--json"], ["lambada", "--data", passages],
                    ["lambada", "--data", passages, "--json"]):
        result = run(check.program, command[0], "--model", model, *command[1:])
        check.expect(result.returncode in (1, 65) and result.stderr,
                     f"{command}: exit {result.returncode}: {result.stderr}")
        if "--json" in command and result.stdout:
            json.loads(result.stdout, parse_constant=lambda name: check.expect(
                False, f"{command}: {name} is not JSON"))
    for command in ("run", "score"):
        result = check.call(command, lines_of({"text": "Hi there"}), model=model,
                            *(["--json", "-n", 4] if command == "run" else []))
        check.expect(result.returncode in (1, 65), f"{command}: exit {result.returncode}")
        for line in result.stdout.splitlines():
            row = json.loads(line, parse_constant=lambda name: check.expect(
                False, f"{command}: {name} is not JSON"))
            check.expect("error" in row or row.get("finish_reason") == "error", f"{command}: {row}")


def check_score(check):
    """Lines of score: names come back, a wrong line costs no other."""
    rows = check.rows(
        "score",
        lines_of({"id": 1, "text": "A cat"}, {"id": 2, "text": "word " * 1500}, {"text": ""},
                 {"ids": [50258]}, {"text": "a", "max_tokens": 1},
                 {"prompt": "A cat", "text": "A cat"}),
        status=1)
    check.expect([row["line"] for row in rows] == [1, 2, 3, 4, 5, 6], "score: a row a line")
    check.expect(rows[0]["nll"] == rows[5]["nll"] and rows[0]["id"] == 1, "score: the good lines")
    for row, wanted in zip(rows[1:5], ("-:2: 1501 tokens to score, expected 1 to 1024",
                                       "-:3: 0 tokens", "-:4: token id 50258",
                                       '-:5: unknown field "max_tokens"')):
        check.expect(wanted in row.get("error", ""), f"score: {row}")
    check.expect(rows[1]["id"] == 2, "score: the id of a wrong line")


def main():
    program, source = sys.argv[1], pathlib.Path(sys.argv[2])
    with tempfile.TemporaryDirectory() as name:
        check = Batch(program, source / "models" / "camel-nano", pathlib.Path(name))
        for part in (check_stream, check_order, check_fields, check_bad_lines, check_bytes,
                     check_resume, check_write_errors, check_special_tokens, check_standard_input,
                     check_dash, check_without_tokenizer, check_chat_template, check_not_finite,
                     check_score):
            part(check)
            print(part.__name__, len(check.failures), flush=True)
    for failure in check.failures:
        print(failure, file=sys.stderr)
    return 1 if check.failures else 0


if __name__ == "__main__":
    sys.exit(main())
