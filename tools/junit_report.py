#!/usr/bin/env python3
"""What ctest's JUnit files say: how many tests passed, what failed tests printed last, what was skipped.

usage: tools/junit_report.py --counts|--failed|--skipped FILE.xml...
--counts prints "PASSED FAILED SKIPPED". A GoogleTest program is one test of ctest; the cases that it
skips are listed by --skipped and not counted.
"""

import pathlib
import re
import sys
import xml.etree.ElementTree

MAX_LINES = 40  # of one test


def interesting(lines):
    """The last lines, with the failures that GoogleTest reported further up."""
    tail = lines[-MAX_LINES:]
    marks = ("Failure", "[  FAILED  ]", "ERROR: ", "WARNING: ThreadSanitizer", "runtime error:", "Error:")
    head = [line for line in lines[:-MAX_LINES] if any(mark in line for mark in marks)]
    return head[:MAX_LINES] + tail


def skipped_cases(lines):
    """GoogleTest prints the reason of a case right before its mark."""
    for i, line in enumerate(lines):
        case = re.match(r"\[  SKIPPED \] (\S+) \(", line)
        if case:
            yield case[1], next((line for line in reversed(lines[:i]) if line.strip()), "")


def main():
    mode, counts = sys.argv[1], {"run": 0, "fail": 0, "notrun": 0}
    for path in map(pathlib.Path, sys.argv[2:]):
        if not path.is_file():
            continue
        for case in xml.etree.ElementTree.parse(path).getroot().iter("testcase"):
            status, name = case.get("status"), f"{path.stem}: {case.get('name')}"
            # A test without its program is "notrun" like one that says 77, but not for that reason.
            is_skipped = status == "notrun" and "SKIP_RETURN_CODE" in str(case.find("skipped").attrib)
            counts["notrun" if is_skipped else "run" if status == "run" else "fail"] += 1
            lines = (case.findtext("system-out") or "").splitlines()
            if mode == "--failed" and status != "run" and not is_skipped:
                print(f"== {name}")
                print("\n".join(interesting(lines)))
            elif mode == "--skipped" and is_skipped:
                print(f"skipped: {name}: {lines[-1] if lines else 'no reason given'}")
            elif mode == "--skipped":
                for skipped, reason in skipped_cases(lines):
                    print(f"skipped: {name}: {skipped}: {reason}")
    if mode == "--counts":
        print(counts["run"], counts["fail"], counts["notrun"])
    return 0 if sum(counts.values()) > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
