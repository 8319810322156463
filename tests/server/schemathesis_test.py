#!/usr/bin/env python3
"""schemathesis makes requests from /openapi.json, right ones and wrong ones, and checks that the
server answers as that document says: no 5xx, no wrong request accepted, statuses, content types and
bodies as described, keys asked for.

usage: schemathesis_test.py PROGRAM SOURCE_DIR
Runs in the environment that tools/install_dependencies.sh makes at SOURCE_DIR/.venv.
"""

import pathlib
import re
import subprocess
import sys
import tempfile

from server_tools import Server, enter_environment

KEY = "test-key-2"
CANARY = {"prompt": "The sea", "max_tokens": 12, "temperature": 0}
MIN_CASES = 300

# What one field means for another cannot be said in the schema: best_of below n, top_logprobs
# without logprobs, a user without a content. Such requests are answered with 400 although the
# schema allows them.
CONFIG = "".join(
    f'[[operations]]\ninclude-name = "POST {path}"\n'
    "checks.positive_data_acceptance.enabled = false\n"
    for path in ("/v1/completions", "/v1/chat/completions", "/tokenize")
)


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    enter_environment(sys.argv[2])
    program, source = sys.argv[1], pathlib.Path(sys.argv[2])
    tool = pathlib.Path(sys.executable).parent / "schemathesis"
    # A short context keeps answers short.
    flags = ["--api-key", KEY, "--max-model-len", 64, "--no-request-log"]
    failures = []
    with tempfile.TemporaryDirectory() as directory, Server(
        program, source / "models" / "camel-nano", *flags
    ) as server:
        headers = {"Authorization": f"Bearer {KEY}"}

        def canary():
            return re.sub(rb'"id":.*?"choices"', b"", server.request(
                "POST", "/v1/completions", CANARY, headers)[2].split(b'"usage"')[0])

        before = canary()
        config = pathlib.Path(directory) / "schemathesis.toml"
        config.write_text(CONFIG)
        result = subprocess.run(
            [tool, "--config-file", config, "run", server.url + "/openapi.json",
             "--header", f"Authorization: Bearer {KEY}", "--max-examples", "12",
             "--phases", "coverage,fuzzing", "--generation-deterministic", "--workers", "2",
             "--request-timeout", "30", "--no-color"],
            capture_output=True, text=True, cwd=directory, timeout=500, check=False,
        )
        if result.returncode != 0:
            failures.append(f"exit {result.returncode}:\n{result.stdout}\n{result.stderr}")
        tested = re.search(r"Tested: (\d+)", result.stdout)
        cases = re.search(r"(\d+) generated", result.stdout)
        if not tested or int(tested[1]) < 16:
            failures.append(f"not all operations were tested:\n{result.stdout[-2000:]}")
        if not cases or int(cases[1]) < MIN_CASES:
            failures.append(f"fewer than {MIN_CASES} requests:\n{result.stdout[-2000:]}")
        if canary() != before or b'"text"' not in before:
            failures.append(f"the canary changed from {before} to {canary()}")
    if server.process.returncode != 0:
        failures.append(f"exit status of the server {server.process.returncode}: {server.log}")
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
