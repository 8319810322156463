#!/usr/bin/env python3
"""compare and rouge as users call them, on made predictions.

usage: compare_cli_test.py PROGRAM
"""

import json
import pathlib
import random
import sys
import tempfile

from cli_tools import Checker, run

WORDS = [f"word{i}" for i in range(50)]


def make_rows(count, seed=1):
    """Predictions with references: each shares some words with its reference."""
    source = random.Random(seed)
    rows = []
    for i in range(count):
        reference = source.choices(WORDS, k=20)
        ids = [WORDS.index(word) for word in reference[: source.randrange(5, 15)]]
        ids += source.choices(range(50), k=8)
        rows.append(
            {
                "id": f"article-{i}",
                "index": i,
                "prompt_ids": [i, 7, 9],
                "output_ids": ids,
                "prediction": " ".join(WORDS[k] for k in ids),
                "reference": " ".join(reference),
            }
        )
    return rows


def changed(row, count):
    """The row with its first `count` tokens replaced by one that no reference has."""
    ids = [50] * count + row["output_ids"][count:]
    words = ["other" if k == 50 else WORDS[k] for k in ids]
    return {**row, "output_ids": ids, "prediction": " ".join(words)}


def without(rows, *names):
    return [{k: v for k, v in row.items() if k not in names} for row in rows]


class Files:
    """JSON Lines files in a folder of their own."""

    def __init__(self, directory):
        self.directory = pathlib.Path(directory)

    def write(self, name, rows):
        path = self.directory / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path


def verdict(check, status, *arguments):
    """The JSON of a comparison that must end with `status`."""
    result = run(check.program, "compare", *arguments, "--json")
    check.expect(
        result.returncode == status,
        f"{arguments}: exit {result.returncode}, expected {status}: {result.stderr}",
    )
    return json.loads(result.stdout or "{}"), result.stderr


def check_verdicts(check, files):
    rows = make_rows(120)
    a = files.write("a.jsonl", rows)
    same = files.write("same.jsonl", rows[::-1])  # matched by id, so the order is free
    out, errors = verdict(check, 0, a, same)
    check.expect(out["verdict"] == "PASS" and out["low"] == out["high"] == 0, f"equal files: {out}")
    check.expect(out["num_equal_outputs"] == 120 and out["moved"] == [], f"equal files: {out}")
    check.expect(errors == "", f"equal files are quiet: {errors}")

    far = files.write("far.jsonl", [changed(row, 4) for row in rows])
    out, _ = verdict(check, 1, a, far)
    check.expect(out["verdict"] == "FAIL" and out["low"] > 1, f"shifted by 4 words: {out}")
    check.expect(out["num_needed"] is None, "no number of articles makes a shift pass")
    check.expect(out["num_equal_outputs"] == 0 and len(out["moved"]) == 10, f"shifted: {out}")
    first = out["moved"][0]
    check.expect(
        first["first_difference"]["position"] == 0
        and first["first_difference"]["token_b"] == 50
        and first["difference"] == max(abs(row["difference"]) for row in out["moved"]),
        f"the article that moved most: {first}",
    )
    back, _ = verdict(check, 1, far, a)
    check.expect(back["verdict"] == "FAIL" and back["high"] < -1, "shifted the other way")

    few = files.write("few.jsonl", rows[:10])
    out, _ = verdict(check, 1, few, few)
    check.expect(out["verdict"] == "INCONCLUSIVE", f"ten articles: {out}")

    some = [changed(row, 6) if i % 12 == 0 else row for i, row in enumerate(rows)]
    mixed = files.write("mixed.jsonl", some)
    wide, _ = verdict(check, 0, a, mixed, "--margin", 5)
    check.expect(wide["num_equal_outputs"] == 110, f"110 equal outputs: {wide}")
    narrow, _ = verdict(check, 1, a, mixed, "--margin", wide["mean_difference"] * 1.05)
    check.expect(narrow["verdict"] == "INCONCLUSIVE", f"a margin close to the mean: {narrow}")
    check.expect(narrow["num_needed"] > 120, f"more articles are needed: {narrow}")
    for key in ("low", "high", "mean_a", "mean_b"):
        check.expect(wide[key] == narrow[key], f"the same seed gives the same {key}")
    seeded, _ = verdict(check, 0, a, mixed, "--margin", 5, "--seed", 1)
    check.expect(seeded["low"] != wide["low"], "another seed gives other resamples")
    classical, _ = verdict(check, 0, a, mixed, "--margin", 5, "--confidence", 0.9)
    check.expect(
        wide["low"] < classical["low"] and classical["high"] < wide["high"],
        "90 % is narrower than 95 %",
    )
    bigrams, _ = verdict(check, 0, a, mixed, "--margin", 5, "--metric", "rouge2", "--use-stemmer")
    check.expect(bigrams["mean_a"] < wide["mean_a"], "rouge2 is another metric")
    return rows, a, mixed


def check_text(check, a, mixed):
    result = run(check.program, "compare", a, mixed, "--margin", 5, "--top", 3)
    check.expect(result.returncode == 0, result.stderr)
    lines = result.stdout.splitlines()
    check.expect(lines[0] == "rouge1 of 120 articles, x100, no stemming", lines[0])
    check.expect(
        any(line.startswith("PASS: ") and "2.5 % each" in line for line in lines), result.stdout
    )
    check.expect("  110 of 120 outputs are equal" in lines, result.stdout)
    moved = lines[lines.index("moved most:") + 2 :]
    check.expect(len(moved) == 3 and all("at 0: " in line for line in moved), result.stdout)


def check_prompts(check, files, rows, a):
    other = [dict(row) for row in rows]
    other[5]["prompt_ids"] = [1]
    path = files.write("prompts.jsonl", other)
    out, errors = verdict(check, 0, a, path)
    check.expect(out["num_different_prompts"] == 1, "one prompt differs")
    check.expect(
        "warning" in errors and "1 of 120" in errors and "article-5" in errors,
        f"a warning names the article: {errors}",
    )


def check_forms(check, files, rows, a):
    """Files without ids, without token ids, with references elsewhere."""
    references = files.write("references.jsonl", [
        {"id": row["id"], "highlights": row["reference"]} for row in rows[::-1]
    ])
    bare = files.write("bare.jsonl", without(rows, "reference", "output_ids", "prompt_ids"))
    out, _ = verdict(check, 0, bare, a)  # the references of the other file
    check.expect(out["num_equal_outputs"] == 120, "equal by text")
    with_references, _ = verdict(check, 0, bare, bare, "--references", references)
    check.expect(with_references["mean_a"] == out["mean_a"], "references from a file")
    by_line = files.write("by_line.jsonl", without(rows, "id"))
    out, _ = verdict(check, 0, by_line, a)
    check.expect(out["num_equal_outputs"] == 120, "matched line by line")

    scores = check.json("rouge", "--predictions", bare, "--references", references, "--json")
    table = run(check.program, "rouge", "--predictions", bare, "--references", references)
    shown = f"{100 * scores['rouge1']['mid']['fmeasure']:.4f}"
    check.expect(scores["num_examples"] == 120 and shown in table.stdout, table.stdout)
    each = run(check.program, "rouge", "--predictions", a, "--per-example")
    check.expect(len(each.stdout.splitlines()) == 1 + 120 + 6, "a line for each example")
    check.expect("article-119" in each.stdout, "examples are named by their ids")


def check_refusals(check, files, rows, a):
    bare = files.write("bare.jsonl", without(rows, "reference"))
    short = files.write("short.jsonl", rows[:119])
    empty = files.write("empty.jsonl", [])
    torn = files.directory / "torn.jsonl"
    torn.write_text('{"id": "a", "prediction": "x"}\n{"id": "b", "predi')
    mixed = files.write("mixed_ids.jsonl", [*rows[:2], *without(rows[2:3], "id")])
    twice = files.write("twice.jsonl", [*rows[:3], rows[1]])
    reworded = files.write("reworded.jsonl", [{**row, "reference": "x"} for row in rows])
    check.refuses(64, "bare.jsonl:1: no member \"reference\"", "compare", bare, bare)
    check.refuses(64, "a.jsonl:120: id \"article-119\" is not in", "compare", a, short)
    check.refuses(64, "a.jsonl:120: id \"article-119\" is not in", "compare", short, a)
    check.refuses(64, "have different references", "compare", a, reworded)
    check.refuses(64, "article-119", "compare", a, a, "--references", short)
    check.refuses(64, "margin", "compare", a, a, "--margin", 0)
    check.refuses(64, "confidence", "compare", a, a, "--confidence", 95)
    check.refuses(64, "bootstrap samples", "compare", a, a, "--num-samples", 3)
    check.refuses(64, "standard input", "compare", "-", "-")
    check.refuses(65, "empty.jsonl: the file has no lines", "compare", a, empty)
    check.refuses(65, "torn.jsonl:2: ", "compare", torn, a)
    check.refuses(65, "mixed_ids.jsonl:3: no \"id\"", "compare", mixed, a)
    check.refuses(65, "twice.jsonl:4: id \"article-1\"", "compare", twice, a)
    check.refuses(66, "none.jsonl", "compare", files.directory / "none.jsonl", a)
    check.refuses(64, "bare.jsonl:1: ", "rouge", "--predictions", bare)
    check.refuses(65, "empty.jsonl", "rouge", "--predictions", empty)
    usage = run(check.program, "compare", a, a, "--metric", "rouge3")
    check.expect(usage.returncode == 64, f"--metric rouge3: exit {usage.returncode}")


def main():
    check = Checker(sys.argv[1])
    with tempfile.TemporaryDirectory() as directory:
        files = Files(directory)
        rows, a, mixed = check_verdicts(check, files)
        check_text(check, a, mixed)
        check_prompts(check, files, rows, a)
        check_forms(check, files, rows, a)
        check_refusals(check, files, rows, a)
    for failure in check.failures:
        print(failure)
    return 1 if check.failures else 0


if __name__ == "__main__":
    sys.exit(main())
