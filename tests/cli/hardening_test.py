"""The program and the CUDA plug-in, where there is one, are built hardened: read from the ELF files.

usage: hardening_test.py PROGRAM BUILD_DIR
"""

import pathlib
import re
import subprocess
import sys


def readelf(path, *flags):
    return subprocess.run(["readelf", "-W", *flags, path], check=True, capture_output=True, text=True).stdout


def faults(path):
    """What `path` lacks."""
    headers, dynamic = readelf(path, "-l"), readelf(path, "-d")
    symbols = readelf(path, "--dyn-syms")
    wanted = {
        "position independent": "Type:" in readelf(path, "-h") and re.search(r"Type:\s+DYN", readelf(path, "-h")),
        "no executable stack": re.search(r"GNU_STACK.*\bRW\s", headers),
        "RELRO": "GNU_RELRO" in headers,
        "BIND_NOW": re.search(r"FLAGS.*\b(BIND_NOW|NOW)\b", dynamic) or "(BIND_NOW)" in dynamic,
        "no TEXTREL": "TEXTREL" not in dynamic,
        "stack protector": "__stack_chk_fail" in symbols,
        "fortified functions": re.search(r"__\w+_chk\b(?<!__stack_chk)", symbols.replace("__stack_chk_fail", "")),
        # Landing pads in the code: the mark of the whole file wants start files of the system with it.
        "landing pads": path.read_bytes().count(b"\xf3\x0f\x1e\xfa") > 500,
    }
    return [name for name, is_there in wanted.items() if not is_there]


def main():
    program, build = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    failures = {program.name: faults(program)}
    plugin = build / "libcaravan_cuda.so"
    if plugin.exists():
        failures[plugin.name] = faults(plugin)
    for name, missing in failures.items():
        print(f"{name}: {'hardened' if not missing else 'lacks ' + ', '.join(missing)}")
    return 1 if any(failures.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
