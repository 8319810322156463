#!/usr/bin/env python3
"""Makes tests/goldens/gpt-nano-sort from the minGPT sorting model and its stored intermediates.

usage: tools/nano_sort_fixture.py MODEL.json PARTIALS.json OUTPUT_DIR

The inputs are gpt-nano-sort-model.json and gpt-nano-sort-t0-partials.json of llm-viz (MIT). The model
becomes a Hugging Face directory (torch.nn.Linear weights [out, in] are transposed to Conv1D
[in, out]); the intermediates become partials.safetensors, float32, under their own names.
"""

import base64
import json
import pathlib
import struct
import sys


def floats(entry):
    data = base64.b64decode(entry["data"])
    return list(struct.unpack(f"<{len(data) // 4}f", data))


def transpose(values, rows, columns):
    return [values[r * columns + c] for c in range(columns) for r in range(rows)]


def write_safetensors(path, tensors):
    header, blobs, offset = {}, [], 0
    for name, (shape, values) in tensors.items():
        blob = struct.pack(f"<{len(values)}f", *values)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + len(blob)]}
        blobs.append(blob)
        offset += len(blob)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def main():
    model_path, partials_path, output = sys.argv[1:4]
    model = json.load(open(model_path))
    partials = json.load(open(partials_path))
    out = pathlib.Path(output)
    out.mkdir(parents=True, exist_ok=True)
    config = model.pop("config")
    tensors = {}
    for name, entry in model.items():
        shape, values = entry["shape"], floats(entry)
        if name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
            values, shape = transpose(values, *shape), shape[::-1]
        tensors[name] = (shape, values)
    write_safetensors(out / "model.safetensors", tensors)
    hf_config = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_embd": config["n_embd"],
        "n_layer": config["n_layer"],
        "n_head": config["n_head"],
        "n_positions": config["block_size"],
        "vocab_size": config["vocab_size"],
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    (out / "config.json").write_text(json.dumps(hf_config, indent=1) + "\n")
    partials.pop("config")
    write_safetensors(
        out / "partials.safetensors", {k: (v["shape"], floats(v)) for k, v in partials.items()}
    )


if __name__ == "__main__":
    main()
