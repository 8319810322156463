#!/usr/bin/env python3
"""Texts in the forms that people have them: byte order marks, gzip, CSV, lone surrogates, NUL, Git LFS
pointers, hostile keys.

usage: text_forms_test.py PROGRAM SOURCE_DIR
"""

import gzip
import json
import pathlib
import shutil
import struct
import subprocess
import sys
import tempfile

from cli_tools import Checker, run

BOM = "\ufeff"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:05f283a3\nsize 946\n"


def check_rouge(check, directory):
    rows = '{"id":"x\\u0000y","prediction":"a b","reference":"a c"}\n'
    plain = directory / "rows.jsonl"
    plain.write_text(rows)
    expected = run(check.program, "rouge", "--predictions", plain, "--per-example", "--json").stdout
    check.expect('"id":"x\\u0000y"' in expected, f"an id with NUL: {expected}")
    check.expect("0.5" in expected and "E" not in expected, f"numbers: {expected}")
    forms = {
        "bom.jsonl": (BOM + rows).encode(),
        "rows.jsonl.gz": gzip.compress(rows.encode()),
        "rows.csv": b'id,prediction,reference\r\n"x\0y",a b,"a c"\r\n',
        "rows.csv.gz": gzip.compress(b"prediction,id,reference\na b,x\0y,a c"),
    }
    for name, data in forms.items():
        (directory / name).write_bytes(data)
        result = run(check.program, "rouge", "--predictions", directory / name, "--per-example", "--json")
        got = result.stdout.replace('"line":2', '"line":1')  # of CSV the first names columns
        check.expect(got == expected, f"{name}: {result.stdout}{result.stderr}")
    packed = gzip.compress(rows.encode() * 100)
    for name, data, message in (
        ("cut.jsonl.gz", packed[:-9], "the gzip file is cut off after"),
        ("bad.jsonl.gz", packed + b"garbage", "broken gzip"),
        ("empty.csv", b"", "the file has no lines"),
        ("wide.csv", b"prediction,reference\na,b,c\n", "3 fields, the first line names 2"),
        ("lfs.jsonl", POINTER.encode(), "a Git LFS pointer, not the file; run git lfs pull"),
    ):
        (directory / name).write_bytes(data)
        result = run(check.program, "rouge", "--predictions", directory / name)
        check.expect(result.returncode != 0 and message in result.stderr, f"{name}: {result.stderr}")
    (directory / "hindi.jsonl").write_text('{"prediction":"पूर्व","reference":"पूर्व"}\n' * 2)
    command = [check.program, "rouge", "--json", "--predictions", directory / "hindi.jsonl"]
    result = subprocess.run(command, capture_output=True, text=True)
    check.expect(json.loads(result.stdout)["rouge1"]["mid"]["fmeasure"] == 0, result.stdout)
    check.expect(result.stderr.count("2 of 2 pairs score 0 because") == 1, result.stderr)


def check_model_files(check, model, directory):
    for name in ("config.json", "tokenizer.json", "generation_config.json"):
        if not (model / name).exists():
            continue
        for kind, text in (("lfs", POINTER), ("bom", BOM + (model / name).read_text())):
            copy = directory / f"{kind}-{name}"
            shutil.copytree(model, copy)
            (copy / name).write_text(text)
            result = run(check.program, "run", "--model", copy, "--prompt", "Hi", "-n", "1")
            if kind == "lfs":
                message = f"{copy}/{name}: a Git LFS pointer, not the file; run git lfs pull"
                check.expect(message in result.stderr, f"{name}: {result.stderr}")
            else:
                check.expect(result.returncode == 0, f"{name} with a mark: {result.stderr}")


def check_prompts(check, model, directory):
    path = directory / "prompts.jsonl"
    path.write_text(BOM + '{"prompt":"a\\u0000b"}\n{"prompt":"a\\ud83d"}\n{"prompt":"a\ufffd"}\n')
    result = run(check.program, "run", "--model", model, "--input", path, "-n", "1", "--json")
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    check.expect(len(rows) == 3, f"{result.stdout}{result.stderr}")
    if len(rows) == 3:
        check.expect(len(rows[0]["prompt_ids"]) >= 3, f"a text with NUL: {rows[0]}")
        check.expect(rows[1]["prompt_ids"] == rows[2]["prompt_ids"], f"a lone surrogate: {rows}")


def check_header(check, model, directory):
    """What safetensors itself loads: __metadata__ null."""
    copy = directory / "null"
    shutil.copytree(model, copy)
    weights = copy / "model.safetensors"
    data = weights.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = None
    text = json.dumps(header).encode()
    weights.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])
    result = run(check.program, "run", "--model", copy, "--prompt", "Hi", "-n", "1")
    check.expect(result.returncode == 0, f"__metadata__ null: {result.stderr}")


def check_data_sets(check, model, directory):
    path = directory / "test.csv"
    path.write_text('id,article,highlights\n1,"Camels walk,\nslowly",camels\n')
    packed = directory / "test.jsonl.gz"
    packed.write_bytes(gzip.compress(b'{"id":1,"article":"Camels walk,\\nslowly","highlights":"camels"}'))
    outputs = []
    for data in (path, packed):
        out = directory / (data.name + ".out")
        result = run(check.program, "summarize", "--model", model, "--data", data, "--output-len", "2",
                     "--max-ite", "1", "--output", out)
        check.expect(result.returncode == 0, f"{data.name}: {result.stderr}")
        outputs.append(out.read_text() if out.exists() else None)
    check.expect(outputs[0] is not None and outputs[0] == outputs[1], f"{outputs}")


def main():
    program, source = sys.argv[1:]
    model = pathlib.Path(source) / "models" / "camel-nano"
    check = Checker(program)
    with tempfile.TemporaryDirectory() as temporary:
        directory = pathlib.Path(temporary)
        check_rouge(check, directory)
        check_model_files(check, model, directory)
        check_prompts(check, model, directory)
        check_header(check, model, directory)
        check_data_sets(check, model, directory)
    for failure in check.failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    return 1 if check.failures else 0


if __name__ == "__main__":
    sys.exit(main())
