#!/usr/bin/env python3
"""`synth`, `convert` and `build` on a full disk.

usage: disk_full_test.py PROGRAM

Two ways to run out: a limit on the size of one file (RLIMIT_FSIZE, EFBIG), at sizes spread over the
whole output, and a small tmpfs (ENOSPC) where mounting is allowed. Each time: exit status 74, one
line on stderr, nothing under the final name and no temporary file.
"""

import pathlib
import resource
import signal
import subprocess
import sys
import tempfile

from cli_tools import exists, one_error_line, run, run_or_die, synth, SMALL_MODEL

EXIT_IO = 74


def commands(model):
    """Each command without its --output, by name."""
    return {
        "synth": ["synth", *SMALL_MODEL],
        "convert": ["convert", "--model", model, "--dtype", "float16"],
        "build": ["build", "--model", model, "--max-input-len", 64, "--max-output-len", 64],
    }


def check_failure(name, result, output, limit):
    """The promises of a run that met a full disk."""
    what = f"{name} with room for {limit} bytes"
    if result.returncode != EXIT_IO:
        raise SystemExit(f"{what}: exit {result.returncode}, expected {EXIT_IO}: {result.stderr}")
    if not one_error_line(result):
        raise SystemExit(f"{what}: expected one error line, got: {result.stderr}")
    left = [path.name for path in output.parent.iterdir() if path.name.startswith(output.name)]
    if left:
        raise SystemExit(f"{what}: left {left}")


def limit_file_size(limit):
    """For preexec_fn: writes beyond `limit` bytes fail with EFBIG and do not kill."""

    def apply():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return apply


def file_size_limits(program, work, model):
    for name, command in commands(model).items():
        output = work / f"{name}-limited"
        run_or_die(program, *command, "--output", output)
        largest = max(path.stat().st_size for path in output.iterdir())
        run_or_die(program, *command, "--output", output, "--force")
        limits = [0, 1, 4096, largest // 4, largest // 2, largest - 4097, largest - 1]
        for limit in limits:
            target = work / f"{name}-{limit}"
            result = run(
                program, *command, "--output", target, preexec_fn=limit_file_size(limit)
            )
            check_failure(name, result, target, limit)
        print(f"{name}: {len(limits)} file size limits up to {largest} bytes, each one clean error")


def small_tmpfs(program, work, model):
    mount = work / "tmpfs"
    mount.mkdir()
    for kilobytes in (64, 500, 900):
        result = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(mount)],
            capture_output=True,
            text=True,
        )
        if result.returncode != 0:
            # Mounting needs root; the limits above take the same paths through the program.
            print(f"tmpfs: not mounted: {result.stderr.strip()}")
            return
        try:
            for name, command in commands(model).items():
                output = mount / name
                result = run(program, *command, "--output", output)
                check_failure(name, result, output, kilobytes * 1024)
        finally:
            subprocess.run(["umount", str(mount)], check=True)
    print("tmpfs: 3 sizes x 3 commands, each one clean error")


def main():
    program = sys.argv[1]
    with tempfile.TemporaryDirectory(prefix="caravan-full-") as folder:
        work = pathlib.Path(folder)
        synth(program, work / "model")
        file_size_limits(program, work, work / "model")
        small_tmpfs(program, work, work / "model")
        assert not exists(work / "model.partial")
    return 0


if __name__ == "__main__":
    sys.exit(main())
