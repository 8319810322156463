#!/usr/bin/env python3
"""Flags, exit statuses and output of synth, convert, build, plan and inspect.

usage: convert_cli_test.py PROGRAM
"""

import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

from cli_tools import Checker, digests, exists, one_error_line, run, run_or_die, synth

LEGACY_BUILD = """--dtype float16 --max_batch_size 32 --max_input_len 64 --max_output_len 50
  --use_gpt_attention_plugin float16 --use_layernorm_plugin float16 --use_lookup_plugin float16
  --use_gemm_plugin --use_inflight_batching --remove_input_padding --paged_kv_cache
  --tokens_per_block 64 --enable_context_fmha --enable_context_fmha_fp32_acc --world_size 1
  --max_beam_width 1 --parallel_build --builder_opt 3 --timing_cache model.cache
  --log_level info""".split()


def test_spellings(check, work):
    """The flags of 2023 and ours make the same bytes."""
    model = work / "model"
    for output, flags in {
        "c1": ["--model", model, "--output", work / "c1", "--dtype", "float16"],
        "c2": ["-i", model, "-o", work / "c2", "-t", "fp16", "-p", "4"],
        "c3": ["--in-file", model, "--out-dir", work / "c3", "--storage-type", "float16"],
    }.items():
        run_or_die(check.program, "convert", *flags)
        check.expect(exists(work / output), f"convert {flags}")
    check.expect(digests(work / "c1") == digests(work / "c2") == digests(work / "c3"), "convert")
    sizes = "--max-batch-size 32 --max-input-len 64 --max-output-len 50".split()
    run_or_die(check.program, "build", "--model", work / "c1", "--output", work / "e1", *sizes)
    legacy = ["build", "--model_dir", work / "c1", "--output_dir", work / "e2", *LEGACY_BUILD]
    run_or_die(check.program, *legacy)
    check.expect(digests(work / "e1") == digests(work / "e2"), "build")
    # Each retired flag has its line in the log.
    shutil.rmtree(work / "e2")
    result = subprocess.run([check.program, *legacy], capture_output=True, text=True)
    lines = [line for line in result.stderr.splitlines() if "has no meaning here" in line]
    check.expect(len(lines) == 14, f"retired flags: {lines}")


def test_refusals(check, work):
    """What is wrong or not there says so, with its exit status."""
    model, out = work / "model", work / "refused"
    build = ["build", "--model", model, "--output", out]
    check.refuses(78, "sm_70", *build, "--target", "sm_70")
    check.refuses(78, "--world_size 2", *build, "--world_size", "2")
    check.refuses(78, "--max_beam_width 4", *build, "--max_beam_width", "4")
    for flag in ("--use_weight_only", "--use_smooth_quant"):
        check.refuses(78, flag, *build, flag)
    check.refuses(64, "--dtype", *build, "--dtype", "int8")
    check.refuses(64, "positions", *build, "--max-input-len", "128", "--max-output-len", "1")
    check.refuses(64, "--max-batch-size", *build, "--max-batch-size", "0")
    check.refuses(71, "--max-batch-size", *build, "--max-batch-size", "65536", "--memory", "1GiB")
    check.refuses(64, "--tensor-parallel", "convert", "-i", model, "-o", out, "-t", "p", "2")
    check.refuses(64, "n_head", "convert", "-i", model, "-o", out, "--tensor-parallel", "3")
    check.refuses(64, "exists already", "convert", "-i", model, "-o", work / "c1")
    check.refuses(66, "no such directory", "convert", "-i", work / "nowhere", "-o", out)
    check.refuses(66, "no such directory", "inspect", work / "nowhere")
    check.refuses(64, "not a Hugging Face directory", "convert", "-i", work / "c1", "-o", out)
    check.expect(not exists(out) and not exists(f"{out}.partial"), "a refusal left files")


def test_gpu_target(check, work):
    """An engine for GPUs is built without one where the CUDA backend was; else one line says so."""
    build = ["build", "--model", work / "model", "--output", work / "gpu", "--target", "sm_90"]
    has_plugin = exists(pathlib.Path(check.program).parent / "libcaravan_cuda.so")
    if not has_plugin:
        check.refuses(78, "device cuda", *build)
        return
    run_or_die(check.program, *build)
    config = json.loads((work / "gpu" / "config.json").read_text())["caravan"]
    layouts = {t.get("layout") for n, t in config["tensors"].items() if "c_attn.weight" in n}
    check.expect(layouts == {"core8x8"}, f"layouts of a GPU's engine: {layouts}")
    check.expect(config["build"]["target"] == "sm_90", f"target: {config['build']}")
    run_engine = ["run", "--model", work / "gpu", "--prompt", "hi", "--device", "cpu"]
    check.expect(run(check.program, *run_engine).returncode != 0, "a GPU's engine ran on the CPU")


def test_plan(check, work):
    """plan and build agree, and the figures are those of the formula."""
    sizes = "--max-batch-size 3 --max-input-len 50 --max-output-len 20".split()
    plan = check.json("plan", "--model", work / "model", "--json", "--memory", "1GiB", *sizes)
    check.expect(plan["kv_bytes_per_token"] == 2 * 12 * 64 * 2, f"KV a token: {plan}")
    check.expect(plan["kv_bytes"] == 3 * 5 * 16 * plan["kv_bytes_per_token"], f"KV: {plan}")
    check.expect(plan["fits"] is True, f"fits: {plan}")
    run_or_die(check.program, "build", "--model", work / "model", "--output", work / "e3", *sizes)
    engine = check.json("inspect", "--json", work / "e3")
    recorded = engine["caravan"]["memory_plan"]
    check.expect(all(plan[key] == recorded[key] for key in recorded), f"{plan} {recorded}")
    tensors = sum(tensor["bytes"] for tensor in engine["tensors"][0])
    check.expect(tensors == plan["weights_bytes"], f"weights: {tensors}")


def test_inspect(check, work):
    """Lint and checksums decide the exit status."""
    result = run(check.program, "inspect", work / "model", "--lint")
    check.expect(result.returncode == 0, f"lint of a clean model: {result.stderr}")
    check.expect("[exact-gelu]" in result.stdout, f"lint: {result.stdout}")
    run_or_die(check.program, "inspect", work / "e1", "--checksums")
    shutil.copytree(work / "e1", work / "bad")
    weights = work / "bad" / "rank0.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    check.refuses(65, "checksum", "inspect", work / "bad", "--checksums")
    shutil.copytree(work / "model", work / "lint")
    config = json.loads((work / "lint" / "config.json").read_text())
    config["pad_token_id"] = config["vocab_size"]
    (work / "lint" / "config.json").write_text(json.dumps(config))
    result = run(check.program, "inspect", work / "lint", "--lint")
    check.expect(result.returncode == 65, f"lint of a bad pad id: exit {result.returncode}")
    check.expect("[token-id-range]" in result.stdout, f"lint: {result.stdout}")


def test_verify(check, work):
    """build --verify stores a certificate."""
    run_or_die(
        check.program, "build", "--model", work / "model", "--output", work / "sure", "--verify",
        "--max-input-len", 40, "--max-output-len", 40,
    )
    certificate = check.json("inspect", "--json", work / "sure")["caravan"]["certificate"]
    check.expect(certificate["num_prompts"] == 4, f"certificate: {certificate}")
    check.expect(len(certificate["layer_errors"]) == 14, f"certificate: {certificate}")
    check.expect(0 < certificate["kl_max"] < 1e-2, f"certificate: {certificate}")


def main():
    check = Checker(sys.argv[1])
    with tempfile.TemporaryDirectory(prefix="caravan-cli-") as folder:
        work = pathlib.Path(folder)
        synth(check.program, work / "model")
        tests = (
            test_spellings, test_refusals, test_gpu_target, test_plan, test_inspect, test_verify,
        )
        for test in tests:
            test(check, work)
    for failure in check.failures:
        print(failure)
    print(f"{len(check.failures)} failures")
    return 1 if check.failures else 0


if __name__ == "__main__":
    sys.exit(main())
