#!/usr/bin/env python3
"""Each rule of tools/check_files.py finds a planted violation and lets clean files pass."""

import os
import pathlib
import subprocess
import tempfile
import unittest

import check_files


class CheckFiles(unittest.TestCase):
    def check(self, files, executables=()):
        with tempfile.TemporaryDirectory() as root:
            subprocess.run(["git", "init", "-q", root], check=True)
            for name, text in files.items():
                path = pathlib.Path(root) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(text.encode())
                os.chmod(path, 0o755 if name in executables else 0o644)
            return check_files.check(root)[0]

    def test_clean_files_pass(self):
        files = {
            "src/core/a.h": "#pragma once\n",
            "run.sh": "#!/bin/bash\n",
            "README.md": "[text](src/core/a.h#part) [web](https://example.org/x)\n",
            "tests/data/README.md": "| `tiny/` | made by hand |\n| `one.txt` | made by hand |\n",
            "tests/data/tiny/deep/a.json": "{}",
            "tests/data/one.txt": "no newline, on purpose",
        }
        self.assertEqual(self.check(files, executables=["run.sh"]), [])

    def test_style_of_text(self):
        files = {
            "a.cc": "int a;  \n\tint b;\n" + "x" * 101 + "\n",
            "b.cc": "\n" * 801,
            "c.py": "a = 1\r\n",
            "d.md": "no newline",
        }
        self.assertEqual(
            self.check(files),
            [
                "a.cc:1: trailing blanks",
                "a.cc:2: tab",
                "a.cc:3: 101 columns, at most 100",
                "b.cc: 801 lines, at most 800",
                "c.py: carriage return",
                "d.md: no newline at the end",
            ],
        )

    def test_unfinished_work(self):
        found = self.check({"a.cc": "// TO" + "DO: later\n", "b.md": "<" * 7 + " ours\n"})
        self.assertEqual(found, ["a.cc:1: unfinished: TO" + "DO", "b.md:1: unfinished: " + "<" * 7])

    def test_unordered_containers_of_strings(self):
        line = "std::unordered_map<std::string, int> a;\n"
        found = self.check(
            {
                "src/core/a.cc": "\n" + line + "unordered_set<std::string_view> b;\n",
                "src/core/a_test.cc": line,
                "src/core/b.cc": "KeyedMap<std::string, int> a;\nstd::unordered_map<int, int> b;\n",
                "tests/c.cc": line,
            }
        )
        self.assertEqual([":".join(each.split(":")[:2]) for each in found],
                         ["src/core/a.cc:2", "src/core/a.cc:3"])

    def test_executable_bit(self):
        found = self.check({"a.sh": "#!/bin/bash\n", "b.md": "text\n"}, executables=["b.md"])
        self.assertEqual([line.split(":")[0] for line in found], ["a.sh", "b.md"])

    def test_dead_link_and_unnamed_data(self):
        found = self.check(
            {
                "README.md": "[gone](docs/gone.md)\n",
                "tests/data/README.md": "`other.json`\n",
                "tests/data/a.json": "{}",
            }
        )
        self.assertEqual(
            found,
            [
                "README.md: link to docs/gone.md, which is not there",
                "tests/data/a.json: tests/data/README.md does not say where it comes from",
            ],
        )


if __name__ == "__main__":
    unittest.main()
