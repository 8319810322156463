#!/bin/bash
# Everything that needs an NVIDIA GPU, on the first one of this machine: conformance of every kernel,
# whole models against the goldens and the oracle, determinism, compute-sanitizer, benches. Each
# step's output goes to a file; a table of the steps comes last. Exit status 0 when nothing failed.
# Build first (tools/build.sh cpu, where nvcc is installed).
# usage: tests/gpu/run_all.sh [-o REPORT_DIR] [STEP...]      (no STEP: all of them)
set -uo pipefail
cd "$(dirname "$0")/../.."

report=build/gpu_report
if [[ ${1:-} == -o ]]; then
  report=$2
  shift 2
fi
mkdir -p "$report"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
caravan=build/caravan
export CARAVAN_QUIET=1

conformance() { build/tests/cuda/cuda_conformance_test; }
models() { build/tests/cuda/cuda_model_test; }
goldens() { CARAVAN_TEST_DEVICE=cuda build/tests/golden_test; }
invariance() { CARAVAN_TEST_DEVICE=cuda build/tests/invariance_test; }
step_runner() { CARAVAN_TEST_DEVICE=cuda build/tests/step_runner_test; }
# More than 1,000 completions for each kind of weights: load, chunks, preemption, prefix hits, cancels.
engine_invariance() { CARAVAN_TEST_DEVICE=cuda build/tests/engine_invariance_test; }
wikitext() { CARAVAN_TEST_DEVICE=cuda build/tests/wikitext_test; }

# Parity certificates: engines against the oracle, fixed prompts, every layer.
parity_nano() {
  local dtype
  for dtype in float32 float16 bfloat16; do
    $caravan build --model models/camel-nano --output "$work/nano-$dtype" --target sm_90 \
      --dtype $dtype --verify || return 1
  done
}
# One of camel-5b's layers against the oracle, which takes seconds for a token of it.
parity_camel_5b() {
  $caravan synth --shape custom --n-embd 4096 --n-layer 1 --n-head 32 --n-positions 64 \
    --vocab-size 1000 --activation-function gelu --dtype float16 --output "$work/camel-layer" &&
    for dtype in float16 bfloat16; do
      $caravan build --model "$work/camel-layer" --output "$work/camel-layer-$dtype" --target sm_90 \
        --dtype $dtype --max-batch-size 1 --max-input-len 12 --max-output-len 4 --verify || return 1
    done
}
# The program as a user runs it: text of the GPU and of the CPU, a batch of prompts, an error.
command_line() {
  local text=()
  $caravan build --model models/camel-nano --output "$work/nano" --target sm_90 --dtype float32 || return 1
  for device in cpu cuda; do
    text[${#text[@]}]=$($caravan run --model models/camel-nano --device $device --dtype float32 \
      --prompt "The caravan" --max-output-len 24) || return 1
  done
  $caravan run --model "$work/nano" --device cuda --prompt "The caravan" --max-output-len 24 || return 1
  echo "${text[0]}"
  [[ ${text[0]} == "${text[1]}" ]] || { echo "the GPU wrote: ${text[1]}"; return 1; }
  ! $caravan run --model models/camel-nano --device cuda:7 --prompt hi
}
# Every kernel on small shapes: the tools slow them down by a factor of 10 to 100.
small='*LinearStream*EveryEpilogue*:LinearWgmma.EveryActivation:LinearWgmma.WritesOnly*'
small+=':LinearMmaTest.EveryActivation:LinearSimpleTest.EveryActivation:CudaLayerNorm.Steps'
small+=':CudaLayerNorm.ChainInAGraph:CudaLayerNorm.LargeMean*:CudaEmbedding.*:CudaGatherRows.*'
small+=':SamplingTest.EqualLogits*:SamplingTest.OneTokenLeft*:SamplingTest.RowsThatAreNotFinite*:*AppendKv*:*FastAttention.*16_40'
small+=':*FastAttention.MixedChunks*16_128:Attention.Simple*'
small+=':*FastAttention.*16_48_float8*:*FastAttention.MixedChunks*16_128_int8:*SimpleAttention*_int8'
sanitize() {
  local tool=$1
  timeout 400 compute-sanitizer --tool "$tool" --error-exitcode 9 --print-limit 1000 \
    build/tests/cuda/cuda_conformance_test --gtest_filter="$small" >"$work/log" 2>&1
  local status=$?
  grep -v '^\[ RUN' "$work/log" | tail -n 60
  return $status
}
memcheck() { sanitize memcheck; }
# The tool does not follow mbarriers between ordinary accesses and reports prefill attention's work
# list, WgmmaWork, where a comment says why it is none. A report of which both sides are accesses to
# next_work passes; anything else fails.
racecheck() {
  sanitize racecheck && return
  grep -q 'PASSED' "$work/log" && python3 -B - "$work/log" <<'PYTHON'
import collections, pathlib, re, sys
known, unknown = collections.Counter(), []
for report in re.split(r"\n=+ \n", pathlib.Path(sys.argv[1]).read_text()):
    if "Race reported" not in report:
        continue
    num_sides = len(re.findall(r"(?:Read|Write) access at", report))
    places = re.findall(r" in ([\w.]+):(\d+)", report)
    lines = [pathlib.Path("src/kernels/cuda", name).read_text().splitlines()[int(line) - 1]
             for name, line in places if pathlib.Path("src/kernels/cuda", name).is_file()]
    if len(lines) == num_sides and all("next_work->" in line for line in lines):
        known.update(f"{name}:{line}" for name, line in places)
    else:
        unknown.append(report)
print("accesses to next_work in reports:", dict(known))
print("\n".join(unknown))
sys.exit(len(unknown) > 0 or not known)
PYTHON
}

# A 10 GB engine of camel-5b's shape from disk: rate of loading, start to first token.
load() {
  $caravan synth --shape camel-5b --dtype float16 --output "$work/camel-5b" &&
    $caravan build --model "$work/camel-5b" --output "$work/camel-5b-engine" --target sm_90 \
      --max-batch-size 1 || return 1
  rm -rf "$work/camel-5b"
  $caravan bench load --device cuda --model "$work/camel-5b-engine" >/dev/null  # into the page cache
  $caravan bench load --device cuda --model "$work/camel-5b-engine" --json
}

# The same tokens as Hugging Face transformers in float32, on camel-nano and on random weights of two of
# camel-5b's layers. Says so and passes where Python has no transformers.
reference() {
  local model=$work/camel-two flags
  CARAVAN_DEVICE=cuda python3 -B tests/cli/hf_reference_test.py $caravan .
  case $? in
    0) ;;
    77) return 0 ;;
    *) return 1 ;;
  esac
  flags=(--model "$model" --device cuda --dtype float32 --data tests/data/summarization/articles.jsonl
    --max-ite 3 --output-len 16 --output "$work/camel-two.jsonl")
  $caravan synth --shape custom --n-embd 4096 --n-layer 2 --n-head 32 --n-positions 2048 \
    --vocab-size 50258 --activation-function gelu --tokenizer models/camel-nano --output "$model" &&
    $caravan summarize "${flags[@]}" &&
    "${CARAVAN_TEST_PYTHON:-python3}" tools/hf_reference.py --model "$model" --device cuda --output-len 16 \
      --prompts "$work/camel-two.jsonl" --output "$work/camel-two-hf.jsonl" &&
    $caravan summarize "${flags[@]}" --resume --reference "$work/camel-two-hf.jsonl" |
    tee /dev/stderr | grep -q 'equal token by token: 3 of 3'
  local status=$?
  rm -rf "$model"
  return $status
}
# docs/walkthroughs.md, pasted, on random weights of the real shapes (WALKTHROUGH_DIR: 20 GB of files).
walkthrough() {  # NAME MODEL_DIR
  CARAVAN_DEVICE=cuda CARAVAN_TARGET=sm_90 CARAVAN_CALIB_DEVICE=cuda WALKTHROUGH_DIR=$work \
    python3 -B tests/cli/walkthrough_test.py $caravan . "$1" "$2"
}
walkthrough_gpt2() {
  # GPT-2's vocabulary is camel-nano's without the token that was added.
  mkdir -p "$work/gpt2-tokenizer" && cp models/camel-nano/{vocab.json,merges.txt} "$work/gpt2-tokenizer" &&
    $caravan synth --shape gpt2 --tokenizer "$work/gpt2-tokenizer" --output "$work/gpt2" &&
    walkthrough gpt2 "$work/gpt2"
}
walkthrough_camel_5b() {
  $caravan synth --shape camel-5b --dtype float16 --tokenizer models/camel-nano --output "$work/camel" &&
    walkthrough camel "$work/camel"
  local status=$?
  rm -rf "$work/camel"
  return $status
}

# 8-bit caches, calibrated on the end of a text and scored on the rest: what they cost in perplexity.
# At most 0.3 % with int8 and a scale a head; the scales of 2023 beside it.
kv_accuracy() {
  local text=tests/data/wikitext-2-raw/wiki.test.raw granularity cache
  head -n 3400 $text >"$work/scored.txt" && tail -n 900 $text >"$work/calibration.txt" || return 1
  for granularity in head layer-2023; do
    $caravan convert --model models/camel-nano --output "$work/nano-$granularity" \
      --calibrate-kv-cache "$work/calibration.txt" --kv-scale-granularity $granularity --calib-device cuda || return 1
  done
  for cache in head:float16 head:int8 head:fp8 layer-2023:int8; do
    $caravan perplexity --model "$work/nano-${cache%:*}" --device cuda --dtype float16 --kv-cache-dtype "${cache#*:}" \
      --data "$work/scored.txt" --json >"$work/${cache/:/-}.json" || return 1
  done
  python3 -B - "$work" <<'PYTHON'
import json, sys
def perplexity(name):
    return json.load(open(f"{sys.argv[1]}/{name}.json"))["perplexity"]["value"]
base = perplexity("head-float16")
change = {name: 100 * (perplexity(name) / base - 1) for name in ("head-int8", "head-fp8", "layer-2023-int8")}
print(f"float16 cache: perplexity {base:.4f};", ", ".join(f"{k} {v:+.3f} %" for k, v in change.items()))
sys.exit(abs(change["head-int8"]) > 0.3)
PYTHON
}
# The GPU's operators, one by one, against the CPU's in float32, against themselves and against the
# generic kernels: nothing but rounding. A planted GELU is found.
diverge() {
  local nano=models/camel-nano dtype flags
  head -c 1200 docs/architecture.md >"$work/diverge.txt"
  flags=(-q diverge --model $nano --device cuda --input "$work/diverge.txt")
  for dtype in float32 float16 bfloat16; do
    $caravan "${flags[@]}" --dtype $dtype --against $nano --against-device cpu --against-dtype float32 || return 1
  done
  $caravan "${flags[@]}" --dtype float16 --against $nano --against-device cuda --against-dtype float16 \
    --against-cuda-kernels generic || return 1
  mkdir -p "$work/wrong" && cp $nano/* "$work/wrong" &&
    sed -i 's/"activation_function": "gelu"/"activation_function": "gelu_new"/' "$work/wrong/config.json" || return 1
  ! $caravan "${flags[@]}" --dtype float32 --against "$work/wrong" --against-device cpu --against-dtype float32 \
    >"$work/wrong.txt" && tail -n 2 "$work/wrong.txt" && grep -q 'gelu_new' "$work/wrong.txt"
}

bench_ceilings_and_latency() {
  $caravan bench latency --device cuda --random-weights camel-5b --prompt-lens 128,512,2048 \
    --contexts 512,1500 --batch-sizes 1,2,4,8,16,32,64 --json
}
bench_gpt2() {
  $caravan bench latency --device cuda --random-weights gpt2 --contexts 128,512 --batch-sizes 1,8,32 --json
}
bench_kv_int8() {
  $caravan bench latency --device cuda --random-weights camel-5b --kv-cache-dtype int8 \
    --prompt-lens 512,2048 --contexts 512,1500 --batch-sizes 1,8,32 --json
}
bench_kv_fp8() {
  $caravan bench latency --device cuda --random-weights camel-5b --kv-cache-dtype fp8 \
    --prompt-lens 512,2048 --contexts 512,1500 --batch-sizes 1,8,32 --json
}
bench_prefill_batch() {
  $caravan bench latency --device cuda --random-weights camel-5b --prompt-lens 512 \
    --prefill-batch-sizes 1,4,32 --batch-sizes 1 --json
}
# A model directory of camel-5b's shape without weights, camel-nano's tokenizer.
camel_5b_config() {  # DIR
  mkdir -p "$1" && cp models/camel-nano/*.json models/camel-nano/*.txt "$1" &&
    sed -i 's/"n_embd": .*/"n_embd": 4096,/; s/"n_head": .*/"n_head": 32,/;
      s/"n_inner": .*/"n_inner": 16384,/; s/"n_layer": .*/"n_layer": 24,/;
      s/"n_positions": .*/"n_positions": 2048,/' "$1/config.json"
}
# 256 streaming clients, some of which leave, on camel-nano with too few KV blocks and on random weights
# of camel-5b's shape: every answer has the tokens of the first to the same question.
soak() {
  local flags="--device cuda --dtype float16 --max-num-batched-tokens 256"
  camel_5b_config "$work/camel-5b-soak" &&
    python3 -B tests/server/soak.py --caravan $caravan --model models/camel-nano --seconds 45 \
      --server-flags "$flags --max-num-seqs 64 --kv-cache-memory 8MiB" &&
    python3 -B tests/server/soak.py --caravan $caravan --model "$work/camel-5b-soak" --seconds 60 \
      --server-flags "$flags --max-num-seqs 128 --load-format dummy"
}
# The server under load: camel-5b's shape with random weights and camel-nano's tokenizer, 128 prompt
# and 128 output tokens, beside a prefill and decode steps of the same sizes without a server.
bench_serve() {
  local dir=$work/camel-5b-shape port=18000 server status=0 n
  camel_5b_config "$dir" || return 1
  $caravan serve --model "$dir" --load-format dummy --device cuda --dtype float16 --port $port \
    --max-num-seqs 128 --max-num-batched-tokens 8192 --no-request-log &
  server=$!
  for _ in $(seq 300); do
    python3 -c "import urllib.request as r; r.urlopen('http://127.0.0.1:$port/health')" && break
    sleep 0.2
  done 2>"$work/health.log"
  for n in 1 8 32 128; do
    $caravan bench serve --base-url http://127.0.0.1:$port --num-prompts $((n < 32 ? 6 * n : 8 * n)) \
      --max-concurrency $n --random-input-len 128 --random-output-len 128 --ignore-eos \
      --num-warmups $n --json || status=1
  done
  kill $server && wait $server || status=1
  $caravan bench latency --device cuda --random-weights camel-5b --prompt-lens 128 \
    --prefill-batch-sizes 1,8,32,64 --contexts 192 --batch-sizes 1,8,32,128 --json || status=1
  return $status
}

steps=("$@")
[[ $# -gt 0 ]] || steps=(conformance models goldens invariance engine_invariance step_runner wikitext
  parity_nano parity_camel_5b command_line kv_accuracy diverge reference walkthrough_gpt2
  walkthrough_camel_5b load memcheck racecheck soak bench_ceilings_and_latency bench_gpt2
  bench_prefill_batch bench_kv_int8 bench_kv_fp8 bench_serve)
table=()
failed=0
for step in "${steps[@]}"; do
  start=$SECONDS
  if "$step" >"$report/$step.log" 2>&1; then result=passed; else result=FAILED failed=1; fi
  table+=("$(printf '%-28s %-7s %4d s  %s' "$step" "$result" $((SECONDS - start)) \
    "$(grep -aE 'PASSED|SUMMARY|verify:' "$report/$step.log" | tail -n 1 | cut -c1-110)")")
  [[ $result == passed ]] || { echo "== $step"; tail -n 15 "$report/$step.log"; }
done
printf '%s\n' "${table[@]}"
exit $failed
