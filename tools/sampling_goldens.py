#!/usr/bin/env python3
"""Writes tests/goldens/sampling.json: distributions after transformers' logits processors.

usage: tools/sampling_goldens.py OUTPUT

Needs torch and transformers; the file says which versions. Each case has logits, the tokens so far,
settings named as in SamplingParams, and the probabilities that are drawn from, computed by
transformers' own processors in the order of src/sampling/sampler.h; presence and frequency
penalties by the formula of OpenAI's API reference (mu - c * frequency - (c > 0) * presence).
logprobs are log softmax of the logits in float64.
"""

import json
import pathlib
import random
import sys

import torch
import transformers
from transformers.generation import logits_process

VOCAB = 32

# Settings that are not named have the defaults of SamplingParams.
SETTINGS = [
    {"temperature": 1.0},
    {"temperature": 0.25},
    {"temperature": 3.0},
    {"temperature": 1.0, "top_k": 5},
    {"temperature": 0.7, "top_k": 31},
    {"temperature": 1.0, "top_p": 0.5},
    {"temperature": 1.5, "top_p": 0.95},
    {"temperature": 1.0, "top_p": 0.05},
    {"temperature": 1.0, "min_p": 0.1},
    {"temperature": 2.0, "min_p": 0.02},
    {"temperature": 1.0, "min_p": 1.0},
    {"temperature": 1.0, "repetition_penalty": 1.3},
    {"temperature": 1.0, "repetition_penalty": 0.6},
    {"temperature": 1.0, "presence_penalty": 0.8},
    {"temperature": 1.0, "presence_penalty": -1.5},
    {"temperature": 1.0, "frequency_penalty": 0.4},
    {"temperature": 1.0, "frequency_penalty": -0.7},
    {"temperature": 1.0, "presence_penalty": 0.5, "frequency_penalty": 0.9},
    {"temperature": 1.0, "logit_bias": [[3, 2.5], [17, -100.0], [30, 0.125]]},
    {"temperature": 1.0, "banned": [0, 7, 31]},
    {"temperature": 1.0, "logit_bias": [[4, 5.0]], "banned": [4]},
    {"temperature": 0.8, "top_k": 12, "top_p": 0.9},
    {"temperature": 0.8, "top_k": 12, "min_p": 0.05},
    {"temperature": 1.2, "top_k": 20, "top_p": 0.8, "min_p": 0.08},
    {"temperature": 0.9, "top_k": 25, "top_p": 0.97, "min_p": 0.01, "repetition_penalty": 1.2,
     "presence_penalty": 0.3, "frequency_penalty": 0.2, "logit_bias": [[9, 1.5], [2, -3.0]],
     "banned": [11]},
    {"temperature": 1.0, "top_p": 0.9, "repetition_penalty": 1.7, "logit_bias": [[1, -6.0], [5, 8.0]]},
]


def processed(case):
    """Logits as transformers and the formulas leave them, in the order of vLLM."""
    ids = torch.tensor([case["history"]])
    scores = torch.tensor([case["logits"]], dtype=torch.float32)
    if "banned" in case:
        scores = logits_process.SuppressTokensLogitsProcessor(case["banned"])(ids, scores)
    if "logit_bias" in case:
        bias = {(token,): value for token, value in case["logit_bias"]}
        scores = logits_process.SequenceBiasLogitsProcessor(bias)(ids, scores)
    if "repetition_penalty" in case:
        penalty = case["repetition_penalty"]
        scores = logits_process.RepetitionPenaltyLogitsProcessor(penalty)(ids, scores)
    output = case["history"][case["num_prompt_tokens"]:]
    counts = torch.tensor([[float(output.count(token)) for token in range(VOCAB)]])
    scores = scores - case.get("frequency_penalty", 0.0) * counts
    scores = scores - case.get("presence_penalty", 0.0) * (counts > 0)
    scores = logits_process.TemperatureLogitsWarper(case["temperature"])(ids, scores)
    if "min_p" in case:
        scores = logits_process.MinPLogitsWarper(case["min_p"])(ids, scores)
    if "top_k" in case:
        scores = logits_process.TopKLogitsWarper(case["top_k"])(ids, scores)
    if "top_p" in case:
        scores = logits_process.TopPLogitsWarper(case["top_p"])(ids, scores)
    return scores[0]


def make_case(index, settings):
    """One case; the history repeats tokens, in the prompt and in the output."""
    rng = random.Random(index)
    case = {"logits": [round(rng.gauss(0, 2.5), 4) for _ in range(VOCAB)]}
    assert len(set(case["logits"])) == VOCAB, "equal logits: transformers breaks ties its own way"
    case["num_prompt_tokens"] = 6
    case["history"] = [rng.randrange(VOCAB) for _ in range(6)]
    case["history"] += [rng.randrange(8) for _ in range(9)]
    case.update(settings)
    probabilities = torch.softmax(processed(case).double(), dim=-1)
    case["probabilities"] = {
        str(token): float(f"{p:.7g}") for token, p in enumerate(probabilities.tolist()) if p > 0
    }
    logprobs = torch.log_softmax(torch.tensor(case["logits"], dtype=torch.float64), dim=-1)
    top = torch.topk(logprobs, 5)
    case["top_ids"] = top.indices.tolist()
    case["top_logprobs"] = [float(f"{p:.12g}") for p in top.values.tolist()]
    return case


def main():
    """Writes the file, one case a line."""
    cases = [make_case(i, settings) for i, settings in enumerate(SETTINGS)]
    lines = ",\n".join(json.dumps(case) for case in cases)
    versions = json.dumps(f"transformers {transformers.__version__}, torch {torch.__version__}")
    pathlib.Path(sys.argv[1]).write_text(f'{{"made_with": {versions}, "cases": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
