#!/usr/bin/env python3
"""Prints the end of what each failed test of ctest's JUnit files printed.

usage: tools/failed_tests.py FILE.xml...
"""

import pathlib
import sys
import xml.etree.ElementTree

MAX_LINES = 40  # of one test


def interesting(lines):
    """The last lines, with the failures that GoogleTest reported further up."""
    tail = lines[-MAX_LINES:]
    marks = ("Failure", "[  FAILED  ]", "ERROR: ", "runtime error:", "Error:")
    head = [line for line in lines[:-MAX_LINES] if any(mark in line for mark in marks)]
    return head[:MAX_LINES] + tail


def main():
    for path in map(pathlib.Path, sys.argv[1:]):
        if not path.is_file():
            continue
        for case in xml.etree.ElementTree.parse(path).getroot().iter("testcase"):
            if case.get("status") != "fail":
                continue
            output = case.findtext("system-out") or ""
            print(f"== {path.stem}: {case.get('name')}")
            print("\n".join(interesting(output.splitlines())))


if __name__ == "__main__":
    main()
