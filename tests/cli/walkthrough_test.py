#!/usr/bin/env python3
"""Runs the commands of docs/walkthroughs.md as a reader would, on models that are there.

usage: walkthrough_test.py PROGRAM SOURCE_DIR NAME [MODEL_DIR]

NAME: gpt2 or camel. MODEL_DIR stands for the model of the walkthrough; models/camel-nano when it is
not given. Flags come from the environment as for a reader: CARAVAN_DEVICE=cuda CARAVAN_TARGET=sm_90
runs it on a GPU. Steps that need transformers are left out.

The last step's check of the accuracy must end as its ROUGE-1 says, and the same predictions must fail
with a threshold just above it and pass with one just below.
"""

import os
import pathlib
import re
import subprocess
import sys
import tempfile

STEPS = ("convert", "build", "run", "summarize")
BLOCK = re.compile(r"<!-- walkthrough: (\S+) (\S+)( \(needs [^)]*\))? -->\n```bash\n(.*?)```\n", re.DOTALL)
THRESHOLD = "--tensorrt_llm_rouge1_threshold=14"
# Shorter than a reader's run: what the flags' defaults are does not matter to whether it works.
QUICK = {"CARAVAN_MAX_ITE": "12", "CARAVAN_OUTPUT_LEN": "48", "CARAVAN_CALIB_SIZE": "8",
         "CARAVAN_CALIB_MAX_LEN": "64"}


def fail(message):
    raise SystemExit(f"walkthrough_test: {message}")


def read_steps(document, name):
    """{step: commands} of one walkthrough."""
    steps = {}
    for walkthrough, step, needs, commands in BLOCK.findall(document):
        if walkthrough == name and not needs:
            steps[step] = commands
    if tuple(steps) != STEPS:
        fail(f"{name}: steps {tuple(steps)}, expected {STEPS}")
    return steps


class Reader:
    """A shell in an empty folder, with the variables that the page asks for."""

    def __init__(self, program, source, model, folder):
        self.folder = folder
        self.statuses = []
        self.environment = {
            **QUICK, **os.environ,
            "PATH": f"{pathlib.Path(program).parent}:{os.environ['PATH']}",
            "GPT2": str(model), "CAMEL": str(model),
            "DATA": str(source / "tests" / "data" / "summarization" / "articles.jsonl"),
            "TEXT": str(source / "docs" / "architecture.md"),
        }

    def paste(self, commands, status=0):
        """stdout of the commands, which must end with this status (None: whichever, see statuses)."""
        result = subprocess.run(["bash", "-euo", "pipefail", "-c", commands], cwd=self.folder,
                                env=self.environment, capture_output=True, text=True, check=False)
        print(f"$ {commands}{result.stderr}{result.stdout}", flush=True)
        self.statuses.append(result.returncode)
        if status is not None and result.returncode != status:
            fail(f"exit status {result.returncode}, expected {status}")
        return result.stdout


def verdict(report, threshold):
    """ROUGE-1 of a report, whose last line must judge it rightly."""
    match = re.search(r"^(PASS|FAIL): rouge1 (\d+\.\d+), must be above ", report, re.MULTILINE)
    if not match or (match[1] == "PASS") != (float(match[2]) > threshold):
        fail(f"no line that judges ROUGE-1 against {threshold}")
    return float(match[2])


def follow(reader, steps):
    reader.paste(steps["convert"])
    reader.paste(steps["build"])
    if not reader.paste(steps["run"]).strip():
        fail("run wrote no text")
    if THRESHOLD not in steps["summarize"]:
        fail(f"summarize lacks {THRESHOLD}")
    report = reader.paste(steps["summarize"], status=None)
    rouge1 = verdict(report, 14)
    if not re.search(r"^rougeLsum +\d", report, re.MULTILINE):
        fail("no table")
    # The same predictions, thresholds on either side of what they reach.
    for threshold in (rouge1 + 0.001, rouge1 - 0.001):
        flag = THRESHOLD.replace("14", repr(threshold))
        commands = steps["summarize"].rstrip().replace(THRESHOLD, flag) + " --resume\n"
        if verdict(reader.paste(commands, status=None), threshold) != rouge1:
            fail("the continued file has another ROUGE-1")
    if reader.statuses[-2:] != [1, 0]:
        fail(f"exit statuses {reader.statuses[-2:]} above and below ROUGE-1, expected 1 and 0")
    if reader.statuses[-3] != (0 if rouge1 > 14 else 1):
        fail(f"exit status {reader.statuses[-3]} of a check of {rouge1} at 14")


def main():
    if len(sys.argv) not in (4, 5):
        fail("usage: walkthrough_test.py PROGRAM SOURCE_DIR NAME [MODEL_DIR]")
    program, source, name = sys.argv[1], pathlib.Path(sys.argv[2]).resolve(), sys.argv[3]
    model = pathlib.Path(sys.argv[4] if len(sys.argv) > 4 else source / "models" / "camel-nano")
    steps = read_steps((source / "docs" / "walkthroughs.md").read_text(encoding="utf-8"), name)
    with tempfile.TemporaryDirectory(dir=os.environ.get("WALKTHROUGH_DIR")) as folder:
        follow(Reader(os.path.abspath(program), source, model.resolve(), folder), steps)


if __name__ == "__main__":
    main()
