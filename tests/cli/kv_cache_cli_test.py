#!/usr/bin/env python3
"""int8 and fp8 KV caches as users reach them: calibrate, convert, build --verify, plan, run.

usage: kv_cache_cli_test.py PROGRAM SOURCE_DIR
"""

import json
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

from cli_tools import Checker, digests, exists, run, run_or_die


def write_text(source, work):
    """Plain text and the same as JSON lines."""
    text = (source / "tests/data/wikitext-2-raw/wiki.test.raw").read_text()[:16000]
    (work / "plain.txt").write_text(text)
    lines = [line for line in text.splitlines() if len(line) > 100]
    (work / "lines.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))


def caravan_object(directory):
    return json.loads((directory / "config.json").read_text())["caravan"]


def test_refusals(check, model, work):
    out = work / "refused"
    convert = ["convert", "--model", model, "--output", out]
    build = ["build", "--model", model, "--output", out]
    check.refuses(64, "got no FILE", *convert, "--calibrate-kv-cache")
    check.refuses(64, "got no FILE", *convert, "-kv")
    check.refuses(66, "nowhere", *convert, "--calibrate-kv-cache", work / "nowhere")
    calibrate = [*convert, "--calibrate-kv-cache", work / "plain.txt"]
    check.refuses(64, "--kv-calib-method", *calibrate, "--kv-calib-method", "best")
    check.refuses(64, "--kv-calib-percentile", *calibrate, "--kv-calib-percentile", "0")
    check.refuses(64, "--kv-scale-granularity", *calibrate, "--kv-scale-granularity", "tensor")
    check.refuses(64, "int8 or fp8", *calibrate, "--kv-cache-dtype", "float16")
    (work / "empty").write_text("")
    check.refuses(64, "no text in it", *convert, "--calibrate-kv-cache", work / "empty")
    (work / "bad.jsonl").write_text('{"txt": 1}\n')
    check.refuses(65, "line 1", *convert, "--calibrate-kv-cache", work / "bad.jsonl")
    for flags in (["--kv-cache-dtype", "int8"], ["--int8_kv_cache"]):
        check.refuses(64, "add --calibrate-kv-cache FILE", *build, *flags)
    check.refuses(64, "one of the two", *build, "--int8_kv_cache", "--kv-cache-dtype", "fp8")
    check.refuses(64, "expected auto, float32", *build, "--kv-cache-dtype", "int4")
    check.refuses(64, "--calibrate-kv-cache FILE", "run", "-m", model, "--prompt", "A",
                  "--kv-cache-dtype", "int8")
    check.expect(not exists(out) and not exists(f"{out}.partial"), "a refusal left files")


def test_pipeline(check, model, work):
    """Spellings of 2023 and ours, directories, runs."""
    calib = ["--calib-size", "4", "--calib-max-len", "256"]
    c1, c2 = work / "c1", work / "c2"
    run_or_die(check.program, "convert", "-m", model, "-o", c1,
               "--calibrate-kv-cache", work / "plain.txt", *calib)
    run_or_die(check.program, "convert", "-i", model, "-o", c2, "-kv", work / "plain.txt", *calib)
    check.expect(digests(c1) == digests(c2), "-kv FILE and --calibrate-kv-cache FILE differ")
    record = caravan_object(c1)["kv_calibration"]
    wanted = {"dtype": "int8", "granularity": "head", "method": "absmax", "is_centered": True,
              "num_samples": 4, "longest_sample": 256, "num_tokens": 1024}
    check.expect({k: record.get(k) for k in wanted} == wanted, f"record: {record}")
    sizes = ["--max-batch-size", "2", "--max-input-len", "100", "--max-output-len", "28"]
    e1, e2 = work / "e1", work / "e2"
    run_or_die(check.program, "build", "-m", c1, "-o", e1, "--int8_kv_cache", "--verify", *sizes)
    certificate = caravan_object(e1)["certificate"]
    check.expect(0 < certificate["kl_mean"] < 0.1, f"certificate: {certificate}")
    check.expect(caravan_object(e1)["kv_calibration"] == record, "the engine's record differs")
    run_or_die(check.program, "build", "-m", model, "-o", e2, "--kv-cache-dtype", "fp8",
               "--calibrate-kv-cache", work / "lines.jsonl", "--kv-calib-method", "mse",
               "--verify", *calib, *sizes)
    record = caravan_object(e2)["kv_calibration"]
    check.expect(record["dtype"] == "float8_e4m3fn" and record["method"] == "mse", f"{record}")
    texts = []
    for directory, flags in ((e1, []), (e2, []), (c1, ["--kv-cache-dtype", "int8"]),
                             (c1, ["--kv-cache-dtype", "fp8_e4m3"]), (e1, ["--cpu-isa", "avx2"])):
        result = run(check.program, "run", "-m", directory, "--prompt", "The sea was", "-n", "8",
                     "--json", *flags)
        check.expect(result.returncode == 0, f"{directory} {flags}: {result.stderr}")
        texts.append(json.loads(result.stdout or "{}").get("output_ids"))
    check.expect(texts[0] == texts[2] == texts[4], f"engine, checkpoint, AVX2: {texts}")
    # Scale 1 of an uncalibrated model is allowed for fp8, with one warning.
    result = run(check.program, "run", "-m", model, "--prompt", "The sea was", "-n", "2",
                 "--kv-cache-dtype", "fp8")
    check.expect(result.returncode == 0 and result.stderr.count("warning") == 1, result.stderr)


def test_plan(check, model, work):
    """Half the bytes, and what calibration holds."""
    sizes = ["--max-batch-size", "2", "--max-input-len", "100", "--max-output-len", "28"]
    plan = ["plan", "-m", model, "--json", *sizes]
    wide = check.json(*plan)
    for dtype in ("int8", "fp8"):
        narrow = check.json(*plan, "--kv-cache-dtype", dtype)
        scales = 2 * 8 * 3 * 4
        check.expect(narrow["kv_scale_bytes"] == scales, f"{narrow}")
        check.expect(narrow["kv_bytes"] == wide["kv_bytes"] // 2 + scales, f"{dtype}: {narrow}")
    check.expect("calibration" not in wide, "calibration was not asked for")
    got = check.json(*plan, "--kv-cache-dtype", "int8", "--calibrate-kv-cache", work / "plain.txt",
                     "--calib-size", "4", "--calib-max-len", "256")["calibration"]
    check.expect(got["states_bytes"] == 4 * 256 * 192 * 4, f"{got}")
    check.expect(got["total_bytes"] == sum(v for k, v in got.items()
                                           if k.endswith("_bytes") and k != "total_bytes"), f"{got}")


def test_killed(check, model, work):
    """A calibration that is killed leaves no output and nothing half-written."""
    out = work / "killed"
    process = subprocess.Popen(
        [check.program, "convert", "-m", model, "-o", out, "--calibrate-kv-cache",
         work / "plain.txt"],
        stderr=subprocess.DEVNULL)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    check.expect(not exists(out), "a killed calibration left an output")


def main():
    check = Checker(sys.argv[1])
    source = pathlib.Path(sys.argv[2])
    model = source / "models/camel-nano"
    with tempfile.TemporaryDirectory(prefix="caravan-kv-") as folder:
        work = pathlib.Path(folder)
        write_text(source, work)
        for test in (test_refusals, test_pipeline, test_plan, test_killed):
            test(check, model, work)
    for failure in check.failures:
        print(failure)
    print(f"{len(check.failures)} failures")
    return 1 if check.failures else 0


if __name__ == "__main__":
    sys.exit(main())
