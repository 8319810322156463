#!/usr/bin/env python3
"""Each rule of tools/check_includes.py finds a planted violation and lets clean code pass."""

import pathlib
import tempfile
import unittest

import check_includes


class CheckIncludes(unittest.TestCase):
    def check(self, files):
        with tempfile.TemporaryDirectory() as root:
            for name, text in files.items():
                path = pathlib.Path(root) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
            return check_includes.check(root)

    def test_clean_code_passes(self):
        files = {
            "src/core/error.h": "#pragma once\n#include <fmt/core.h>\n#include <string>\n",
            "src/backend/backend.h": '#pragma once\n#include "core/error.h"\n',
            "src/models/gpt2.cc": '#include "backend/backend.h"\n#include "core/error.h"\n',
            "src/models/gpt2_test.cc": '#include <gtest/gtest.h>\n#include "backend/cpu_backend.h"\n',
            "src/backend/cpu_backend.h": "#pragma once\n",
            "apps/main.cc": '#include <CLI/CLI.hpp>\n#include "core/error.h"\n',
        }
        self.assertEqual(self.check(files), [])

    def test_upward_include(self):
        found = self.check(
            {"src/engine/engine.h": "#pragma once\n", "src/core/a.cc": '\n#include "engine/engine.h"\n'}
        )
        self.assertEqual(found, ['src/core/a.cc:2: core must not include "engine/engine.h"'])

    def test_only_the_backends_interface_is_open_to_models(self):
        found = self.check(
            {
                "src/backend/cpu_backend.h": "#pragma once\n",
                "src/models/gpt2.cc": '#include "backend/cpu_backend.h"\n',
            }
        )
        self.assertEqual(found, ['src/models/gpt2.cc:1: models must not include "backend/cpu_backend.h"'])

    def test_backends_interface_hides_the_kernels(self):
        found = self.check(
            {
                "src/kernels/cpu/k.h": "#pragma once\n",
                "src/backend/backend.h": '#pragma once\n#include "kernels/cpu/k.h"\n',
                "src/backend/cpu_backend.cc": '#include "kernels/cpu/k.h"\n',
            }
        )
        self.assertEqual(found, ['src/backend/backend.h:2: backend must not include "kernels/cpu/k.h"'])

    def test_third_party_header_in_the_wrong_module(self):
        found = self.check({"src/ops/a.cc": "#include <boost/json.hpp>\n"})
        self.assertEqual(found, ["src/ops/a.cc:1: ops must not include <boost/json.hpp>, only core"])

    def test_unknown_third_party_header(self):
        found = self.check({"src/core/a.cc": "#include <absl/strings/str_cat.h>\n"})
        self.assertEqual(
            found, ["src/core/a.cc:1: <absl/strings/str_cat.h> has no row in tools/check_includes.py"]
        )

    def test_public_api_and_examples_stand_alone(self):
        found = self.check(
            {
                "src/core/error.h": "#pragma once\n",
                "include/caravan/llm.h": "#pragma once\n#include <fmt/core.h>\n#include <vector>\n",
                "examples/generate.cc": '#include "caravan/llm.h"\n#include "core/error.h"\n',
            }
        )
        self.assertEqual(
            found,
            [
                "include/caravan/llm.h:2: public uses the standard library and caravan/ only, "
                "not <fmt/core.h>",
                'examples/generate.cc:2: examples must not include "core/error.h"',
            ],
        )

    def test_circle(self):
        found = self.check(
            {
                "src/core/a.h": '#pragma once\n#include "core/b.h"\n',
                "src/core/b.h": '#pragma once\n#include "core/a.h"\n',
            }
        )
        self.assertEqual(
            found, ["src/core/a.h: included in a circle: src/core/a.h -> src/core/b.h -> src/core/a.h"]
        )

    def test_missing_file_missing_guard_and_unknown_module(self):
        found = self.check({"src/core/a.h": '#include "nowhere.h"\n', "src/strange/a.cc": "\n"})
        self.assertEqual(
            found,
            [
                'src/core/a.h:1: "nowhere.h" is no file below src/, include/ or the root',
                "src/strange/a.cc: module strange has no row in tools/check_includes.py",
                "src/core/a.h: the first line is not #pragma once",
            ],
        )


if __name__ == "__main__":
    unittest.main()
