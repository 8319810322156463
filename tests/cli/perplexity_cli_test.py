#!/usr/bin/env python3
"""perplexity and lambada as users call them, on the trained model and a part of WikiText-2.

usage: perplexity_cli_test.py PROGRAM SOURCE_DIR
"""

import json
import math
import pathlib
import struct
import subprocess
import sys
import tempfile

from cli_tools import Checker, run

# What transformers gives in float64 for the first 9,000 characters of wiki.test.raw (2,027 tokens).
NUM_TOKENS = 2027
WANTED = {  # window, stride: NLL, its standard error over windows, tokens scored
    (512, 512): (7.457629051301346, 0.2162705578226457, 2023),
    (512, 128): (7.389484252127815, 0.18269829349294195, 2026),
    (1024, 400): (7.313690351922829, 0.22527720768316176, 2026),
}
# lm-evaluation-harness's loglikelihood_rolling with windows of 1,024: word, byte perplexity, bits.
WANTED_ROLLING = (5256.045002049829, 5.212564722289062, 2.381993392024115)
# Float32 against float64, relative: 1.9e-7 was seen.
TOLERANCE = 2e-6


def near(got, wanted, tolerance=TOLERANCE):
    return got is not None and abs(got / wanted - 1) <= tolerance


def dump_parts(path):
    """Header (without its metadata), start of the data and all bytes of a safetensors file."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    return header, 8 + length, data


def check_windows(check, base, text):
    """Disjoint and sliding windows, rolling, limits, documents."""
    for (window, stride), (nll, error, scored) in WANTED.items():
        got = check.json(*base, "--data", text, "--window", window, "--stride", stride)
        name = f"window {window}, stride {stride}"
        check.expect(near(got["nll"]["value"], nll), f"{name}: {got['nll']}")
        check.expect(near(got["nll"]["standard_error"], error, 2e-5), f"{name}: {got['nll']}")
        check.expect(got["num_scored"] == scored, f"{name}: {got['num_scored']} scored")
        perplexity = got["perplexity"]
        check.expect(near(perplexity["value"], math.exp(got["nll"]["value"])), f"{perplexity}")
        check.expect(
            near(perplexity["standard_error"], perplexity["value"] * got["nll"]["standard_error"]),
            f"{name}: {perplexity}",
        )
    rolling = check.json(*base, "--data", text, "--rolling")
    figures = tuple(rolling[f] for f in ("word_perplexity", "byte_perplexity", "bits_per_byte"))
    check.expect(
        all(near(g, w, 2e-5) for g, w in zip(figures, WANTED_ROLLING)), f"rolling: {figures}"
    )
    check.expect(rolling["num_scored"] == NUM_TOKENS, f"rolling: {rolling['num_scored']}")
    one = check.json(*base, "--data", text, "--max-tokens", 300)
    check.expect(one["num_tokens"] == 300 and one["num_scored"] == 299, f"--max-tokens: {one}")
    check.expect(one["nll"]["standard_error"] is None, "one window has no standard error")
    small_steps = check.json(
        *base, "--data", text, "--max-tokens", 300, "--max-num-batched-tokens", 37
    )
    check.expect(small_steps["nll"] == one["nll"], "the step's size changed the result")


def check_documents(check, base, text, directory):
    """JSON Lines: documents are scored alone; --join makes one of them."""
    parts = [text.read_text()[:1500], "", "A", text.read_text()[1500:2600]]
    path = directory / "documents.jsonl"
    path.write_text("".join(json.dumps({"page": p}) + "\n" for p in parts))
    each = []
    for i in (0, 3):
        alone = directory / f"part{i}.txt"
        alone.write_text(parts[i])
        each.append(check.json(*base, "--data", alone))
    flags = [*base, "--data", path, "--text-key", "page"]
    both = check.json(*flags)
    mean = sum(e["nll"]["value"] * e["num_scored"] for e in each)
    mean /= sum(e["num_scored"] for e in each)
    check.expect(near(both["nll"]["value"], mean, 1e-12), f"documents: {both['nll']}, not {mean}")
    check.expect(both["num_documents"] == 2 and both["num_skipped_documents"] == 2, f"{both}")
    for size in ("num_tokens", "num_bytes", "num_words"):
        check.expect(both[size] == sum(e[size] for e in each), f"documents: {size}")
    joined = check.json(*flags, "--join")
    check.expect(joined["num_documents"] == 1, "--join")
    # "A" is scored too now, and three documents have two boundaries between them.
    fed = both["num_tokens"] + 1 + 2
    check.expect(joined["num_scored"] == fed - 1, f"--join: {joined['num_scored']} of {fed}")


def check_dump(check, base, text, directory):
    """A dump against itself, another dtype, as float16, and dumps that do not fit."""
    dump = directory / "dump.safetensors"
    flags = [*base, "--data", text, "--window", 200, "--stride", 150, "--max-tokens", 500]
    written = check.json(*flags, "--dump", dump)
    header, start, data = dump_parts(dump)
    rows = written["num_fed"]
    check.expect(
        {name: (t["dtype"], t["shape"]) for name, t in header.items()}
        == {
            "input_ids": ("I32", [rows]),
            "window_start": ("I32", [written["num_windows"]]),
            "logits": ("F32", [rows, 50258]),
        },
        f"dump: {header}",
    )
    begin, end = header["window_start"]["data_offsets"]
    starts = struct.unpack(f"<{(end - begin) // 4}i", data[start + begin : start + end])
    check.expect(starts == (0, 200, 400), f"window_start: {starts}")
    same = check.json(*flags, "--against", dump)
    check.expect(same["nll"] == written["nll"], "two runs differ")
    against = same["against"]
    check.expect(against["kl_mean"]["value"] == 0 and against["kl_max"] == 0, f"{against}")
    check.expect(against["top1_agreement"]["value"] == 1, f"{against}")
    check.expect(against["perplexity_change"]["value"] == 0, f"{against}")
    coarse = ["bfloat16" if flag == "float32" else flag for flag in flags]
    other = check.json(*coarse, "--against", dump)["against"]
    check.expect(1e-6 < other["kl_mean"]["value"] < 1e-2, f"bfloat16: {other['kl_mean']}")
    check.expect(0.9 < other["top1_agreement"]["value"] <= 1, f"bfloat16: {other}")
    check.expect(other["num_tokens"] == written["num_scored"] == 499, f"{other['num_tokens']}")
    small = directory / "small.safetensors"
    check.json(*flags, "--dump", small, "--dump-dtype", "float16")
    check.expect(small.stat().st_size < 0.51 * dump.stat().st_size, "a float16 dump is half")
    half = check.json(*flags, "--against", small)["against"]
    check.expect(0 < half["kl_mean"]["value"] < 1e-4, f"float16 dump: {half['kl_mean']}")

    flags = [*base, "--against", dump, "--data", text]
    check.refuses(64, "window 0 has 200 tokens, here 512", *flags, "--window", 512)
    part = [*flags, "--window", 200, "--stride", 150]
    check.refuses(64, "limit it with --max-tokens", *part)
    check.refuses(64, "give the --max-tokens of the dump", *part, "--max-tokens", 350)
    changed = directory / "changed.txt"
    changed.write_text("Another " + text.read_text())
    check.refuses(
        64, "input_ids[0] (window 0, token 0) is ", *base, "--against", dump, "--data", changed,
        "--window", 200, "--stride", 150, "--max-tokens", 500,
    )
    broken = directory / "broken.safetensors"
    broken.write_bytes(data[: len(data) // 2])
    check.refuses(65, "broken.safetensors: ", *base, "--data", text, "--against", broken)
    check.refuses(66, "no such file", *base, "--data", text, "--against", directory / "a.safetensors")
    check.refuses(64, "ends in .safetensors", *base, "--data", text, "--dump", directory / "a.bin")
    nowhere = directory / "nowhere" / "dump.safetensors"
    check.refuses(66, "cannot write there", *base, "--data", text, "--dump", nowhere)


def check_bad_input(check, base, text, directory):
    def file(name, content):
        (directory / name).write_bytes(content)
        return directory / name

    check.refuses(66, "no such file", *base, "--data", directory / "absent.txt")
    check.refuses(65, "no text in it", *base, "--data", file("empty.txt", b""))
    check.refuses(65, "no text in it", *base, "--data", file("empty.jsonl", b"\n"))
    check.refuses(
        65, "offset 5: byte 0xff is not UTF-8", *base, "--data", file("latin.txt", b"caf\xc3\xa9\xff")
    )
    check.refuses(65, "fewer than 2 tokens", *base, "--data", file("short.txt", b"A"))
    check.refuses(
        65, 'lines.jsonl:2: no member "text"', *base, "--data",
        file("lines.jsonl", b'{"text": "one two"}\n{"page": "x"}\n'),
    )
    check.refuses(
        65, "lines2.jsonl:1: ", *base, "--data", file("lines2.jsonl", b'{"text": "one\xff two"}\n')
    )
    for flags in (["--window", 1], ["--window", 1025], ["--window", -3]):
        check.refuses(64, "expected 2 to 1024", *base, "--data", text, *flags)
    check.refuses(64, "--stride 600", *base, "--data", text, "--window", 512, "--stride", 600)
    check.refuses(64, "leave out --stride", *base, "--data", text, "--rolling", "--stride", 5)


def check_lambada(check, model, directory):
    """Against what score gives for the same tokens."""
    passages = [
        "The sea was calm, and the captain looked at the sea",
        "He opened the door.\n\nThen he closed the door",
        "It was the best of times, it was the worst of times",
        "word",
    ]
    path = directory / "passages.jsonl"
    path.write_text("".join(json.dumps({"text": p}) + "\n" for p in passages))
    output = directory / "results.jsonl"
    flags = ["lambada", "--model", model, "--dtype", "float32"]
    got = check.json(*flags, "--data", path, "--json", "--output", output)
    results = [json.loads(line) for line in output.read_text().splitlines()]
    check.expect([r["index"] for r in results] == [0, 1, 2, 3], f"{results}")

    def nll(ids):
        result = subprocess.run(
            [check.program, "-q", "score", "--model", model, "--dtype", "float32", "--input", "-"],
            input=json.dumps({"ids": ids}), capture_output=True, text=True, check=True,
        )
        return json.loads(result.stdout)["nll"]

    def tokens(passage):
        result = run(check.program, "tokenize", "--model", model, "--text", passage)
        return [int(word) for word in result.stdout.replace(",", " ").strip("[] \n").split()]

    eos = 50256
    for passage, result in zip(passages, results):
        target = result["target_ids"]
        ids = tokens(passage) if " " in passage else [eos, *tokens(" " + passage)]
        check.expect(ids[-len(target) :] == target, f"{passage!r}: {target} of {ids}")
        context = ids[: -len(target)]
        wanted = nll(context) - nll(ids) if len(context) > 1 else -nll(ids)
        check.expect(abs(result["log_prob"] - wanted) < 1e-4, f"{passage!r}: {result}, {wanted}")
    mean = sum(r["log_prob"] for r in results) / 4
    check.expect(near(got["perplexity"]["value"], math.exp(-mean), 1e-9), f"{got['perplexity']}")
    check.expect(got["num_correct"] == sum(r["is_correct"] for r in results), f"{got}")
    first = check.json(*flags, "--data", path, "--json", "--max-items", 2, "--max-batch-size", 1)
    pair = (results[0]["log_prob"] + results[1]["log_prob"]) / 2
    check.expect(first["num_items"] == 2, f"--max-items: {first}")
    check.expect(near(first["log_prob"]["value"], pair, 1e-12), f"--max-batch-size: {first}")
    bad = directory / "bad.jsonl"
    bad.write_text('{"text": "fine words"}\n{"text": ""}\n')
    check.refuses(64, "bad.jsonl:2: ", *flags, "--data", bad)


def main():
    program, source = sys.argv[1], pathlib.Path(sys.argv[2])
    model = source / "models" / "camel-nano"
    check = Checker(program)
    base = ["perplexity", "--model", model, "--dtype", "float32", "--json"]
    with tempfile.TemporaryDirectory(prefix="caravan_perplexity_") as name:
        directory = pathlib.Path(name)
        wiki = source / "tests" / "data" / "wikitext-2-raw" / "wiki.test.raw"
        text = directory / "slice.txt"
        text.write_bytes(wiki.read_bytes().decode()[:9000].encode())
        check_windows(check, base, text)
        check_documents(check, base, text, directory)
        check_dump(check, base, text, directory)
        check_bad_input(check, base, text, directory)
        check_lambada(check, model, directory)
        lines = run(program, *base[:-1], "--data", text, "--max-tokens", 2000).stdout
        check.expect(lines.startswith("perplexity ") and "+/-" in lines, f"text output: {lines}")
    for failure in check.failures:
        print(failure)
    return 1 if check.failures else 0


if __name__ == "__main__":
    sys.exit(main())
