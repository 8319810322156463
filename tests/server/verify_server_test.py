#!/usr/bin/env python3
"""`serve` with weights that are damaged, not finite, or written to while they are in use.

usage: verify_server_test.py PROGRAM SOURCE_DIR
"""

import json
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import tempfile
import threading

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "cli"))
from cli_tools import Checker, run_or_die
from server_tools import Server, free_port

TINY = "--shape custom --n-embd 16 --n-layer 2 --n-head 2 --vocab-size 50258 --n-positions 512".split()
ASK = {"prompt": "The sea was", "max_tokens": 8, "temperature": 0}


def flip(path):
    """One bit in the middle, in place: what a cable or a disk does."""
    with open(path, "r+b") as file:
        file.seek(os.path.getsize(path) // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def expect_not_ready(check, model, text, *flags):
    """The server ends with status 65 and the reason, and never says that it is ready."""
    result = subprocess.run(
        [check.program, "serve", "--model", model, "--port", str(free_port()), *flags],
        capture_output=True, text=True, timeout=120, check=False,
    )
    good = result.returncode == 65 and text in result.stderr and "ready:" not in result.stderr
    check.expect(good, f"serve {model.name} {flags}: {result.returncode} {result.stderr}")


def check_canary(check, model, engine, work):
    """What is wrong before the first request."""
    damaged = work / "damaged"
    shutil.copytree(engine, damaged)
    flip(damaged / "rank0.safetensors")
    for flags in ((), ("--threads", "1")):
        expect_not_ready(check, damaged, "checksum of the", *flags)
    with Server(check.program, damaged, "--no-verify") as server:
        check.expect(server.post("/v1/completions", ASK)[0] == 200, "--no-verify")
    bad = work / "nan"
    shutil.copytree(model, bad)
    data = bytearray((bad / "model.safetensors").read_bytes())
    length = struct.unpack("<Q", data[:8])[0]
    begin = json.loads(data[8 : 8 + length])["transformer.ln_f.bias"]["data_offsets"][0]
    struct.pack_into("<f", data, 8 + length + begin, float("nan"))
    (bad / "model.safetensors").write_bytes(data)
    expect_not_ready(check, bad, "ln_f.bias: value nan at index 0")
    expect_not_ready(check, bad, "numbers that are not finite", "--no-verify")
    # Its checksums are right: the converter keeps what a source holds.
    run_or_die(check.program, "build", "--model", bad, "--output", work / "nan-engine")
    expect_not_ready(check, work / "nan-engine", "ln_f.bias: value nan at index 0")
    expect_not_ready(check, work / "nan-engine", "numbers that are not finite", "--no-verify")


def check_written_to(check, engine, work):
    """Weights that are written to in place end the server, with answers on their way or without."""
    for num_running in (0, 6):
        model = work / f"used{num_running}"
        shutil.copytree(engine, model)
        answers = []
        with Server(check.program, model, "--max-num-seqs", "2") as server:
            check.expect(server.post("/v1/completions", ASK)[0] == 200, "before")

            def ask():
                try:
                    long = dict(ASK, max_tokens=480, ignore_eos=True)
                    answers.append(server.post("/v1/completions", long)[0])
                except OSError:
                    answers.append(0)

            threads = [threading.Thread(target=ask) for _ in range(num_running)]
            for thread in threads:
                thread.start()
            flip(model / "rank0.safetensors")
            for thread in threads:
                thread.join()
            # Nobody need ask for the server to notice.
            server.process.wait(timeout=60)
            check.expect(server.process.returncode == 75, f"exit {server.process.returncode}")
        check.expect("rank0.safetensors: the weights changed on disk" in server.log, server.log)
        check.expect(len(answers) == num_running and 200 not in answers[2:],
                     f"answers of changed weights: {answers}")


def check_replaced(check, engine, work):
    """A new file under the old name is for the next start; the server goes on as it is."""
    model = work / "replaced"
    shutil.copytree(engine, model)
    with Server(check.program, model) as server:
        before = server.post("/v1/completions", ASK)
        shutil.copy(model / "rank0.safetensors", model / "new")
        flip(model / "new")
        os.replace(model / "new", model / "rank0.safetensors")
        after = server.post("/v1/completions", ASK)
        check.expect(
            before[0] == after[0] == 200
            and before[1]["choices"][0]["text"] == after[1]["choices"][0]["text"],
            f"{before} {after}",
        )
        check.expect(server.get("/health")[0] == 200, "health")
    check.expect(server.process.returncode == 0, f"exit {server.process.returncode}")


def check_packed(check, model, work):
    """Weights that were packed in memory are no longer the file's."""
    packed = work / "packed"
    shutil.copytree(model, packed)
    with Server(check.program, packed) as server:
        before = server.post("/v1/completions", ASK)
        flip(packed / "model.safetensors")
        after = server.post("/v1/completions", ASK)
        check.expect(before[1]["choices"][0]["text"] == after[1]["choices"][0]["text"], "packed")
    check.expect(server.process.returncode == 0, f"exit {server.process.returncode}")


def main():
    program, source = sys.argv[1], pathlib.Path(sys.argv[2])
    check = Checker(program)
    with tempfile.TemporaryDirectory() as name:
        work = pathlib.Path(name)
        model, engine = work / "model", work / "engine"
        run_or_die(program, "synth", *TINY, "--output", model, "--tokenizer",
                   source / "models" / "camel-nano")
        run_or_die(program, "build", "--model", model, "--output", engine, "--max-input-len", "300")
        check_canary(check, model, engine, work)
        check_written_to(check, engine, work)
        check_replaced(check, engine, work)
        check_packed(check, model, work)
    for failure in check.failures:
        print(failure, file=sys.stderr)
    return 1 if check.failures else 0


if __name__ == "__main__":
    sys.exit(main())
