"""What the command line tests share: running the program, small models, comparing directories."""

import hashlib
import json
import os
import pathlib
import subprocess

# Twelve layers of 12 tensors each: enough tensors for a kill to land between any two.
SMALL_MODEL = (
    "--shape custom --n-embd 64 --n-layer 12 --n-head 4 --n-positions 128 --vocab-size 4001".split()
)


def scaled(count):
    """The share of `count` cases that CARAVAN_TEST_SCALE names (sanitizers run a share), or all."""
    return max(1, int(count * float(os.environ.get("CARAVAN_TEST_SCALE", "1"))))


def run(program, *arguments, **options):
    """Runs the program quietly; returns the CompletedProcess with text output."""
    return subprocess.run(
        [program, "--quiet", *map(str, arguments)], capture_output=True, text=True, **options
    )


def run_or_die(program, *arguments):
    """Runs the program, which must succeed."""
    result = run(program, *arguments)
    if result.returncode != 0:
        raise SystemExit(f"{arguments}: exit {result.returncode}: {result.stderr}")


def digests(directory):
    """{file name: SHA-256} of a directory."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in pathlib.Path(directory).iterdir()
    }


def synth(program, directory, *arguments):
    """Writes the small model."""
    run_or_die(program, "synth", *SMALL_MODEL, "--output", directory, *arguments)


def one_error_line(result):
    """True when stderr is, warnings apart, exactly one line that begins as every error does."""
    lines = [line for line in result.stderr.splitlines() if not line.startswith("caravan: warning: ")]
    return len(lines) == 1 and lines[0].startswith("caravan: error: ")


def exists(path):
    """os.path.lexists, for symmetry with the checks."""
    return os.path.lexists(path)


class Checker:
    """Runs commands and collects what is wrong."""

    def __init__(self, program):
        self.program = program
        self.failures = []

    def expect(self, condition, what):
        if not condition:
            self.failures.append(what)

    def refuses(self, status, text, *arguments):
        """The command fails with `status` and one line that contains `text`."""
        result = run(self.program, *arguments)
        good = result.returncode == status and one_error_line(result) and text in result.stderr
        self.expect(
            good,
            f"{arguments}: exit {result.returncode}, expected {status} and '{text}': "
            f"{result.stderr}",
        )

    def json(self, *arguments):
        """stdout of a command that succeeds, parsed."""
        result = run(self.program, *arguments)
        self.expect(result.returncode == 0, f"{arguments}: {result.stderr}")
        return json.loads(result.stdout or "{}")
