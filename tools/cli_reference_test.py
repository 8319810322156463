#!/usr/bin/env python3
"""tools/cli_reference.py renews stale blocks and names commands that have none."""

import os
import pathlib
import tempfile
import unittest

import cli_reference

PROGRAM = """#!/bin/sh
case "$1 $2" in
  "run "*) echo "run: text   "; echo "  --flag" ;;
  "bench --help") printf 'usage\\n\\nSubcommands:\\n  latency  Times\\n' ;;
  "bench latency") echo latency ;;
  "--help "*) printf 'usage\\n\\nSubcommands:\\n  run    Runs\\n  bench   Measures\\n' ;;
esac
"""


class CliReference(unittest.TestCase):
    def refresh(self, document):
        with tempfile.TemporaryDirectory() as folder:
            program = pathlib.Path(folder) / "caravan"
            program.write_text(PROGRAM)
            os.chmod(program, 0o755)
            return cli_reference.refresh(document, str(program))

    def test_stale_block_is_renewed(self):
        stale = "<!-- caravan --help -->\n```text\n```\nbefore\n<!-- caravan run --help -->\n```text\nold\n```\nafter\n"
        renewed, missing = self.refresh(stale)
        self.assertIn("Subcommands:\n  run    Runs\n", renewed)
        self.assertTrue(
            renewed.endswith(
                "before\n<!-- caravan run --help -->\n```text\nrun: text\n  --flag\n```\nafter\n"
            )
        )
        self.assertEqual(missing, ["bench", "bench latency"])

    def test_current_document_is_left_alone(self):
        block = "<!-- caravan run --help -->\n```text\nrun: text\n  --flag\n```\n"
        self.assertEqual(self.refresh(block)[0], block)


if __name__ == "__main__":
    unittest.main()
