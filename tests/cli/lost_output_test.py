#!/usr/bin/env python3
"""Every command says when its results or its files were lost: exit status 74, 66, 77.

usage: lost_output_test.py PROGRAM SOURCE_DIR
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile

from cli_tools import Checker, digests, one_error_line, run, run_or_die

NOBODY = 65534


def result_commands(work, nano):
    """Every command that prints results."""
    rows = work / "rows.jsonl"
    rows.write_text('{"text": "Hi there, you", "prompt": "A cat"}\n')
    pairs = work / "pairs.jsonl"
    pairs.write_text('{"prediction": "a b", "reference": "a", "id": "1"}\n')
    articles = work / "articles.jsonl"
    articles.write_text('{"article": "A cat sat on a mat.", "highlights": "A cat sat."}\n')
    return {
        "version": ["--version"],
        "help": ["--help"],
        "run help": ["run", "--help"],
        "run": ["run", "--model", nano, "--prompt", "Hi", "-n", 1],
        "run json": ["run", "--model", nano, "--input", rows, "-n", 1, "--json"],
        "score": ["score", "--model", nano, "--input", rows],
        "plan": ["plan", "--model", nano],
        "plan json": ["plan", "--model", nano, "--json"],
        "inspect": ["inspect", nano],
        "inspect json": ["inspect", nano, "--json"],
        "tokenize": ["tokenize", "--model", nano, "--text", "Hi"],
        "rouge": ["rouge", "--predictions", pairs],
        "rouge json": ["rouge", "--predictions", pairs, "--json"],
        "perplexity": ["perplexity", "--model", nano, "--data", rows],
        "perplexity json": ["perplexity", "--model", nano, "--data", rows, "--json"],
        "lambada": ["lambada", "--model", nano, "--data", rows],
        "lambada json": ["lambada", "--model", nano, "--data", rows, "--json"],
        "summarize": ["summarize", "--model", nano, "--data", articles, "-n", 2],
        "summarize json": ["summarize", "--model", nano, "--data", articles, "-n", 2, "--json"],
        "diverge": ["diverge", "--model", nano, "--against", nano, "--text", "Hi"],
        "diverge json": ["diverge", "--model", nano, "--against", nano, "--text", "Hi", "--json"],
        "bench kernel": ["bench", "kernel", "--help"],
    }


def lost_results(check, commands):
    """A full device and a closed descriptor."""
    for name, command in commands.items():
        with open("/dev/full", "w") as full:
            process = subprocess.run([check.program, "-q", *map(str, command)], stdout=full,
                                     stderr=subprocess.PIPE, text=True)
        what = f"{name} > /dev/full: {process.returncode}: {process.stderr}"
        check.expect(process.returncode == 74 and one_error_line(process), what)
        check.expect("standard output: write failed" in process.stderr, what)
    for name in ("version", "run", "inspect json"):
        closed = subprocess.run(
            ["sh", "-c", '"$0" "$@" >&-', check.program, "-q", *map(str, commands[name])],
            stderr=subprocess.PIPE, text=True)
        what = f"{name} >&-: {closed.returncode}: {closed.stderr}"
        check.expect(closed.returncode == 74 and one_error_line(closed), what)


def broken_pipe(check, commands):
    """A reader that is gone ends the command by SIGPIPE, or with 74 where that is ignored."""
    for restores, expected in ((True, -signal.SIGPIPE), (False, 74)):
        read_end, write_end = os.pipe()
        os.close(read_end)
        process = subprocess.run([check.program, "-q", *map(str, commands["inspect json"])],
                                 stdout=write_end, stderr=subprocess.PIPE, text=True,
                                 restore_signals=restores)
        os.close(write_end)
        check.expect(process.returncode == expected, f"broken pipe: {process}")
        check.expect(restores == (process.stderr == ""), f"broken pipe says {process.stderr}")


def closed_descriptors(check, work, nano):
    """With 0, 1 and 2 closed no log line or result may land in a file that took the number."""
    convert = ["convert", "--model", nano, "--dtype", "float16", "--output"]
    run_or_die(check.program, *convert, work / "open")
    subprocess.run(["sh", "-c", '"$0" "$@" <&- >&- 2>&-', check.program,
                    *map(str, convert), str(work / "closed")], check=True)
    check.expect(digests(work / "open") == digests(work / "closed"), "closed descriptors")
    rows = work / "rows.jsonl"
    tokenize = ["tokenize", "--model", nano, "--input", rows, "--output"]
    run_or_die(check.program, *tokenize, work / "ids")
    subprocess.run(["sh", "-c", '"$0" "$@" <&- >&- 2>&-', check.program,
                    *map(str, tokenize), str(work / "ids2")], check=True)
    check.expect((work / "ids").read_bytes() == (work / "ids2").read_bytes(), "ids with closed fds")
    with open("/dev/full", "w") as full:
        process = subprocess.run([check.program, *map(str, tokenize), str(work / "ids3")],
                                 stderr=full)
    check.expect(process.returncode == 0, "a lost stderr changed the status")


def full_disk(check, work, nano, commands):
    """Files and standard output on a small tmpfs."""
    mount = work / "full"
    mount.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", mount],
                             capture_output=True)
    if mounted.returncode != 0:
        print("tmpfs: not allowed here, left out")
        return
    try:
        (mount / "filler").write_bytes(b"x" * 4096)
        long_text = work / "long.jsonl"
        long_text.write_text(json.dumps({"text": "a cat " * 3000}) + "\n")
        command = ["tokenize", "--model", nano, "--input", long_text, "--output", mount / "ids"]
        check.refuses(74, f"{mount}/ids: write failed", *command)
        check.expect([p.name for p in mount.iterdir()] == ["filler"], "a temporary file is left")
        with open(mount / "out", "w") as out:
            process = subprocess.run([check.program, "-q", *map(str, command[:-2])], stdout=out,
                                     stderr=subprocess.PIPE, text=True)
        check.expect(process.returncode == 74, f"stdout on a full disk: {process}")
        check.refuses(74, "GB free", "perplexity", "--model", nano, "--data", work / "rows.jsonl",
                      "--dump", mount / "logits.safetensors")
        articles = work / "many.jsonl"
        articles.write_text('{"article": "A cat sat on a mat.", "highlights": "A cat."}\n' * 200)
        check.refuses(74, "summaries: write failed", "summarize", "--model", nano,
                      "--data", articles, "-n", 2, "--max-ite", 0, "--batch-size", 8, "--output",
                      mount / "summaries")
    finally:
        subprocess.run(["umount", mount], check=True)


def statuses(check, work, nano):
    """What cannot be opened has its own status and its path in the message."""
    run_model = lambda path: ["run", "--model", path, "--prompt", "x", "-n", 1]
    file = work / "rows.jsonl"
    (work / "loop").symlink_to("loop")
    check.refuses(66, f"{work}/none: no such directory", *run_model(work / "none"))
    check.refuses(66, f"{file}: no such directory: it is a file", *run_model(file))
    check.refuses(66, f"{file}/x: cannot open: Not a directory", *run_model(file / "x"))
    check.refuses(66, f"{work}/loop: cannot open", *run_model(work / "loop"))
    check.refuses(64, "name too long", *run_model(work / ("x" * 300)))
    check.refuses(66, f"{work}/none", "perplexity", "--model", nano, "--data", work / "none")
    check.refuses(64, f"{work}: is a directory, expected a file", "diverge", "--model", nano,
                  "--against", nano, "--input", work)
    check.refuses(66, f"{work}/none", "score", "--model", nano, "--input", work / "none")


def permissions(check, work, nano):
    """As a user who may not: 77 and the path."""
    if os.geteuid() != 0:
        print("permissions: this test needs another user, left out")
        return
    os.chmod(work, 0o755)
    locked = work / "locked"
    locked.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (locked / name).write_bytes(b"{}")
    secret = work / "secret.jsonl"
    secret.write_text('{"text": "x"}\n')
    os.chmod(secret, 0)
    public = work / "public"
    public.mkdir()
    for file in pathlib.Path(nano).iterdir():
        if file.is_file():
            (public / file.name).write_bytes(file.read_bytes())
    program = work / "caravan"
    program.write_bytes(pathlib.Path(check.program).read_bytes())
    os.chmod(program, 0o755)
    mine = work / "mine"
    mine.mkdir()
    os.chown(mine, NOBODY, NOBODY)

    def refused(path, *command):
        result = run(program, *command, user=NOBODY, group=NOBODY, extra_groups=[])
        good = result.returncode == 77 and one_error_line(result) and str(path) in result.stderr
        check.expect(good and "Permission denied" in result.stderr, f"{command}: {result}")

    os.chmod(locked, 0)
    refused(locked, "run", "--model", locked, "--prompt", "x")
    refused(locked, "inspect", locked)
    refused(locked, "tokenize", "--model", locked, "--text", "x")
    os.chmod(locked, 0o755)
    os.chmod(locked / "config.json", 0)
    refused(locked / "config.json", "run", "--model", locked, "--prompt", "x")
    refused(locked / "config.json", "convert", "--model", locked, "--output", mine / "c")
    os.chmod(public / "model.safetensors", 0)
    refused(public / "model.safetensors", "run", "--model", public, "--prompt", "x")
    refused(public / "model.safetensors", "build", "--model", public, "--output", mine / "e")
    os.chmod(public / "model.safetensors", 0o644)
    refused(secret, "score", "--model", public, "--input", secret)
    refused(secret, "perplexity", "--model", public, "--data", secret)
    refused(secret, "summarize", "--model", public, "--data", secret)
    refused(secret, "rouge", "--predictions", secret)
    refused(work / "new", "convert", "--model", public, "--output", work / "new")
    refused(work / "new", "build", "--model", public, "--output", work / "new")
    refused(work / "new", "synth", "--output", work / "new")
    refused(work / "new", "tokenize", "--model", public, "--text", "x", "--output", work / "new")
    other = mine / "other"  # another user's file in a directory of one's own
    other.write_text("x")
    refused(other, "tokenize", "--model", public, "--text", "x", "--output", other)
    check.expect(other.read_text() == "x", "another user's file was replaced")


def cut_engine(check, work, nano):
    """An engine that is cut or rewritten while it is served ends the server with 75."""
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "server"))
    from server_tools import Server

    for act in ("cut", "rewrite"):
        engine = work / f"engine-{act}"
        run_or_die(check.program, "build", "--model", nano, "--output", engine)
        weights = engine / "rank0.safetensors"
        server = Server(check.program, engine, "--threads", "1")
        with server:
            if act == "cut":
                os.truncate(weights, 4096)
            else:
                with open(weights, "r+b") as file:
                    file.seek(weights.stat().st_size // 2)
                    file.write(b"\x33" * 100000)
            try:
                server.post("/v1/completions", {"prompt": "The sea", "max_tokens": 8})
            except (OSError, ValueError):
                pass  # it may end before or while it answers
            status = server.process.wait(timeout=120)
        check.expect(status == 75, f"{act}: exit {status}: {server.log[-500:]}")
        check.expect(str(weights) in server.log, f"{act}: {server.log[-500:]}")


def main():
    check = Checker(str(pathlib.Path(sys.argv[1]).resolve()))
    nano = pathlib.Path(sys.argv[2]).resolve() / "models" / "camel-nano"
    with tempfile.TemporaryDirectory(prefix="caravan-lost-") as folder:
        work = pathlib.Path(folder).resolve()
        commands = result_commands(work, nano)
        lost_results(check, commands)
        broken_pipe(check, commands)
        closed_descriptors(check, work, nano)
        full_disk(check, work, nano, commands)
        statuses(check, work, nano)
        permissions(check, work, nano)
        cut_engine(check, work, nano)
    for failure in check.failures:
        print(failure)
    return 1 if check.failures else 0


if __name__ == "__main__":
    sys.exit(main())
