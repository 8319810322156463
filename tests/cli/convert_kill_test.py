#!/usr/bin/env python3
"""SIGKILL at random moments of `convert` and `build`.

usage: convert_kill_test.py PROGRAM [--kills N] [--seed S]

After each kill nothing but a whole result may lie under the final name, and the same command run
again must end with the bytes of a run in one go. The seed is printed, so that a failure can be run
again; the moments still depend on the machine.
"""

import argparse
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import time

from cli_tools import digests, exists, run, run_or_die, scaled, synth


class KillTest:
    """One command, killed again and again."""

    def __init__(self, program, work, arguments, rng):
        self.program = program
        self.output = work / "output"
        self.command = [*map(str, arguments), "--output", str(self.output)]
        self.rng = rng
        self.num_killed = 0
        self.num_left_partial = 0
        begin = time.monotonic()
        run_or_die(program, *self.command)
        self.seconds = time.monotonic() - begin
        self.expected = digests(self.output)
        shutil.rmtree(self.output)

    def check(self, moment):
        """Nothing, or the whole result."""
        if exists(self.output) and digests(self.output) != self.expected:
            raise SystemExit(f"{self.command[0]} killed after {moment:.4f} s: a half result")

    def kill_once(self):
        """Starts the command and kills it somewhere within its usual time."""
        moment = self.rng.uniform(0, 1.1 * self.seconds)
        process = subprocess.Popen(
            [self.program, "--quiet", *self.command],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            process.wait(timeout=moment)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            self.num_killed += 1
        self.num_left_partial += exists(f"{self.output}.partial")
        self.check(moment)
        return moment

    def finish(self, moment):
        """The same command again must end well, with the same bytes and nothing beside them."""
        if not exists(self.output):
            result = run(self.program, *self.command)
            if result.returncode != 0:
                raise SystemExit(
                    f"{self.command[0]} killed after {moment:.4f} s: the rerun says {result.stderr}"
                )
        self.check(moment)
        if not exists(self.output) or exists(f"{self.output}.partial"):
            raise SystemExit(f"{self.command[0]} killed after {moment:.4f} s: something was left")
        shutil.rmtree(self.output)

    def run(self, num_kills):
        """num_kills kills; a run is finished after one to three of them."""
        while self.num_killed < num_kills:
            for _ in range(self.rng.randint(1, 3)):
                moment = self.kill_once()
                if exists(self.output):
                    break
            self.finish(moment)
        print(
            f"{self.command[0]}: {self.num_killed} kills, {self.num_left_partial} left a work "
            f"directory, one run takes {self.seconds:.3f} s"
        )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("--kills", type=int, default=scaled(50))
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    args = parser.parse_args()
    print(f"seed {args.seed}")
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory(prefix="caravan-kill-") as folder:
        work = pathlib.Path(folder)
        synth(args.program, work / "model")
        convert = ["convert", "--model", work / "model", "--dtype", "float16"]
        KillTest(args.program, work, convert, rng).run(args.kills)
        build = ["build", "--model", work / "model", "--max-input-len", 64, "--max-output-len", 64]
        KillTest(args.program, work, build, rng).run(args.kills // 2)
    return 0


if __name__ == "__main__":
    sys.exit(main())
