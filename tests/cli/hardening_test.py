"""The program and the CUDA plug-in, where there is one, are built hardened: read from the ELF files.

usage: hardening_test.py PROGRAM BUILD_DIR
"""

import pathlib
import re
import subprocess
import sys


def readelf(path, *flags):
    return subprocess.run(["readelf", "-W", *flags, path], check=True, capture_output=True, text=True).stdout


def faults(path, is_program):
    """What `path` lacks."""
    headers, dynamic = readelf(path, "-l"), readelf(path, "-d")
    symbols, notes = readelf(path, "--dyn-syms"), readelf(path, "-n")
    wanted = {
        "position independent": "Type:" in readelf(path, "-h") and re.search(r"Type:\s+DYN", readelf(path, "-h")),
        "no executable stack": re.search(r"GNU_STACK.*\bRW\s", headers),
        "RELRO": "GNU_RELRO" in headers,
        "BIND_NOW": re.search(r"FLAGS.*\b(BIND_NOW|NOW)\b", dynamic) or "(BIND_NOW)" in dynamic,
        "no TEXTREL": "TEXTREL" not in dynamic,
        "stack protector": "__stack_chk_fail" in symbols,
        "fortified functions": re.search(r"__\w+_chk\b(?<!__stack_chk)", symbols.replace("__stack_chk_fail", "")),
        # Branch protection is a property of the whole file: one object without it takes it away. The
        # plug-in holds objects of CUDA's own library.
        "IBT and SHSTK": not is_program or ("IBT" in notes and "SHSTK" in notes),
    }
    return [name for name, is_there in wanted.items() if not is_there]


def main():
    program, build = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    failures = {program.name: faults(program, True)}
    plugin = build / "libcaravan_cuda.so"
    if plugin.exists():
        failures[plugin.name] = faults(plugin, False)
    for name, missing in failures.items():
        print(f"{name}: {'hardened' if not missing else 'lacks ' + ', '.join(missing)}")
    return 1 if any(failures.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
