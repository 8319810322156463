#!/usr/bin/env python3
"""Damaged weights: every flipped bit of an engine or a checkpoint is found before a token leaves.

usage: verify_cli_test.py PROGRAM SOURCE_DIR
"""

import concurrent.futures
import json
import pathlib
import random
import shutil
import struct
import sys
import tempfile

from cli_tools import Checker, one_error_line, run, run_or_die, scaled

TINY = "--shape custom --n-embd 16 --n-layer 2 --n-head 2 --vocab-size 50258 --n-positions 64".split()


class Weights:
    """The weight file of a directory: its bytes, its header, and a way to change and mend it."""

    def __init__(self, directory):
        self.directory = pathlib.Path(directory)
        self.path = self.directory / "rank0.safetensors"
        if not self.path.exists():
            self.path = self.directory / "model.safetensors"
        self.good = self.path.read_bytes()
        length = struct.unpack("<Q", self.good[:8])[0]
        self.start = 8 + length
        self.header = json.loads(self.good[8 : self.start])

    def range_of(self, name):
        """[begin, end) of a tensor in the file."""
        begin, end = self.header[name]["data_offsets"]
        return self.start + begin, self.start + end

    def write(self, data):
        self.path.write_bytes(data)

    def flip(self, offset, bit):
        data = bytearray(self.good)
        data[offset] ^= 1 << bit
        self.write(data)

    def mend(self):
        self.write(self.good)


def run_flags(directory, *more):
    return ["run", "--model", directory, "--prompt", "Hello", "-n", "2", *more]


def expect_found(check, directory, what, *more):
    """`run` refuses the directory: status 65, one line, and not a byte of text."""
    result = run(check.program, *run_flags(directory, *more))
    good = result.returncode == 65 and one_error_line(result) and result.stdout == ""
    check.expect(good, f"{what}: exit {result.returncode}, {result.stdout!r} {result.stderr!r}")
    return result.stderr


def check_random_flips(check, directory, seed):
    """Bits of the whole file, header and filler included; one in ten also by inspect."""
    weights = Weights(directory)
    rng = random.Random(seed)
    for i in range(scaled(40)):
        # The header is small beside the tensors: a third of the flips are in it.
        end = weights.start if i % 3 == 0 else len(weights.good)
        offset, bit = rng.randrange(end), rng.randrange(8)
        weights.flip(offset, bit)
        what = f"{directory.name}: bit {bit} of byte {offset} of {len(weights.good)}"
        error = expect_found(check, directory, what, *([] if i % 2 else ["--threads", "1"]))
        check.expect("rank0.safetensors" in error, f"{what} does not name the file: {error}")
        if i % 10 == 0:
            result = run(check.program, "inspect", directory, "--checksums")
            check.expect(result.returncode == 65, f"{what}: inspect {result.returncode}")
    weights.mend()
    run_or_die(check.program, *run_flags(directory))
    run_or_die(check.program, "inspect", directory, "--checksums")


def check_regions(check, directory):
    """One bit of every tensor, of the filler before it, and of the header's spaces."""
    weights = Weights(directory)
    for name in weights.header:
        if name == "__metadata__":
            continue
        begin, end = weights.range_of(name)
        weights.flip((begin + end) // 2, 3)
        error = expect_found(check, directory, name)
        wanted = "between tensors" if name.startswith("__pad.") else f"{name}: "
        check.expect(wanted in error and "offset" in error, f"{name} is not named: {error}")
    if weights.good[weights.start - 1 : weights.start] == b" ":
        data = bytearray(weights.good)
        data[weights.start - 1] = ord("\n")  # as good as a space to a parser
        weights.write(data)
        error = expect_found(check, directory, "a space of the header")
        check.expect("header" in error, f"the header is not named: {error}")
    weights.mend()


def check_exchanges(check, directory):
    """Whole pieces that are not where they belong."""
    weights = Weights(directory)
    first, second = (weights.range_of(f"h.{i}.mlp.c_fc.weight") for i in (0, 1))
    data = bytearray(weights.good)
    data[slice(*first)], data[slice(*second)] = data[slice(*second)], data[slice(*first)]
    weights.write(data)
    check.expect("h.0.mlp.c_fc.weight" in expect_found(check, directory, "swapped"), "swapped")
    weights.write(weights.good[:-4096])
    expect_found(check, directory, "the last page is missing")
    weights.write(weights.good[:-4096] + bytes(4096))
    expect_found(check, directory, "the last page is zeros")
    weights.mend()


def check_tables(check, directory, other):
    """Tables that are not this file's."""
    path = directory / "config.json"
    good = path.read_text()

    def with_table(change):
        config = json.loads(good)
        del config["caravan"]["config_xxh3"]  # what an editor by hand does
        change(config["caravan"]["checksums"]["ranks"][0])
        path.write_text(json.dumps(config))
        return expect_found(check, directory, "a changed table")

    error = with_table(lambda rank: rank["tensors"].pop("ln_f.bias"))
    check.expect("ln_f.bias is not in the table" in error, error)
    error = with_table(lambda rank: rank["tensors"].update(extra="0" * 16))
    check.expect("extra is in the table" in error, error)
    error = with_table(lambda rank: rank["tensors"].update({"ln_f.bias": ""}))
    check.expect("0 checksums" in error, error)
    error = with_table(lambda rank: rank.update(header="0" * 16))
    check.expect("checksum of the header" in error, error)
    path.write_text((other / "config.json").read_text())
    expect_found(check, directory, "the table of another file")
    path.write_text(good)


def check_config(check, directory, seed):
    """A flipped bit of config.json is refused, or changes nothing."""
    path = directory / "config.json"
    good = path.read_bytes()
    wanted = run(check.program, *run_flags(directory)).stdout
    rng = random.Random(seed)
    for _ in range(scaled(30)):
        data = bytearray(good)
        offset = rng.randrange(len(data))
        data[offset] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        result = run(check.program, *run_flags(directory))
        same = result.returncode == 0 and result.stdout == wanted
        check.expect(
            same or (result.returncode in (64, 65, 78) and result.stdout == ""),
            f"config.json of {directory.name}, byte {offset}: {result.returncode} "
            f"{result.stdout!r} {result.stderr}",
        )
    config = json.loads(good)
    config["layer_norm_epsilon"] = 0.5
    path.write_text(json.dumps(config))
    error = expect_found(check, directory, "another epsilon")
    check.expect("config_xxh3" in error, error)
    run_or_die(check.program, *run_flags(directory, "--no-verify"))
    del config["caravan"]["config_xxh3"]
    path.write_text(json.dumps(config))
    run_or_die(check.program, *run_flags(directory))
    path.write_bytes(good)


def check_old_directories(check, engine, checkpoint, work):
    """What version 0.1.0 wrote: engines have checksums of whole tensors, checkpoints have none."""
    for directory in (engine, checkpoint):
        old = work / f"old-{directory.name}"
        shutil.copytree(directory, old)
        config = json.loads((old / "config.json").read_text())
        del config["caravan"]["checksums"], config["caravan"]["config_xxh3"]
        (old / "config.json").write_text(json.dumps(config))
        run_or_die(check.program, *run_flags(old))
        weights = Weights(old)
        begin, end = weights.range_of("h.1.attn.c_attn.weight")
        weights.flip((begin + end) // 2, 0)
        if directory == engine:
            expect_found(check, old, "an old engine")
        else:
            run_or_die(check.program, *run_flags(old))
            report = check.json("inspect", old, "--checksums", "--json")
            check.expect(report["checksums"] == "no table", f"old checkpoint: {report}")


def check_commands(check, directory, work):
    """Every command that computes refuses, and takes --no-verify."""
    weights = Weights(directory)
    begin, _ = weights.range_of("h.1.mlp.c_proj.weight")
    weights.flip(begin + 2, 0)
    ids = work / "ids.jsonl"
    ids.write_text('{"ids": [5, 6, 7]}\n')
    text = work / "text.txt"
    text.write_text("The sea was calm and the boat went out again.\n")
    items = work / "items.jsonl"
    items.write_text('{"text": "The sea was calm"}\n')
    articles = work / "articles.jsonl"
    articles.write_text('{"id": "a", "article": "The sea was calm.", "highlights": "Calm."}\n')
    commands = [
        ["score", "--input", ids],
        ["perplexity", "--data", text, "--window", "8"],
        ["lambada", "--data", items],
        ["summarize", "--data", articles, "--output", work / "p.jsonl", "--output-len", "2",
         "--max-input-len", "40", "--force"],
        ["diverge", "--against", directory, "--ids", "5", "6"],
        ["bench", "load", "--prompt-len", "4"],
        ["bench", "latency", "--prompt-lens", "4", "--contexts", "8", "--steps", "2", "--repeats", "1"],
    ]
    for command in commands:
        num = 2 if command[0] == "bench" else 1
        arguments = [*command[:num], "--model", directory, *command[num:]]
        result = run(check.program, *arguments)
        check.expect(
            result.returncode == 65 and "h.1.mlp.c_proj.weight: checksum" in result.stderr,
            f"{arguments}: exit {result.returncode}: {result.stderr}",
        )
        result = run(check.program, *arguments, "--no-verify")
        check.expect(result.returncode in (0, 1), f"{arguments} --no-verify: {result.stderr}")
        (work / "p.jsonl").unlink(missing_ok=True)
    run_or_die(check.program, *run_flags(directory, "--no-verify"))
    weights.mend()


def check_build_source(check, checkpoint, work):
    """A damaged checkpoint does not become an engine."""
    weights = Weights(checkpoint)
    begin, _ = weights.range_of("wte.weight")
    weights.flip(begin + 77, 1)
    check.refuses(65, "wte.weight: checksum", "build", "--model", checkpoint, "--output",
                  work / "never")
    check.expect(not (work / "never").exists(), "an engine of a damaged checkpoint")
    weights.mend()


def check_two_processes(check, directory):
    """Two at a time on one file, both ways."""
    weights = Weights(directory)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for damage, status in ((False, 0), (True, 65)):
            if damage:
                weights.flip(weights.range_of("wpe.weight")[0], 6)
            jobs = [pool.submit(run, check.program, *run_flags(directory)) for _ in range(2)]
            codes = [job.result().returncode for job in jobs]
            check.expect(codes == [status, status], f"two processes: {codes}")
    weights.mend()


def poke(directory, name, index, values):
    """Overwrites float32 values of a Hugging Face directory."""
    weights = Weights(directory)
    begin, _ = weights.range_of(name)
    data = bytearray(weights.good)
    struct.pack_into(f"<{len(values)}f", data, begin + 4 * index, *values)
    weights.write(data)


def check_not_finite(check, model, work):
    """Values that float16 does not hold, and values that are no numbers."""
    ids = work / "ids.jsonl"
    ids.write_text('{"ids": [5, 6, 7]}\n')

    def variant(name, tensor, index, values):
        directory = work / name
        shutil.copytree(model, directory)
        poke(directory, f"transformer.{tensor}", index, values)
        return directory

    wide = variant("v70", "wte.weight", 3, [70000.0] * 8)
    where = "transformer.wte.weight: value 70000 at index 3 is outside the range of float16"
    check.refuses(65, where, *run_flags(wide))
    check.refuses(65, "--dtype bfloat16 or float32", "score", "--model", wide, "--input", ids)
    check.refuses(65, where, "diverge", "--model", wide, "--against", wide, "--ids", "5")
    for dtype in ("float32", "bfloat16"):
        run_or_die(check.program, *run_flags(wide, "--dtype", dtype))
    edge = variant("edge", "h.1.mlp.c_fc.weight", 9, [65519.0])  # rounds to 65504
    run_or_die(check.program, *run_flags(edge))
    edge = variant("past", "h.1.mlp.c_fc.weight", 9, [-65520.0])  # to infinity
    check.refuses(65, "h.1.mlp.c_fc.weight: value -65520 at index 9", *run_flags(edge))
    wider = variant("v3e38", "wpe.weight", 0, [3.4e38])
    check.refuses(65, "choose --dtype float32", *run_flags(wider, "--dtype", "bfloat16"))
    bias = variant("bias", "h.0.attn.c_attn.bias", 2, [70000.0])  # biases stay float32
    run_or_die(check.program, *run_flags(bias))
    for text, value in (("nan", float("nan")), ("inf", float("inf")), ("-inf", float("-inf"))):
        for tensor in ("wte.weight", "ln_f.bias"):
            bad = variant(f"v{text}{tensor}", tensor, 5, [value])
            for dtype in ("float16", "float32"):
                check.refuses(65, f"{tensor}: value {text} at index 5, expected a finite number",
                              *run_flags(bad, "--dtype", dtype))
    # The converter keeps what a source holds; what it wrote has right checksums all the same.
    run_or_die(check.program, "build", "--model", bad, "--output", work / "bad-engine")
    run_or_die(check.program, "inspect", work / "bad-engine", "--checksums")
    check.refuses(65, "ln_f.bias: value -inf at index 5", *run_flags(work / "bad-engine"))


def main():
    program, source = sys.argv[1], pathlib.Path(sys.argv[2])
    nano = source / "models" / "camel-nano"
    check = Checker(program)
    with tempfile.TemporaryDirectory() as name:
        work = pathlib.Path(name)
        model, engine, checkpoint = work / "model", work / "engine", work / "checkpoint"
        run_or_die(program, "synth", *TINY, "--output", model, "--tokenizer", nano)
        run_or_die(program, "build", "--model", model, "--output", engine)
        (work / "calibration.txt").write_text("The sea was calm and the boat went out again. " * 40)
        run_or_die(program, "convert", "--model", model, "--output", checkpoint, "--dtype", "float16",
                   "--calibrate-kv-cache", work / "calibration.txt",
                   "--calib-size", "4", "--calib-max-len", "32")
        run_or_die(program, "build", "--model", checkpoint, "--output", work / "engine8",
                   "--kv-cache-dtype", "int8")
        for directory in (engine, checkpoint, work / "engine8"):
            check_random_flips(check, directory, directory.name)
            check_regions(check, directory)
            check_exchanges(check, directory)
        for directory in (engine, checkpoint):
            check_tables(check, directory, work / "engine8")
            check_config(check, directory, directory.name)
            check_commands(check, directory, work)
            check_two_processes(check, directory)
        check_old_directories(check, engine, checkpoint, work)
        check_build_source(check, checkpoint, work)
        check_not_finite(check, model, work)
    for failure in check.failures:
        print(failure, file=sys.stderr)
    return 1 if check.failures else 0


if __name__ == "__main__":
    sys.exit(main())
