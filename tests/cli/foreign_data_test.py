#!/usr/bin/env python3
"""Nothing that is not ours is deleted or written through, and no input is lost.

usage: foreign_data_test.py PROGRAM
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

from cli_tools import SMALL_MODEL, Checker, digests, exists, run, run_or_die, synth

LIMITS = ["--max-input-len", "64", "--max-output-len", "64"]


def commands(model):
    """Each command that writes a directory, without its --output."""
    return {
        "synth": ["synth", *SMALL_MODEL],
        "convert": ["convert", "--model", model, "--dtype", "float16"],
        "build": ["build", "--model", model, *LIMITS],
    }


def write(path, text="precious\n"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def snapshot(path):
    """Everything below a path: kind, link target or bytes."""
    found = {}
    for item in [path, *sorted(path.rglob("*"))]:
        if item.is_symlink():
            found[str(item)] = os.readlink(item)
        else:
            found[str(item)] = item.read_bytes() if item.is_file() else None
    return found


def refuses_and_keeps(check, place, text, *arguments):
    """The command fails with 64 and `text`, and everything below `place` is as it was."""
    before = snapshot(place)
    check.refuses(64, text, *arguments)
    check.expect(snapshot(place) == before, f"{arguments}: changed {place}")


def foreign_outputs(check, work, model):
    """--force on what caravan did not write."""
    for name, command in commands(model).items():
        place = work / f"foreign-{name}"
        write(place / "home" / "docs" / "thesis.txt")
        write(place / "file")
        (place / "link").symlink_to("home", target_is_directory=True)
        (place / "dangling").symlink_to("nowhere")
        (place / "empty").mkdir()
        write(place / "hf" / "config.json", json.dumps({"model_type": "gpt2"}))
        write(place / "hf" / "model.safetensors")
        write(place / "broken" / "config.json", "{")
        os.mkfifo(place / "fifo")
        run_or_die(check.program, *command, "--output", place / "extended")
        write(place / "extended" / "notes.txt")
        run_or_die(check.program, *command, "--output", place / "nested")
        write(place / "nested" / "runs" / "1.txt")
        for target, text in {
            "home": 'holds a directory "docs"',
            "file": "is a file, and --force replaces only",
            "link": "is a symbolic link, and --force",
            "dangling": "is a symbolic link, and --force",
            "empty": "has no config.json that caravan wrote",
            "hf": "has no config.json that caravan wrote",
            "broken": "has no config.json that caravan wrote",
            "fifo": "is a device, FIFO or socket",
            "extended": 'holds a file "notes.txt"',
            "nested": 'holds a directory "runs"',
            "file/": "is a file, and --force",
            "home/.": "expected the name of a new directory",
        }.items():
            output = f"{place}/{target}"
            refuses_and_keeps(check, place, text, *command, "--output", output, "--force")
        run_or_die(check.program, *command, "--output", place / "ours")
        expected = digests(place / "ours")
        run_or_die(check.program, *command, "--output", place / "ours", "--force")
        check.expect(digests(place / "ours") == expected, f"{name} --force on its own output")
        check.expect(not exists(place / "ours.partial"), f"{name}: .partial is left")


def trained_synthetic_model(check, work):
    """A synthetic model whose weights somebody trained is not ours any more."""
    place = work / "trained"
    synth(check.program, place)
    weights = (place / "model.safetensors").read_bytes().replace(b"caravan_synth", b"trained_model")
    (place / "model.safetensors").write_bytes(weights)
    refuses_and_keeps(check, place, "has no config.json", "synth", *SMALL_MODEL, "--output", place,
                      "--force")


def foreign_work_directories(check, work, model):
    """OUTPUT.partial that caravan did not make."""
    for name, command in commands(model).items():
        place = work / f"partial-{name}"
        write(place / "victim" / "a.txt")
        write(place / "victim" / "rank0.safetensors")
        write(place / "notes.partial" / "notes.txt")
        (place / "link.partial").symlink_to("victim", target_is_directory=True)
        write(place / "file.partial")
        write(place / "named.partial" / "config.json", "{}")
        write(place / "hard.partial" / "caravan.partial", "")
        os.link(place / "victim" / "rank0.safetensors",
                place / "hard.partial" / "rank0.safetensors")
        write(place / "soft.partial" / "caravan.partial", "")
        (place / "soft.partial" / "config.json").symlink_to("../victim/a.txt")
        for target, text in {
            "notes": 'holds a file "notes.txt"',
            "link": "is no directory",
            "file": "is no directory",
            "named": "has no mark of caravan's",
            "hard": '"rank0.safetensors" has a second name',
            "soft": 'holds a symbolic link "config.json"',
        }.items():
            refuses_and_keeps(check, place, text, *command, "--output", place / target)
        if os.geteuid() == 0:
            write(place / "other.partial" / "caravan.partial", "")
            os.chown(place / "other.partial", 12345, 12345)
            refuses_and_keeps(check, place, "belongs to user 12345", *command, "--output",
                              place / "other")


def sources_stay(check, work):
    """An output that is, holds or lies in an input, however it is spelled."""
    place = work / "sources"
    model = place / "m" / "model"
    synth(check.program, model)
    run_or_die(check.program, "convert", "--model", model, "--output", place / "m" / "checkpoint")
    (place / "alias").symlink_to("m", target_is_directory=True)
    cases = [
        (["convert", "--model", model], model),
        (["build", "--model", model, *LIMITS], model),
        (["build", "--model", place / "m" / "checkpoint", *LIMITS], place / "m" / "checkpoint"),
        (["synth", *SMALL_MODEL, "--tokenizer", model], model),
        (["convert", "--model", place / "m" / "checkpoint"], place / "m" / "checkpoint"),
    ]
    for command, source in cases:
        for output in [
            source,
            f"{source}/",
            f"{source}/../{source.name}",
            place / "alias" / source.name,
            source / "new",
            place / "alias" / source.name / "a" / "b",
            place / "m",
            place / "alias",
            place,
        ]:
            refuses_and_keeps(check, place, "give another --output", *command, "--output", output,
                              "--force")
    # The model is what lies under OUTPUT.partial.
    os.rename(model, place / "x.partial")
    refuses_and_keeps(check, place, "is --model", "build", "--model", place / "x.partial", *LIMITS,
                      "--output", place / "x")
    text = place / "x.partial" / "caravan.txt"
    write(text, "some text to calibrate on\n" * 100)
    refuses_and_keeps(check, place, "holds", "build", "--model", place / "m" / "checkpoint",
                      *LIMITS, "--calibrate-kv-cache", text, "--output", place / "x.partial",
                      "--force")
    mount = place / "mount"
    mount.mkdir()
    if subprocess.run(["mount", "--bind", place / "m" / "checkpoint", mount],
                      capture_output=True).returncode == 0:
        try:
            refuses_and_keeps(check, place / "m", "is --model", "build", "--model",
                              place / "m" / "checkpoint", *LIMITS, "--output", mount, "--force")
            refuses_and_keeps(check, place / "m", "lies in --model", "build", "--model", mount,
                              *LIMITS, "--output", place / "m" / "checkpoint" / "new")
        finally:
            subprocess.run(["umount", mount], check=True)


def mounts(check, work, model):
    """A mount point, a read-only and a small file system as the output."""
    place = work / "mounts"
    place.mkdir()
    for name, options in {"point": "size=64m", "readonly": "ro,size=64m", "small": "size=256k"}.items():
        (place / name).mkdir()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place / name],
                                 capture_output=True)
        if mounted.returncode != 0:
            print("mounts: not allowed here, left out")
            return
    try:
        for name, command in commands(model).items():
            run_or_die(check.program, *command, "--output", place / name)
            for file in (place / name).iterdir():
                (place / "point" / file.name).write_bytes(file.read_bytes())
            refuses_and_keeps(check, place / "point", "is a mount point", *command, "--output",
                              place / "point", "--force")
            check.refuses(74, "Read-only file system", *command, "--output",
                          place / "readonly" / "x")
            check.refuses(74, "GB free", *command, "--output", place / "small" / "x")
            check.expect(not any((place / "small").iterdir()), f"{name}: left files on a full disk")
            for file in (place / "point").iterdir():
                file.unlink()
    finally:
        for name in ("point", "readonly", "small"):
            subprocess.run(["umount", place / name], check=True)


def output_files(check, work, model):
    """Files: planted links, inputs, devices."""
    place = work / "files"
    write(place / "victim")
    write(place / "data.jsonl", '{"text": "Hello there"}\n')
    tokenize = ["tokenize", "--model", model, "--input", place / "data.jsonl", "--output"]
    for output in ["data.jsonl", "./data.jsonl"]:
        refuses_and_keeps(check, place, "would be lost", *tokenize, place / output)
    refuses_and_keeps(check, model, "would be lost", *tokenize, model / "tokenizer.json")
    (place / "link").symlink_to("victim")
    run_or_die(check.program, *tokenize, place / "link")
    check.expect((place / "victim").read_text() == "precious\n", "a link was written through")
    check.expect(not (place / "link").is_symlink(), "the link was to be replaced")
    check.refuses(64, "is a directory", *tokenize, place)
    check.refuses(66, "cannot create", *tokenize, place / "none" / "x")
    rows = (place / "link").read_text()
    piped = run(check.program, *tokenize, "/dev/stdout")
    check.expect(piped.stdout == rows, f"/dev/stdout: {piped}")
    run_or_die(check.program, *tokenize, "/dev/null")
    check.expect(pathlib.Path("/dev/null").is_char_device(), "/dev/null was replaced")
    os.mkfifo(place / "fifo")
    reader = subprocess.Popen(["cat", place / "fifo"], stdout=subprocess.PIPE, text=True)
    run_or_die(check.program, *tokenize, place / "fifo")
    check.expect(reader.communicate(timeout=60)[0] == rows, "the FIFO got something else")
    check.expect(sorted(p.name for p in place.iterdir()) == ["data.jsonl", "fifo", "link", "victim"],
                 f"temporary files are left: {list(place.iterdir())}")


def stop_while_working(program, command, output, attempts=50):
    """A process of the command that was stopped after it began to write, or None."""
    for _ in range(attempts):
        process = subprocess.Popen([program, "--quiet", *map(str, command), "--output", output],
                                   stderr=subprocess.PIPE, text=True)
        while process.poll() is None:
            if pathlib.Path(f"{output}.partial").exists():
                names = os.listdir(f"{output}.partial")
                if any(name.startswith("rank0") or name.startswith("model") for name in names):
                    process.send_signal(signal.SIGSTOP)
                    time.sleep(0.05)
                    if exists(f"{output}.partial") and process.poll() is None:
                        return process
                    process.send_signal(signal.SIGCONT)
                    break
        process.communicate()
        subprocess.run(["rm", "-rf", output, f"{output}.partial"], check=True)
    return None


def interrupted(check, work):
    """SIGTERM and SIGINT: what is left is said, nothing half stands, the next run ends well."""
    place = work / "interrupted"
    model = place / "model"
    run_or_die(check.program, "synth", "--shape", "custom", "--n-embd", 256, "--n-layer", 12,
               "--n-head", 4, "--vocab-size", 4001, "--output", model)
    shape = ["--shape", "custom", "--n-embd", 256, "--n-layer", 12, "--n-head", 4]
    for name, command in {**commands(model), "synth": ["synth", *shape]}.items():
        for number in (signal.SIGTERM, signal.SIGINT):
            output = place / f"{name}-{number}"
            process = stop_while_working(check.program, command, output)
            if process is None:
                check.expect(False, f"{name}: never stopped while it wrote")
                continue
            second = run(check.program, *command, "--output", output)
            check.expect(second.returncode == 64 and "another process" in second.stderr,
                         f"two at once: {second}")
            process.send_signal(number)
            process.send_signal(signal.SIGCONT)
            stderr = process.communicate()[1]
            check.expect(process.returncode == -number, f"{name}: exit {process.returncode}")
            check.expect(f"{output}.partial is left behind" in stderr, f"{name} says: {stderr}")
            check.expect(not exists(output), f"{name}: a half output")
            run_or_die(check.program, *command, "--output", output)
            check.expect(not exists(f"{output}.partial"), f"{name}: .partial is left")
    changed_sources(check, place, model)


def changed_sources(check, place, model):
    """A source that is cut, rewritten or rewritten with its old time while it is read."""
    weights = model / "model.safetensors"
    whole = weights.read_bytes()
    for name, command in commands(model).items():
        if name == "synth":
            continue
        for act in ("cut", "rewrite", "touch back", "tokenizer"):
            output = place / f"changed-{name}"
            process = stop_while_working(check.program, command, output)
            if process is None:
                check.expect(False, f"{name}: never stopped while it wrote")
                continue
            info = weights.stat()
            if act == "cut":
                os.truncate(weights, len(whole) // 3)
            elif act == "tokenizer":
                write(model / "vocab.json", "{}")
            else:
                with open(weights, "r+b") as file:
                    file.seek(len(whole) * 3 // 4)
                    file.write(b"\x33" * (len(whole) // 8))
                if act == "touch back":
                    os.utime(weights, ns=(info.st_atime_ns, info.st_mtime_ns))
            process.send_signal(signal.SIGCONT)
            stderr = process.communicate()[1]
            what = f"{name}, {act}: exit {process.returncode}: {stderr}"
            check.expect(process.returncode == 74, what)
            wanted = "vocab.json" if act == "tokenizer" else "model.safetensors"
            check.expect(wanted in stderr and ("changed" in stderr or "cut short" in stderr), what)
            check.expect(not exists(output), f"{what}: an output stands")
            weights.write_bytes(whole)
            (model / "vocab.json").unlink(missing_ok=True)
            run_or_die(check.program, *command, "--output", output)
            subprocess.run(["rm", "-rf", output], check=True)


def journals(check, work, model):
    """What a run of other flags or another version left is begun anew, and why is said."""
    place = work / "journals"
    for first, second, reason in [
        ("float16", "bfloat16", '--dtype "float16", now "bfloat16"'),
        ("version", "float16", "another version's"),
    ]:
        output = place / first
        write(place / f"{first}.partial" / "convert.journal", "caravan convert journal 1 0\n")
        if first != "version":
            settings = {"--dtype": first, "--tensor-parallel": 1, "--calibrate-kv-cache": None}
            write(place / f"{first}.partial" / "convert.journal",
                  f"caravan convert journal 2 0123456789abcdef\n{json.dumps(settings)}\n")
        result = run(check.program, "convert", "--model", model, "--dtype", second, "--output",
                     output)
        check.expect(result.returncode == 0 and reason in result.stderr, f"{first}: {result}")


def main():
    check = Checker(sys.argv[1])
    with tempfile.TemporaryDirectory(prefix="caravan-foreign-") as folder:
        work = pathlib.Path(folder).resolve()
        model = work / "model"
        synth(check.program, model)
        root = pathlib.Path(__file__).resolve().parents[2]
        with_tokenizer = work / "tokenizer"
        synth(check.program, with_tokenizer, "--tokenizer", root / "models" / "camel-nano")
        foreign_outputs(check, work, model)
        trained_synthetic_model(check, work)
        foreign_work_directories(check, work, model)
        sources_stay(check, work)
        mounts(check, work, model)
        output_files(check, work, with_tokenizer)
        interrupted(check, work)
        journals(check, work, model)
    for failure in check.failures:
        print(failure)
    return 1 if check.failures else 0


if __name__ == "__main__":
    sys.exit(main())
