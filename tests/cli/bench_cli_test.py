#!/usr/bin/env python3
"""bench as users call it, on small models: every command's rows, their figures' consistency and the
plots drawn of them. No claim about how fast.

usage: bench_cli_test.py PROGRAM SOURCE_DIR
"""

import json
import pathlib
import subprocess
import sys
import tempfile
import xml.etree.ElementTree

from cli_tools import Checker, run, synth

CEILINGS = ("read_gb_per_s", "copy_gb_per_s", "matmul_tflops")


def rows_of(check, *arguments):
    """The rows of `bench ARGUMENTS --json`; what every row must have is checked."""
    result = run(check.program, "bench", *arguments, "--json")
    check.expect(result.returncode == 0, f"{arguments}: {result.stderr}")
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    for row in rows:
        good = row["ms"] > 0 and all(row[name] > 0 for name in CEILINGS)
        good = good and row["backend"].startswith("cpu (") and row["dtype"] == "float16"
        check.expect(good, f"{arguments}: {row}")
        if "rate" in row:
            amount = row["flops"] * 1e-12 if row["unit"] == "TFLOP/s" else row["bytes"] * 1e-9
            rate = amount / row["ms"] * 1e3
            check.expect(abs(row["rate"] / rate - 1) < 1e-9, f"{arguments}: the rate of {row}")
    return rows


def check_latency(check, model):
    """Prefill and decode rows for every pair of the lists, in order."""
    rows = rows_of(
        check, "latency", "--model", model, "--prompt-lens", "20,32", "--prefill-batch-sizes",
        "1,3", "--contexts", "32", "--batch-sizes", "1,2", "--steps", 3, "--repeats", 2,
        "--max-num-batched-tokens", 24,
    )
    labels = [row["label"] for row in rows]
    check.expect(
        labels
        == ["pp20", "pp32", "3 x pp20", "3 x pp32", "tg3 @ d32", "2 x tg3 @ d32"],
        f"labels {labels}",
    )
    check.expect([row["test"] for row in rows] == ["prefill"] * 4 + ["decode"] * 2, "tests")
    check.expect([row["num_steps"] for row in rows[:4]] == [1, 2, 3, 4], "steps of the chunks")
    for row in rows[:4]:
        share = row["rate"] / row["matmul_tflops"]
        check.expect(abs(row["share_of_ceiling"] / share - 1) < 1e-9, f"prefill share {row}")
    for row in rows[4:]:
        share = row["rate"] / row["read_gb_per_s"]
        check.expect(abs(row["share_of_ceiling"] / share - 1) < 1e-9, f"decode share {row}")
    return rows


def check_kernel(check, model):
    """All operators of a model's shape, and of a named one without any model."""
    rows = rows_of(
        check, "kernel", "all", "--model", model, "--num-tokens", "1,5", "--contexts", "40",
        "--batch-sizes", "3",
    )
    count = {}
    for row in rows:
        count[row["test"]] = count.get(row["test"], 0) + 1
    check.expect(
        count
        == {
            "linear": 10, "layer_norm": 2, "attention_decode": 1, "attention_prefill": 1,
            "embedding": 2,
        },
        f"kernel rows {count}",
    )
    named = rows_of(
        check, "kernel", "layer_norm", "--random-weights", "gpt2-medium", "--num-tokens", 2
    )
    check.expect([row["hidden_size"] for row in named] == [1024], f"a named shape: {named}")
    return rows


def check_throughput(check, model):
    """As many tokens as asked for, whatever the batch size."""
    rows = rows_of(
        check, "throughput", "--model", model, "--num-seqs", 5, "--prompt-len", 7, "--output-len",
        6, "--batch-sizes", "2,8",
    )
    check.expect([row["batch_size"] for row in rows] == [2, 8], f"throughput {rows}")
    for row in rows:
        seconds = row["wall_s"]
        check.expect(abs(row["output_tokens_per_s"] * seconds - 30) < 1e-6, "output tokens")
        check.expect(abs(row["total_tokens_per_s"] * seconds - 65) < 1e-6, "all tokens")


def check_load(check, model):
    """The first token comes after the load, seen from the start of the process."""
    tests = ["load", "first_step", "first_token"]
    rows = rows_of(check, "load", "--model", model, "--prompt-len", 9)
    check.expect([row["test"] for row in rows] == tests, f"load {rows}")
    # The start of a process is known to a tick of 10 ms.
    check.expect(rows[2]["ms"] + 10 > rows[0]["ms"] + rows[1]["ms"], f"load times {rows}")
    random = rows_of(check, "load", "--random-weights", "camel-nano")
    check.expect(random[0]["is_random"] and random[0]["share_of_ceiling"] is None, "random weights")


def check_table(check, model):
    """The text names device, dtype and ceilings first, then one table."""
    result = run(check.program, "bench", "latency", "--model", model, "--prompt-lens", 16,
                 "--contexts", 16, "--steps", 2)
    lines = result.stdout.splitlines()
    check.expect(len(lines) == 6, f"table: {result.stdout} {result.stderr}")
    check.expect(lines[0].startswith("# cpu (") and "float16 weights" in lines[0], lines[0])
    check.expect(lines[1].startswith("# ceilings of this run: read "), lines[1])
    check.expect(len({line.count("|") for line in lines[2:]}) == 1, "columns of the table")


def check_refusals(check, model):
    """Wrong input ends with one line and the documented status."""
    check.refuses(64, "--model or --random-weights", "bench", "latency")
    check.refuses(
        64, "not both", "bench", "latency", "--model", model, "--random-weights", "gpt2"
    )
    check.refuses(64, "expected camel-5b", "bench", "load", "--random-weights", "camel-6b")
    check.refuses(
        64, "--contexts 128", "bench", "latency", "--model", model, "--prompt-lens", "16",
        "--contexts", "128", "--steps", 2,
    )
    check.refuses(64, "--num-tokens 0", "bench", "kernel", "linear", "--num-tokens", "0")
    check.refuses(64, "expected linear", "bench", "kernel", "softmax")
    check.refuses(78, "leaves the choice", "bench", "kernel", "sample", "--model", model)
    check.refuses(
        64, "at most 128 tokens fit", "bench", "throughput", "--model", model, "--prompt-len", 100,
        "--output-len", 29,
    )


def check_plots(check, source, rows, directory):
    """Three well-formed pictures with a point for each row that belongs there."""
    path = directory / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    script = source / "tools" / "plot_bench.py"
    result = subprocess.run(
        [sys.executable, "-B", script, path, "--output", directory, "--name", "small"],
        capture_output=True, text=True, check=False,
    )
    check.expect(result.returncode == 0, f"plot_bench: {result.stderr}")
    num_points = {"roofline": 20, "decode": 4, "prefill": 4}  # decode has two panels
    for name, expected in num_points.items():
        file = directory / f"small_{name}.svg"
        check.expect(file.stat().st_size < 60_000, f"{name} has {file.stat().st_size} bytes")
        root = xml.etree.ElementTree.parse(file).getroot()
        found = len(root.findall("{http://www.w3.org/2000/svg}circle"))
        check.expect(found == expected, f"{name}: {found} points, expected {expected}")


def main():
    program, source = sys.argv[1], pathlib.Path(sys.argv[2])
    check = Checker(program)
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        model = directory / "model"
        synth(program, model)
        rows = check_latency(check, model)
        rows += check_kernel(check, model)
        check_throughput(check, model)
        check_load(check, model)
        check_table(check, model)
        check_refusals(check, model)
        check_plots(check, source, rows, directory)
    for failure in check.failures:
        print(failure, file=sys.stderr)
    return 1 if check.failures else 0


if __name__ == "__main__":
    sys.exit(main())
