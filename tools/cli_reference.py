#!/usr/bin/env python3
"""Keeps docs/cli.md true: each help text in it is what the program prints.

usage: tools/cli_reference.py PROGRAM [--check] [--document FILE]

A line "<!-- caravan COMMAND --help -->" followed by a code block marks a help text; the block is
replaced by the program's own output. --check writes nothing and exits 1 when a block is stale or a
command has no block.
"""

import argparse
import pathlib
import re
import subprocess
import sys

DOCUMENT = pathlib.Path(__file__).resolve().parent.parent / "docs" / "cli.md"
BLOCK = re.compile(r"(<!-- caravan((?: [a-z]+)*) --help -->\n```text\n)(.*?)(```\n)", re.DOTALL)
SUBCOMMAND = re.compile(r"^  ([a-z]+)  ", re.MULTILINE)


def help_text(program, command):
    """What `program COMMAND --help` prints, without blanks at line ends."""
    output = subprocess.run(
        [program, *command.split(), "--help"], check=True, capture_output=True, text=True
    ).stdout
    return "\n".join(line.rstrip() for line in output.strip().splitlines()) + "\n"


def list_commands(program, command=""):
    """`command` and every command below it, as "bench latency"."""
    names = SUBCOMMAND.findall(help_text(program, command).partition("Subcommands:")[2])
    below = [list_commands(program, f"{command} {name}".strip()) for name in names]
    return [command, *(name for names in below for name in names)]


def refresh(document, program):
    """The document with every block renewed, and the commands of the program that have no block."""
    seen = set()

    def renew(match):
        command = match[2].strip()
        seen.add(command)
        return match[1] + help_text(program, command) + match[4]

    renewed = BLOCK.sub(renew, document)
    return renewed, [command for command in list_commands(program) if command not in seen]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--document", type=pathlib.Path, default=DOCUMENT)
    args = parser.parse_args()
    text = args.document.read_text()
    renewed, missing = refresh(text, args.program)
    for command in missing:
        print(f"{args.document}: no block for `caravan {command} --help`")
    if args.check:
        if renewed != text:
            print(f"{args.document} is stale; run tools/cli_reference.py {args.program}")
        return 1 if missing or renewed != text else 0
    args.document.write_text(renewed)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
