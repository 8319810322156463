#!/usr/bin/env python3
"""summarize as users call it, on the trained model and invented articles.

usage: summarize_cli_test.py PROGRAM SOURCE_DIR
"""

import json
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

from cli_tools import Checker, run

OUTPUT_LEN = 24


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


class Summarize(Checker):
    """Runs `summarize` with what all calls share."""

    def __init__(self, program, source, directory):
        super().__init__(program)
        self.model = source / "models" / "camel-nano"
        self.data = source / "tests" / "data" / "summarization" / "articles.jsonl"
        self.parquet = source / "tests" / "data" / "parquet"
        self.directory = directory
        self.base = ["summarize", "--model", self.model, "--dtype", "float32",
                     "--output-len", OUTPUT_LEN]

    def done(self, *arguments):
        """The CompletedProcess of a call that succeeds."""
        result = run(self.program, *self.base, "--data", self.data, *arguments)
        self.expect(result.returncode == 0, f"{arguments}: {result.returncode} {result.stderr}")
        return result

    def predictions(self, name, *arguments):
        path = self.directory / name
        self.done("--output", path, *arguments)
        return path

    def decode(self, ids):
        path = self.directory / "ids.jsonl"
        path.write_text(json.dumps({"ids": ids}) + "\n")
        result = run(self.program, "tokenize", "--model", self.model, "--decode", "--input", path)
        self.expect(result.returncode == 0, f"decode: {result.stderr}")
        return json.loads(result.stdout)["text"]


def check_batches(check):
    """One at a time and four at a time: the same file, byte for byte."""
    one = check.predictions("one.jsonl", "--max-ite", 0)
    four = check.predictions("four.jsonl", "--max-ite", 3, "--batch-size", 4)
    check.expect(one.read_bytes() == four.read_bytes(), "batch sizes 1 and 4 differ")
    rows = read_lines(one)
    articles = read_lines(check.data)
    check.expect([r["id"] for r in rows] == [a["id"] for a in articles], "ids in order")
    check.expect([r["reference"] for r in rows] == [a["highlights"] for a in articles], "references")
    check.expect([r["index"] for r in rows] == list(range(12)), "indexes")
    for row, article in zip(rows, articles):
        text = article["article"].replace(" n't", "n't") + " TL;DR:"
        check.expect(check.decode(row["prompt_ids"]) == text, f"the prompt of {row['id']}")
        check.expect("num_dropped_tokens" not in row, "nothing had to be dropped")
        check.expect(0 < len(row["output_ids"]) <= OUTPUT_LEN, "output_ids")
    two = check.predictions("two.jsonl", "--max-ite", 2, "--batch-size", 3)
    check.expect(read_lines(two) == rows[:6], "--max-ite counts batches")
    return one


def check_report(check, ours):
    """The report's figures are those of `rouge` on the same file; both forms of it."""
    report = json.loads(check.done("--max-ite", 0, "--output", ours, "--resume", "--json").stdout)
    rouge = check.json("rouge", "--predictions", ours, "--json")
    for kind in ("rouge1", "rouge2", "rougeL", "rougeLsum"):
        check.expect(report["rouge"][kind] == rouge[kind], f"{kind}: {report['rouge'][kind]}")
    check.expect(report["num_articles"] == report["num_resumed"] == 12, "all were there already")
    fresh = json.loads(check.done("--max-ite", 3, "--batch-size", 2, "--json").stdout)
    check.expect(fresh["num_articles"] == 6 and fresh["num_resumed"] == 0, "a report of six")
    check.expect(fresh["num_output_tokens"] > 6, "output tokens")
    latency = fresh["batch_latency_seconds"]
    check.expect(0 < latency["median"] <= latency["p99"] <= fresh["seconds"], f"latency {latency}")
    text = check.done("--max-ite", 0, "--output", ours, "--resume", "--reference", ours).stdout
    check.expect("equal token by token: 12 of 12 outputs" in text, text)
    check.expect(text.count("rougeLsum") == 2, "both tables")


def check_resume(check, whole):
    """Killed in the middle, continued: the file of a run that was not."""
    path = check.directory / "killed.jsonl"
    command = [check.program, "--quiet", *map(str, check.base), "--data", str(check.data),
               "--max-ite", "0", "--output", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if path.exists() and path.read_bytes().count(b"\n") >= 2:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.002)
    process.communicate()
    num_lines = path.read_bytes().count(b"\n")
    check.expect(num_lines >= 2, "lines appear while the others are being made")
    with path.open("ab") as file:
        file.write(b'{"id": "half a li')
    check.refuses(64, "exists already: --resume continues it, --force replaces it",
                  *check.base, "--data", check.data, "--max-ite", 0, "--output", path)
    check.refuses(64, "made with other settings", *check.base, "--data", check.data, "--max-ite", 0,
                  "--output", path, "--resume", "--template", "camel")
    result = check.done("--max-ite", 0, "--output", path, "--resume")
    check.expect(f"{num_lines} of 12 predictions were there already" in result.stdout, result.stdout)
    check.expect(path.read_bytes() == whole.read_bytes(), "the continued file differs")


def check_truncation(check):
    """Prompts that are too long keep their instruction, whichever part of the article goes."""
    for template, start, end in (
        ("tldr", "", " TL;DR:"),
        ("camel", "Below is an instruction that describes a task, paired with", "\n\n### Response:"),
    ):
        whole = read_lines(check.predictions(f"{template}.jsonl", "--template", template,
                                             "--max-ite", 1))[0]
        limit = len(whole["prompt_ids"]) - 30
        for overflow in ("head", "tail", "middle"):
            row = read_lines(check.predictions(
                f"{template}-{overflow}.jsonl", "--template", template, "--max-ite", 1,
                "--max-input-len", limit, "--overflow", overflow))[0]
            text = check.decode(row["prompt_ids"])
            check.expect(len(row["prompt_ids"]) == limit, f"{template} {overflow}: the limit")
            check.expect(row["num_dropped_tokens"] == 30, f"{template} {overflow}: 30 are dropped")
            check.expect(text.startswith(start) and text.endswith(end), f"{overflow}: {text!r}")
            has_first = "For six hundred years" in text
            check.expect(has_first == (overflow != "head"), f"{template} {overflow}: its beginning")
            has_last = "sent back to the beginning." in text
            check.expect(has_last == (overflow != "tail"), f"{template} {overflow}: its end")
    check.refuses(64, "the prompt around the article has", *check.base, "--data", check.data,
                  "--template", "camel", "--max-input-len", 20)
    large = check.directory / "large.jsonl"
    words = " ".join(f"word{i}" for i in range(110_000))
    large.write_text(json.dumps({"article": words, "highlights": "Words."}) + "\n")
    check.expect(large.stat().st_size > 1_000_000, "an article of a megabyte")
    report = check.json(*check.base, "--data", large, "--json", "--max-ite", 1)
    check.expect(report["num_prompt_tokens"] == 923 and report["num_dropped_tokens"] > 100_000,
                 f"a megabyte: {report}")


def check_compat(check, directory):
    """The 2023 recipe: the other side loses its instruction when an article is long."""
    articles = read_lines(check.data)
    long_article = " ".join(a["article"] for a in articles)
    path = directory / "long.jsonl"
    path.write_text("".join(json.dumps({"article": text, "highlights": "A.", "id": str(i)}) + "\n"
                            for i, text in enumerate([articles[0]["article"], long_article])))
    ours = directory / "compat.jsonl"
    check.json(*check.base, "--data", path, "--compat", "trtllm-2023", "--output", ours, "--json")
    brief, cut = read_lines(ours)
    check.expect(brief["hf_prompt_ids"] == brief["prompt_ids"], "a short article: equal prompts")
    check.expect(len(cut["prompt_ids"]) == len(cut["hf_prompt_ids"]) == 923, "923 tokens each")
    check.expect(check.decode(cut["prompt_ids"]).endswith(" TL;DR:"), "this side keeps TL;DR:")
    check.expect("TL;DR" not in check.decode(cut["hf_prompt_ids"]), "the other side loses it")
    check.refuses(64, "other prompt_ids than this run's for article 1", *check.base, "--data", path,
                  "--compat", "trtllm-2023", "--reference", ours)


def check_accuracy(check):
    """The exit status carries the threshold test; the flags of 2023 are accepted."""
    flags = ["--data", check.data, "--max-ite", 3]
    report = check.json(*check.base, *flags, "--json")
    rouge1 = 100 * report["rouge"]["rouge1"]["mid"]["fmeasure"]
    check.expect(0 < rouge1 < 14, f"rouge1 {rouge1} of a model that writes nonsense")
    for threshold, status, word in ((14, 1, "FAIL"), (rouge1, 1, "FAIL"), (rouge1 - 0.01, 0, "PASS")):
        result = run(check.program, *check.base, *flags, "--check-accuracy",
                     "--rouge1-threshold", repr(threshold))
        check.expect(result.returncode == status and f"{word}: rouge1 {rouge1:.4f}" in result.stdout,
                     f"threshold {threshold}: {result.returncode} {result.stdout} {result.stderr}")
    result = run(
        check.program, "summarize", "--engine_dir", check.model, "--hf_model_location", check.model,
        "--tokenizer", check.model, "--dataset_path", check.data, "--batch_size", 1, "--max_ite", 3,
        "--output_len", OUTPUT_LEN, "--check_accuracy", "--tensorrt_llm_rouge1_threshold=0.01",
        "--num_beams", 1, "--top_k", 1, "--test_trt_llm", "--data_type", "fp32", "--dtype", "float32",
        "--eval_type", "summarize", "--log_level", "info",
    )
    check.expect(result.returncode == 0 and f"PASS: rouge1 {rouge1:.4f}" in result.stdout,
                 f"the flags of 2023: {result.stdout} {result.stderr}")
    sampled = [check.json(*check.base, *flags, "--top-k", 5, "--seed", seed, "--json")["rouge"]
               for seed in (1, 1, 2)]
    check.expect(sampled[0] == sampled[1] != sampled[2], "--top-k 5 samples, by its seed")


def check_refusals(check, directory):
    """Wrong input ends with one line and the documented status."""
    base = check.base

    def refuses(status, text, *arguments):
        check.refuses(status, text, *base, *arguments)

    good = {"article": "A.", "highlights": "B."}

    def file(name, *rows):
        path = directory / name
        path.write_bytes(b"".join(
            row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows))
        return path

    refuses(64, "--data is required")
    refuses(66, "no such file or directory", "--data", directory / "none")
    refuses(65, "no rows", "--data", file("empty.jsonl"))
    refuses(65, 'missing.jsonl:3: no "highlights"', "--data",
            file("missing.jsonl", good, good, {"article": "A."}))
    refuses(65, "bytes.jsonl:2: ", "--data",
            file("bytes.jsonl", good, b'{"article": "\xff\xfe", "highlights": "B."}\n'))
    refuses(65, '"article" (INT64)', "--data", check.parquet / "types.parquet")
    refuses(78, "values in DELTA_BYTE_ARRAY", "--data", check.parquet / "delta.parquet")
    cut = file("cut.parquet", (check.parquet / "snappy.parquet").read_bytes()[:800])
    refuses(65, "not a Parquet file, or cut off", "--data", cut)
    refuses(64, "no test*.parquet", "--data", directory / "nothing_here")
    data = ["--data", check.data]
    refuses(78, "there is no beam search yet", *data, "--num-beams", 4)
    refuses(64, "tools/hf_reference.py", *data, "--test_hf")
    refuses(78, "SentencePiece", *data, "--vocab_file", "x.model")
    refuses(78, "--eval_type code_completion", *data, "--eval_type", "code_completion")
    refuses(66, "names of a model hub are not looked up", *data, "--tokenizer", "gpt2")
    check.refuses(64, "leaves no room", *base[:-1], 1024, *data)
    refuses(64, "--resume needs --output", *data, "--resume")
    refuses(64, "fixes --template tldr", *data, "--compat", "trtllm-2023", "--template", "camel")
    check.refuses(64, "--model (--engine_dir)", "summarize", *data)


def check_parquet(check):
    """Parquet and JSON Lines of the same rows give the same predictions."""
    outputs = []
    for name in ("rows.jsonl", "snappy.parquet", "row_groups.parquet"):
        path = check.directory / f"{name}.out"
        check.json(*check.base[:-1], 3, "--data", check.parquet / name, "--max-ite", 2,
                   "--batch-size", 5, "--output", path, "--json")
        outputs.append(path.read_bytes())
    check.expect(outputs[0] == outputs[1] == outputs[2], "Parquet and JSON Lines differ")


def main():
    program, source = sys.argv[1], pathlib.Path(sys.argv[2])
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        (directory / "nothing_here").mkdir()
        check = Summarize(program, source, directory)
        whole = check_batches(check)
        check_report(check, whole)
        check_resume(check, whole)
        check_truncation(check)
        check_compat(check, directory)
        check_accuracy(check)
        check_parquet(check)
        check_refusals(check, directory)
    for failure in check.failures:
        print(failure, file=sys.stderr)
    return 1 if check.failures else 0


if __name__ == "__main__":
    sys.exit(main())
