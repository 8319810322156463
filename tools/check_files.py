#!/usr/bin/env python3
"""Checks what no compiler checks about the files that git tracks (or would track).

usage: tools/check_files.py [ROOT]

Reports one line for each finding and exits 1 when there is any:
  - the tree is larger than MAX_TREE_BYTES;
  - a source file is longer than MAX_LINES, or a line of C++ longer than MAX_COLUMNS;
  - in src/ and apps/ an unordered container of strings without KeyedHash: whoever chooses the keys
    can make them collide;
  - text with carriage returns, trailing blanks, no newline at its end, or tabs in code;
  - a marker of unfinished work or of an unresolved merge;
  - a script that starts with #! but is not executable, or the reverse;
  - a relative link in a Markdown file that leads nowhere;
  - a file below tests/data/ or tests/goldens/ that the README.md there does not name: each has a row
    with its origin and licence.
"""

import os
import pathlib
import re
import subprocess
import sys

MAX_TREE_BYTES = 45_000_000
MAX_LINES = 800
MAX_COLUMNS = 100

CODE_SUFFIXES = (".h", ".inl", ".cc", ".cu", ".cuh", ".py", ".sh", ".cmake")
CPP_SUFFIXES = (".h", ".inl", ".cc", ".cu", ".cuh")
TEXT_SUFFIXES = CODE_SUFFIXES + (".md", ".txt", ".yml", ".yaml")

# Split, so that this file does not find itself.
UNFINISHED = re.compile(r"\b(" + "TO" + "DO|FIX" + "ME|X" + r"XX)\b|^(<{7}|>{7}) ", re.MULTILINE)
UNKEYED = re.compile(r"\bunordered_(?:multi)?(?:map|set)<\s*std::string(?:_view)?\s*[,>]")
LINK = re.compile(r"\]\(([^)#\s]+)(#[^)\s]*)?\)")
DATA_FOLDERS = ("tests/data/", "tests/goldens/")


def list_files(root):
    """Paths relative to root: tracked, or untracked and not ignored."""
    output = subprocess.run(
        ["git", "-C", root, "-c", "safe.directory=*", "ls-files", "-z", "-co", "--exclude-standard"],
        check=True,
        capture_output=True,
    ).stdout
    names = sorted(set(output.decode().split("\0")) - {""})
    return [name for name in names if os.path.isfile(os.path.join(root, name))]


def is_text(name):
    return name.endswith(TEXT_SUFFIXES) or name == ".ci/run"


def check_text(name, text):
    is_data = name.startswith((*DATA_FOLDERS, "models/")) and not name.endswith("README.md")
    if not is_data:
        if "\r" in text:
            yield f"{name}: carriage return"
        if text and not text.endswith("\n"):
            yield f"{name}: no newline at the end"
        match = UNFINISHED.search(text)
        if match:
            yield f"{name}:{text.count(chr(10), 0, match.start()) + 1}: unfinished: {match[0].strip()}"
    if not name.endswith(CODE_SUFFIXES) or is_data:
        return
    if name.endswith(CPP_SUFFIXES) and name.startswith(("src/", "apps/")) and "_test." not in name:
        for match in UNKEYED.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            yield f"{name}:{line}: {match[0]}...>: use KeyedMap or KeyedSet of core/keyed_hash.h"
    lines = text.splitlines()
    if len(lines) > MAX_LINES:
        yield f"{name}: {len(lines)} lines, at most {MAX_LINES}"
    for number, line in enumerate(lines, 1):
        if line != line.rstrip():
            yield f"{name}:{number}: trailing blanks"
        if "\t" in line:
            yield f"{name}:{number}: tab"
        if name.endswith(CPP_SUFFIXES) and len(line) > MAX_COLUMNS and "http" not in line:
            yield f"{name}:{number}: {len(line)} columns, at most {MAX_COLUMNS}"


def check_links(root, name, text):
    for match in LINK.finditer(text):
        target = match[1]
        if "://" in target or target.startswith("mailto:"):
            continue
        if not (root / name).parent.joinpath(target).exists():
            yield f"{name}: link to {target}, which is not there"


def check_data_readme(root, names, folder):
    """A file counts as named when its path below `folder`, or a folder above it, is in the README."""
    data = [name.removeprefix(folder) for name in names if name.startswith(folder)]
    if not data:
        return
    readme = root / folder / "README.md"
    named = readme.read_text() if readme.exists() else ""
    for name in data:
        parents = [parent.as_posix() + "/" for parent in pathlib.PurePosixPath(name).parents][:-1]
        if name != "README.md" and not any(f"`{known}`" in named for known in [name, *parents]):
            yield f"{folder}{name}: {folder}README.md does not say where it comes from"


def check(root):
    root = pathlib.Path(root)
    names = list_files(root)
    findings = []
    num_bytes = sum((root / name).lstat().st_size for name in names)
    if num_bytes > MAX_TREE_BYTES:
        findings.append(f"the tree has {num_bytes} bytes, at most {MAX_TREE_BYTES}")
    for name in names:
        with open(root / name, "rb") as file:
            starts_with_interpreter = file.read(2) == b"#!"
        if starts_with_interpreter != os.access(root / name, os.X_OK):
            findings.append(f"{name}: executable files start with #!, and only they do")
        if is_text(name):
            text = (root / name).read_bytes().decode("utf-8")
            findings += check_text(name, text)
            if name.endswith(".md"):
                findings += check_links(root, name, text)
    for folder in DATA_FOLDERS:
        findings += check_data_readme(root, names, folder)
    return findings, len(names), num_bytes


def main():
    root = sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).resolve().parent.parent
    findings, num_files, num_bytes = check(root)
    for finding in findings:
        print(finding)
    if not findings:
        print(f"files: {num_files} files, {num_bytes} bytes, no finding")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
