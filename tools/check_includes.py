#!/usr/bin/env python3
"""Checks that every #include goes downward: the ladder of docs/architecture.md, as a table.

usage: tools/check_includes.py [ROOT]

Reports one line for each violation and exits 1 when there is any:
  - a module includes a module that its row of MODULES does not name;
  - a third-party or operating-system header is used outside the modules that THIRD_PARTY names, or
    the files that FILES names;
  - a quoted include is not written from src/, include/ or the root, or names no file;
  - headers include each other in a circle;
  - a header lacks #pragma once.
"""

import pathlib
import re
import sys

# What a module of src/ may include besides itself: modules, or single headers. Tests beside the
# sources (*_test.cc, test_*.h), apps/, bench/ and tests/ may include everything; include/ and
# examples/ only each other and the standard library.
MODULES = {
    "core": [],
    "kernels/cpu": ["core"],
    "kernels/cuda": ["core"],
    "backend": ["core", "kernels/cpu", "kernels/cuda"],
    "ops": ["core", "backend/backend.h"],
    "format": ["core"],
    "tokenizer": ["core"],
    "models": ["core", "ops", "backend/backend.h", "format"],
    "quantize": ["core", "format", "tokenizer", "ops", "backend/backend.h", "models"],
    "convert": ["core", "format"],
    "sampling": ["core"],
    "engine": [
        *("core", "format", "tokenizer", "ops", "models", "sampling"),
        *("backend/backend.h", "backend/create_backend.h"),
    ],
    "eval": [
        *("core", "format", "tokenizer", "ops", "models", "sampling", "engine"),
        *("backend/backend.h", "backend/create_backend.h"),
    ],
    "server": ["core", "format", "tokenizer", "sampling", "engine"],
}

# Headers whose own includes are narrower than their module's: the interface must not pull in what
# it hides.
HEADERS = {
    "backend/backend.h": ["core"],
    "backend/create_backend.h": ["core", "backend/backend.h"],
}

# Where a module uses a library in a few files only: prefix of the header -> those files of src/.
FILES = {
    "boost/asio": [
        *("server/http_connection.h", "server/http_connection.cc", "server/http_listener.h"),
        *("server/http_listener.cc", "server/http_server.cc"),
    ],
}

# First part of the path of a third-party or system header -> who may include it. "*" is everyone;
# "tests" is every test, fuzz target and bench.
THIRD_PARTY = {
    "fmt": ["*"],
    "boost/json": ["core"],
    "boost/asio": ["server", "apps"],
    "boost/beast": ["apps"],
    "CLI": ["apps", "tests"],
    "xxhash.h": ["format", "convert"],
    "xxh_x86dispatch.h": ["format"],
    "snappy.h": ["format"],
    "zlib.h": ["core", "format", "tests"],
    "zstd.h": ["format"],
    "omp.h": ["core", "kernels/cpu", "backend", "tests"],
    "dlfcn.h": ["backend", "kernels/cuda", "tests"],
    # CUDA toolkit
    "cublasLt.h": ["kernels/cuda", "tests"],
    "cuda.h": ["kernels/cuda", "tests"],
    "cuda_bf16.h": ["kernels/cuda", "tests"],
    "cuda_fp16.h": ["kernels/cuda", "tests"],
    "cuda_runtime.h": ["backend", "kernels/cuda", "tests"],
    "immintrin.h": ["core", "kernels/cpu"],
    "emmintrin.h": ["kernels/cpu"],
    "cpuid.h": ["kernels/cpu"],
    "gtest": ["tests"],
    "gmock": ["tests"],
    # Linux
    "arpa": ["server", "tests"],
    "dirent.h": ["core", "convert"],
    "fcntl.h": ["core", "convert", "tests"],
    "malloc.h": ["server", "tests"],
    "netinet": ["server", "tests"],
    "poll.h": ["core"],
    "sched.h": ["core", "kernels/cpu"],
    "sys": ["backend", "core", "kernels/cpu", "convert", "server", "apps", "tests"],
    "unistd.h": ["core", "kernels/cpu", "convert", "server", "apps", "tests"],
}

STANDARD = set(
    """algorithm any array atomic barrier bit bitset cassert cctype cerrno cfenv cfloat charconv
    chrono cinttypes climits clocale cmath codecvt compare complex concepts condition_variable
    coroutine csetjmp csignal cstdarg cstddef cstdint cstdio cstdlib cstring ctime cuchar cwchar
    cwctype deque exception execution filesystem format forward_list fstream functional future
    initializer_list iomanip ios iosfwd iostream istream iterator latch limits list locale map
    memory memory_resource mutex new numbers numeric optional ostream queue random ranges ratio
    regex scoped_allocator semaphore set shared_mutex source_location span sstream stack stdexcept
    stop_token streambuf string string_view strstream syncstream system_error thread tuple
    type_traits typeindex typeinfo unordered_map unordered_set utility valarray variant vector
    version""".split()
)

INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*([<"])([^>"]+)[>"]', re.MULTILINE)
SUFFIXES = (".h", ".inl", ".inc", ".cc", ".cu", ".cuh")


class Tree:
    """The C++ files below `root`, by path relative to it."""

    def __init__(self, root):
        self.root = pathlib.Path(root)
        self.texts = {}
        for top in ("src", "include", "apps", "bench", "tests", "examples"):
            for path in sorted((self.root / top).rglob("*")):
                if path.suffix in SUFFIXES and path.is_file():
                    self.texts[path.relative_to(self.root).as_posix()] = path.read_text()

    def includes(self, path):
        """(line number, is_quoted, target) of every #include of one file."""
        text = self.texts[path]
        for match in INCLUDE.finditer(text):
            yield text.count("\n", 0, match.start()) + 1, match[1] == '"', match[2]

    def resolve(self, target):
        """The file that a quoted include names, or None."""
        for folder in ("src/", "include/", ""):
            if folder + target in self.texts:
                return folder + target
        return None


def module_of(path):
    """"core", "kernels/cpu", ... for files of src/; else "public", "apps", "tests" or "examples"."""
    name = path.rsplit("/", 1)[-1]
    if path.startswith(("tests/", "bench/")) or name.endswith("_test.cc") or name.startswith("test_"):
        return "tests"
    if path.startswith("include/"):
        return "public"
    if path.startswith(("apps/", "examples/")):
        return path.split("/", 1)[0]
    inner = path.removeprefix("src/")
    for module in sorted(MODULES, key=len, reverse=True):
        if inner.startswith(module + "/"):
            return module
    return inner.rsplit("/", 1)[0]


def is_allowed(path, target):
    """Whether `path` may include the project's file `target`."""
    source, module = module_of(path), module_of(target)
    if source == "tests":
        return True
    if module in ("tests", "apps", "examples"):
        return source == module
    if module == "public" or source == "apps":
        return True
    if source in ("public", "examples"):
        return False
    inner = path.removeprefix("src/")
    allowed = HEADERS.get(inner, [source] + MODULES.get(source, []))
    return module in allowed or target.removeprefix("src/") in allowed


def third_party_users(target):
    """The row of THIRD_PARTY for a header, or None when there is none."""
    for prefix, users in THIRD_PARTY.items():
        if target == prefix or target.startswith((prefix + "/", prefix + ".")):
            return users
    return None


def is_file_allowed(path, target):
    """Whether this file of src/ may include a header that FILES keeps to a few."""
    for prefix, files in FILES.items():
        if target.startswith(prefix + "/") or target.startswith(prefix + "."):
            return path.removeprefix("src/") in files or module_of(path) == "tests"
    return True


def check_ladder(tree):
    for path in tree.texts:
        source = module_of(path)
        if path.startswith("src/") and source != "tests" and source not in MODULES:
            yield f"{path}: module {source} has no row in tools/check_includes.py"
            continue
        for line, is_quoted, target in tree.includes(path):
            where = f"{path}:{line}"
            if is_quoted:
                resolved = tree.resolve(target)
                if resolved is None:
                    yield f'{where}: "{target}" is no file below src/, include/ or the root'
                elif not is_allowed(path, resolved):
                    yield f'{where}: {source} must not include "{target}"'
            elif target in STANDARD:
                continue
            elif source in ("public", "examples"):
                yield f"{where}: {source} uses the standard library and caravan/ only, not <{target}>"
            else:
                users = third_party_users(target)
                if users is None:
                    yield f"{where}: <{target}> has no row in tools/check_includes.py"
                elif "*" not in users and source not in users:
                    yield f"{where}: {source} must not include <{target}>, only {', '.join(users)}"
                elif path.startswith("src/") and not is_file_allowed(path, target):
                    yield f"{where}: <{target}> belongs into the files that FILES names"


def check_circles(tree):
    """Depth-first over the include graph; one line for each edge that closes a circle."""
    done, stack = set(), []

    def visit(path):
        if path in stack:
            yield f"{path}: included in a circle: {' -> '.join(stack[stack.index(path):] + [path])}"
            return
        if path in done:
            return
        stack.append(path)
        for _, is_quoted, target in tree.includes(path):
            resolved = tree.resolve(target) if is_quoted else None
            if resolved:
                yield from visit(resolved)
        stack.pop()
        done.add(path)

    for path in tree.texts:
        yield from visit(path)


def check_guards(tree):
    for path, text in tree.texts.items():
        if path.endswith((".h", ".cuh")) and not text.startswith("#pragma once\n"):
            yield f"{path}: the first line is not #pragma once"


def check(root):
    tree = Tree(root)
    return [*check_ladder(tree), *check_circles(tree), *check_guards(tree)]


def main():
    root = sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).resolve().parent.parent
    violations = check(root)
    for violation in violations:
        print(violation)
    if not violations:
        print(f"includes: {len(Tree(root).texts)} files, no violation")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
