#!/usr/bin/env python3
"""Runs a model with Hugging Face transformers: the other side of `caravan summarize --reference`,
`caravan compare`, `caravan perplexity --against` and `caravan diverge --against`.

Needs Python 3.9, torch, transformers and numpy; safetensors for --dump-logits; pyarrow to read
Parquet with --data:   pip install torch transformers numpy safetensors pyarrow

Summaries from the same token ids as Caravan's (greedy):
  caravan summarize --model DIR --data FILE --output ours.jsonl
  tools/hf_reference.py --model DIR --prompts ours.jsonl --output hf.jsonl
  caravan summarize --model DIR --data FILE --output ours.jsonl --resume --reference hf.jsonl

Logits of a text, in windows, for perplexity and divergence:
  tools/hf_reference.py --model DIR --input text.txt --dump-logits dump.safetensors --window 512
"""

import argparse
import json
import os
import sys
import time

DTYPES = ("float32", "float16", "bfloat16")
INSTRUCTION = "Summarize the article."
MAX_INPUT_2023 = 923
CAMEL = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request\n\n### Instruction:\n{}\n\n"
    "### Input:\n{}\n\n### Response:"
)
# The names that cnn_dailymail, xsum and others use.
PAIRS = (("article", "highlights"), ("document", "summary"), ("article", "summary"),
         ("text", "summary"), ("dialogue", "summary"), ("src", "tgt"))


def fail(message):
    raise SystemExit(f"hf_reference: error: {message}")


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="Hugging Face directory")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="default: float32")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N; default: cpu")
    parser.add_argument("--attention", default="eager", choices=("eager", "sdpa"),
                        help="transformers' attn_implementation; default: eager")

    prompts = parser.add_argument_group("summaries")
    prompts.add_argument("--prompts", help="predictions file of Caravan: its prompt_ids are used")
    prompts.add_argument("--data", help="instead: JSON Lines or Parquet file of articles, with "
                         "prompts of the tldr template cut to the last --max-input-len tokens")
    prompts.add_argument("--template", choices=("tldr", "camel"), default="tldr")
    prompts.add_argument("--max-input-len", type=int, default=MAX_INPUT_2023)
    prompts.add_argument("--max-articles", type=int, default=0, help="0: all")
    prompts.add_argument("--output", help="predictions file to write")
    prompts.add_argument("--output-len", type=int, default=100, help="default: 100")
    prompts.add_argument("--batch-size", type=int, default=1, help="default: 1")
    prompts.add_argument("--compat", choices=("none", "trtllm-2023"), default="none",
                         help="trtllm-2023: hf_prompt_ids of the file (or, with --data, its own), no "
                         "attention mask, texts through clean_up_tokenization")

    logits = parser.add_argument_group("logits")
    logits.add_argument("--dump-logits", help="safetensors file to write")
    logits.add_argument("--dump-hidden", action="store_true", help="the hidden states too")
    logits.add_argument("--dump-dtype", choices=("float32", "float16"), default="float32")
    logits.add_argument("--input", help="text file to tokenize")
    logits.add_argument("--ids", help="instead: comma-separated token ids, or @FILE with one JSON "
                        "array of them")
    logits.add_argument("--window", type=int, default=0,
                        help="tokens of a window; 0: the model's positions")
    logits.add_argument("--max-tokens", type=int, default=0, help="0: all")
    arguments = parser.parse_args()
    if bool(arguments.output) == bool(arguments.dump_logits):
        fail("give one of --output (summaries) and --dump-logits")
    if arguments.output and bool(arguments.prompts) == bool(arguments.data):
        fail("--output needs one of --prompts and --data")
    if arguments.dump_logits and bool(arguments.input) == bool(arguments.ids):
        fail("--dump-logits needs one of --input and --ids")
    if arguments.batch_size < 1 or arguments.output_len < 1:
        fail("--batch-size and --output-len must be at least 1")
    return arguments


def load_model(arguments):
    import torch
    import transformers

    # Its name until transformers 4.56.
    version = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    dtype_name = "dtype" if version >= (4, 56) else "torch_dtype"
    model = transformers.AutoModelForCausalLM.from_pretrained(
        arguments.model, attn_implementation=arguments.attention,
        **{dtype_name: getattr(torch, arguments.dtype)},
    )
    return model.to(arguments.device).eval()


def load_tokenizer(arguments):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(arguments.model, padding_side="left")


def eos_ids(model):
    ids = model.generation_config.eos_token_id
    if ids is None:
        ids = model.config.eos_token_id
    return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)


# Prompts


def read_json_lines(path):
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                fail(f"{path}:{number}: {error}")


def read_prompts(arguments):
    """Rows {"id", "index", "prompt_ids", "reference"} from a predictions file."""
    wanted = "hf_prompt_ids" if arguments.compat == "trtllm-2023" else "prompt_ids"
    rows = []
    for number, row in read_json_lines(arguments.prompts):
        if wanted not in row:
            fail(f"{arguments.prompts}:{number}: no \"{wanted}\"; `caravan summarize --output` writes "
                 "it" + (", with --compat trtllm-2023" if wanted != "prompt_ids" else ""))
        rows.append({"id": row.get("id", ""), "index": row.get("index", len(rows)),
                     "prompt_ids": row[wanted], "reference": row.get("reference")})
    return rows


def read_articles(path):
    if path.endswith(".parquet"):
        import pyarrow.parquet

        rows = pyarrow.parquet.read_table(path).to_pylist()
    else:
        rows = [row for _, row in read_json_lines(path)]
    if not rows:
        fail(f"{path}: no rows")
    for article, summary in PAIRS:
        if article in rows[0] and summary in rows[0]:
            return [(row.get("id", str(i)), row[article], row[summary])
                    for i, row in enumerate(rows)]
    fail(f"{path}: no known pair of text and summary, there is {sorted(rows[0])}")


def prompts_of_articles(arguments, tokenizer):
    """The same rows from articles, cut as TensorRT-LLM's summarize.py of July 2023 did."""
    rows = []
    for i, (name, article, summary) in enumerate(read_articles(arguments.data)):
        if arguments.max_articles and i >= arguments.max_articles:
            break
        if arguments.template == "camel":
            text = CAMEL.format(INSTRUCTION, article)
        else:
            text = (article + " TL;DR: ").strip().replace(" n't", "n't")
        ids = tokenizer(text, truncation=arguments.compat == "trtllm-2023")["input_ids"]
        rows.append({"id": str(name), "index": i, "prompt_ids": ids[-arguments.max_input_len:],
                     "reference": summary})
    return rows


def clean_up_tokenization(text):
    """What transformers did by default in 2023."""
    for mark in (" .", " ?", " !", " ,"):
        text = text.replace(mark, mark[1:])
    text = text.replace(" ' ", "'")
    for mark in (" n't", " 'm", " 's", " 've", " 're"):
        text = text.replace(mark, mark[1:])
    return text


def refuse_nan(_ids, scores):
    """A logits processor: generate() itself would take token 0 of logits that are no numbers."""
    if not scores.isfinite().all():
        fail("the model's logits are not finite: run it again, or with --dtype float32")
    return scores


def generate(arguments, model, rows):
    """The output ids of one batch of rows, to the end-of-text token (included) or output_len."""
    import torch
    from transformers import LogitsProcessorList

    ends = eos_ids(model)
    pad = ends[0] if ends else 0
    longest = max(len(row["prompt_ids"]) for row in rows)
    if longest + arguments.output_len > model.config.n_positions:
        fail(f"a prompt of {longest} tokens and --output-len {arguments.output_len} do not fit in the "
             f"model's {model.config.n_positions} positions")
    ids = torch.full((len(rows), longest), pad, dtype=torch.long)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    for i, row in enumerate(rows):
        length = len(row["prompt_ids"])
        ids[i, longest - length:] = torch.tensor(row["prompt_ids"], dtype=torch.long)
        mask[i, longest - length:] = 1
    if arguments.compat == "trtllm-2023":
        mask = torch.ones_like(mask)  # padding was attended to
    with torch.inference_mode():
        # generate() derives position ids from the mask.
        output = model.generate(
            ids.to(arguments.device), attention_mask=mask.to(arguments.device),
            max_new_tokens=arguments.output_len, do_sample=False, num_beams=1, pad_token_id=pad,
            eos_token_id=ends or None, logits_processor=LogitsProcessorList([refuse_nan]),
        )
    for row in output[:, longest:].tolist():
        end = next((i for i, token in enumerate(row) if token in ends), None)
        yield row if end is None else row[: end + 1]


def write_predictions(arguments):
    tokenizer = load_tokenizer(arguments)
    rows = read_prompts(arguments) if arguments.prompts else prompts_of_articles(arguments, tokenizer)
    if not rows:
        fail("no prompts")
    model = load_model(arguments)
    ends = eos_ids(model)
    start = time.monotonic()
    num_tokens = 0
    partial = arguments.output + ".partial"
    with open(partial, "w", encoding="utf-8") as out:
        for first in range(0, len(rows), arguments.batch_size):
            batch = rows[first: first + arguments.batch_size]
            for row, output_ids in zip(batch, generate(arguments, model, batch)):
                text = tokenizer.decode(output_ids, skip_special_tokens=True,
                                        clean_up_tokenization_spaces=False)
                if arguments.compat == "trtllm-2023":
                    text = clean_up_tokenization(text)
                num_tokens += len(output_ids)
                is_stop = bool(output_ids) and output_ids[-1] in ends
                line = {"id": row["id"], "index": row["index"], "prompt_ids": row["prompt_ids"],
                        "output_ids": output_ids, "prediction": text,
                        "finish_reason": "stop" if is_stop else "length"}
                if row["reference"] is not None:
                    line["reference"] = row["reference"]
                out.write(json.dumps(line, ensure_ascii=False) + "\n")
            out.flush()
            print(f"\r{first + len(batch)} of {len(rows)} articles", end="", file=sys.stderr)
    os.replace(partial, arguments.output)
    seconds = time.monotonic() - start
    print(f"\n{arguments.output}: {len(rows)} predictions, {num_tokens} output tokens in "
          f"{seconds:.1f} s: {num_tokens / seconds:.1f} tok/s", file=sys.stderr)


# Logits


def read_ids(arguments, tokenizer_of):
    if arguments.input:
        with open(arguments.input, encoding="utf-8", newline="") as file:
            ids = tokenizer_of()(file.read(), truncation=False)["input_ids"]
    elif arguments.ids.startswith("@"):
        with open(arguments.ids[1:], encoding="utf-8") as file:
            ids = json.load(file)
    else:
        ids = [int(part) for part in arguments.ids.split(",")]
    if arguments.max_tokens:
        ids = ids[: arguments.max_tokens]
    if not ids:
        fail("no tokens")
    return ids


def hook_hidden(model, store):
    """Forward hooks that keep what each part of a layer hands on, under Caravan's names."""

    def keep(name):
        def hook(_module, _inputs, output):
            value = output[0] if isinstance(output, tuple) else output
            store.setdefault(name, []).append(value.detach()[0].float().cpu())
        return hook

    def keep_input(name):
        def hook(_module, inputs):
            store.setdefault(name, []).append(inputs[0].detach()[0].float().cpu())
        return hook

    body = model.transformer
    body.drop.register_forward_hook(keep("embedding"))
    for i, layer in enumerate(body.h):
        layer.ln_1.register_forward_hook(keep(f"h.{i}.ln_1"))
        layer.attn.c_attn.register_forward_hook(keep(f"h.{i}.attn.c_attn"))
        layer.attn.c_proj.register_forward_pre_hook(keep_input(f"h.{i}.attn"))
        layer.ln_2.register_forward_pre_hook(keep_input(f"h.{i}.attn.residual"))
        layer.ln_2.register_forward_hook(keep(f"h.{i}.ln_2"))
        layer.mlp.act.register_forward_hook(keep(f"h.{i}.mlp.act"))
        layer.register_forward_hook(keep(f"h.{i}"))
    body.ln_f.register_forward_hook(keep("ln_f"))


def dump_logits(arguments):
    import numpy
    import torch
    from safetensors.numpy import save_file

    ids = read_ids(arguments, lambda: load_tokenizer(arguments))
    model = load_model(arguments)
    window = arguments.window or model.config.n_positions
    if not 1 <= window <= model.config.n_positions:
        fail(f"--window {window}: the model has {model.config.n_positions} positions")
    starts = list(range(0, len(ids), window))
    hidden = {}
    if arguments.dump_hidden:
        hook_hidden(model, hidden)
    logits = numpy.empty((len(ids), model.config.vocab_size), dtype=arguments.dump_dtype)
    with torch.inference_mode():
        for start in starts:
            part = torch.tensor([ids[start: start + window]], dtype=torch.long)
            output = model(part.to(arguments.device), use_cache=False)
            rows = refuse_nan(None, output.logits[0].float()).cpu().numpy()
            logits[start: start + len(rows)] = rows.astype(arguments.dump_dtype)
    tensors = {"input_ids": numpy.array(ids, dtype=numpy.int32),
               "window_start": numpy.array(starts, dtype=numpy.int32), "logits": logits}
    for name, parts in hidden.items():
        tensors[f"hidden.{name}"] = torch.cat(parts).contiguous().numpy()
    partial = arguments.dump_logits + ".partial"
    save_file(tensors, partial, metadata={"dtype": arguments.dtype})
    os.replace(partial, arguments.dump_logits)
    print(f"{arguments.dump_logits}: {len(ids)} tokens in {len(starts)} windows, "
          f"{len(hidden)} hidden states", file=sys.stderr)


def main():
    arguments = parse_arguments()
    if arguments.output:
        write_predictions(arguments)
    else:
        dump_logits(arguments)


if __name__ == "__main__":
    main()
