#!/usr/bin/env python3
"""Writes tests/data/tokenizer/forms.jsonl: forms of tokenizer files, and what the libraries make of them.

    pip install transformers==5.24.0 tokenizers==0.23.3
    python3 tools/gen_tokenizer_forms.py > tests/data/tokenizer/forms.jsonl

The first lines are bases, {"base": name, "tokenizer": tokenizer.json}. Every other line is a form:
"base"; "patch", merged into the base's tokenizer.json; "files" that stand beside it; "is_split", the
model is written as vocab.json and merges.txt instead; "cases", [text, ids] pairs. Where "by" is
"transformers" the ids are those of AutoTokenizer.from_pretrained(directory)(text), else those of
tokenizers.Tokenizer.from_file(tokenizer.json).encode(text).
"""

import copy
import json
import os
import random
import sys
import tempfile

os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["HF_HUB_OFFLINE"] = "1"

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

TEXT = [
    "Hello world, the food is on the table. It's 12 o'clock; they've 345 foos.",
    "the other thing that they said was better than the weather in the north",
    "wörld größe naïve — “quoted” 日本語 テキスト",
]
PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
TIKTOKEN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
EOT = "<|endoftext|>"
WORDS = [
    "the", " the", "other", "they've", "it's", " 12", "345", "foo", " foos", "xfoo", "foo_", "wörld", "日本",
    "テ", "🙂", "\u0301", "\u00a0", "\u2003", " ", "  ", "\n", "\n\n", "\t", "\0", "!", "...", "'", "''s", "_",
    "<", ">", "|", EOT, "<s1>", "<s2>", "<s1", "[PAD]", "<s1><s2>", "<new>", "<spk>", "q", "Z", "z", "\x7f",
]


def at(content, id=None, **flags):
    token = dict(content=content, single_word=False, lstrip=False, rstrip=False, normalized=True, special=False)
    token.update(flags)
    return token if id is None else dict(id=id, **token)


def base(vocab_size, alphabet, specials, **model):
    tokenizer = Tokenizer(models.BPE(**model))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        TEXT * 3,
        trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
        ),
    )
    return json.loads(tokenizer.to_str())


def merge(into, patch):
    for key, value in patch.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict) and value.get("type") is None:
            merge(into[key], value)
        else:
            into[key] = value


def template(single, **ids):
    return json.loads(
        processors.TemplateProcessing(
            single=single, pair="$A $B", special_tokens=[(name, i) for name, i in ids.items()]
        ).__getstate__()
    )


def byte_level(**fields):
    return dict(dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=True), **fields)


def split(pattern, behavior="Isolated", invert=False):
    return dict(type="Split", pattern={"Regex": pattern}, behavior=behavior, invert=invert)


def forms(n):
    """(name, base, patch, files, is_split, by); n: tokens of the full base."""
    for base_name in ("course", "course_unk", "course_fuse"):
        yield base_name, base_name, {}, {}, False, "tokenizers"
    yield "course, merges of dropped bytes", "course", {"post_processor": byte_level()}, {}, False, "tokenizers"
    yield "course, byte_fallback without its tokens", "course_unk", {"model": {"byte_fallback": True}}, {}, False, "tokenizers"

    def json_form(name, **patch):
        return name, "full", patch, {}, False, "tokenizers"

    yield json_form("plain")
    yield json_form("template $A", post_processor=template("$A"))
    yield json_form("template bos", post_processor=template("bos $A", bos=0))
    yield json_form("template bos eos", post_processor=template("bos $A eos", bos=0, eos=1))
    yield json_form("Sequence with a template", post_processor=dict(type="Sequence", processors=[byte_level(trim_offsets=False), template("$A")]))
    yield json_form(
        "Sequence of two that add tokens",
        post_processor=dict(type="Sequence", processors=[dict(type="BertProcessing", sep=["x", 7], cls=["y", 8]), template("c $A d", c=5, d=6)]),
    )
    yield json_form("BertProcessing", post_processor=dict(type="BertProcessing", sep=["x", 7], cls=["y", 8]))
    yield json_form(
        "RobertaProcessing",
        post_processor=dict(type="RobertaProcessing", sep=["x", 7], cls=["y", 8], trim_offsets=True, add_prefix_space=False),
    )
    yield json_form("Sequence of ByteLevel", pre_tokenizer=dict(type="Sequence", pretokenizers=[byte_level()]))
    yield json_form(
        "Sequence in a Sequence",
        pre_tokenizer=dict(type="Sequence", pretokenizers=[dict(type="Sequence", pretokenizers=[byte_level(add_prefix_space=True)])]),
    )
    for name, first in (
        ("Split by GPT-2's pattern", split(PATTERN)),
        ("Split by tiktoken's pattern", split(TIKTOKEN)),
        ("Split that removes nothing", split(PATTERN, "Removed", True)),
    ):
        yield json_form(name, pre_tokenizer=dict(type="Sequence", pretokenizers=[first, byte_level(use_regex=False)]))
    yield json_form("Split and the pattern again", pre_tokenizer=dict(type="Sequence", pretokenizers=[split(PATTERN), byte_level()]))
    yield json_form("no pattern", pre_tokenizer=byte_level(use_regex=False))
    yield json_form("no pattern, a prefix space", pre_tokenizer=byte_level(use_regex=False, add_prefix_space=True))
    yield json_form("normalizers of nothing", normalizer=dict(type="Sequence", normalizers=[]))
    yield json_form("options of a call", padding=None, truncation=None)
    yield json_form("fields that change nothing", model=dict(dropout=None, unk_token=EOT, continuing_subword_prefix="", end_of_word_suffix="", byte_fallback=True, fuse_unk=True))
    yield json_form("ignore_merges", model=dict(ignore_merges=True, merges=[]))
    yield json_form("ignore_merges, no pattern", model=dict(ignore_merges=True, merges=[]), pre_tokenizer=byte_level(use_regex=False))
    yield json_form("a merge twice", model=dict(merges=None))
    yield json_form("an empty token, and one of other characters", model=dict(vocab={"": n, "▁the": n + 1, "a b": n + 2}), added_tokens=[at(EOT, 0, special=True)])
    eot = at(EOT, 0, special=True, normalized=False)
    for flags in ("single_word", "lstrip", "rstrip", "lstrip rstrip single_word", "special", "special lstrip", ""):
        on = {flag: True for flag in flags.split()}
        yield json_form(f"added tokens: {flags}", added_tokens=[eot, at("foo", n, **on), at("<s1>", n + 1, **on), at("<s1", n + 2), at("_", -1, **on) if flags else at("<s1><s2>", n + 3)])
    yield json_form("an added token that the vocabulary has", added_tokens=[eot, at("the", -1)])
    yield json_form("an added token twice", added_tokens=[eot, at("<s1>", n), at("<s1>", n, lstrip=True)])
    yield json_form("an added token without text", added_tokens=[eot, at("<s1>", n), at("", n + 1)])
    yield json_form("white space as added tokens", added_tokens=[eot, at("  ", n), at("\n", n + 1, special=True, normalized=False), at("\u00a0", n + 2, lstrip=True)])

    def by_transformers(name, files, is_split, **patch):
        return name, "full", patch, files, is_split, "transformers"

    cfg, add, smap = "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"
    one = {"added_tokens": [eot]}
    s1, s2 = {"<s1>": n, "<s2>": n + 1}, ["<s1>"]
    decoder = {"0": at(EOT, special=True, normalized=False), str(n): at("<s1>", special=True, normalized=False, lstrip=True), str(n + 1): at("<s2>", rstrip=True)}
    for is_split in (False, True):
        where = "split" if is_split else "whole"
        yield by_transformers(f"{where}: nothing beside it", {}, is_split, **one)
        yield by_transformers(f"{where}: no added tokens", {}, is_split, added_tokens=[])
        yield by_transformers(f"{where}: no roles", {cfg: dict(bos_token=None, eos_token=None, unk_token=None)}, is_split, added_tokens=[])
        yield by_transformers(f"{where}: eos_token alone", {cfg: dict(eos_token=EOT)}, is_split, added_tokens=[])
        yield by_transformers(f"{where}: added_tokens.json", {add: s1}, is_split, **one)
        yield by_transformers(f"{where}: added_tokens.json and a map", {add: s1, smap: dict(additional_special_tokens=s2, pad_token="<s2>")}, is_split, **one)
        yield by_transformers(f"{where}: added_tokens_decoder", {cfg: dict(added_tokens_decoder=decoder)}, is_split, **one)
        yield by_transformers(f"{where}: added_tokens_decoder before the other files", {cfg: dict(added_tokens_decoder=decoder), add: {"<s1>": n}, smap: dict(pad_token="<new>")}, is_split, **one)
        yield by_transformers(f"{where}: roles without ids", {cfg: dict(mask_token="<new>", speaker_token="<spk>", extra_special_tokens=["<s1>"], additional_special_tokens=["<s2>"])}, is_split, **one)
        yield by_transformers(f"{where}: additional_special_tokens", {cfg: dict(additional_special_tokens=["<s1>", "<s2>"])}, is_split, **one)
        yield by_transformers(f"{where}: named extra tokens", {cfg: dict(extra_special_tokens={"a_token": "<s1>", "b_token": "<s2>"})}, is_split, **one)
        yield by_transformers(f"{where}: a token as an object", {cfg: dict(eos_token=dict(at("<new>", lstrip=True, normalized=False), __type="AddedToken"))}, is_split, **one)
        yield by_transformers(f"{where}: the map before the config", {cfg: dict(sep_token="<s1>"), smap: dict(sep_token=dict(content="<s2>", lstrip=False, rstrip=True, normalized=False, single_word=False))}, is_split, **one)
        yield by_transformers(f"{where}: add_prefix_space", {cfg: dict(add_prefix_space=True)}, is_split, **one)
        yield by_transformers(f"{where}: add_bos_token", {cfg: dict(add_bos_token=True)}, is_split, **one)
        yield by_transformers(f"{where}: add_bos_token and add_eos_token", {cfg: dict(add_bos_token=True, add_eos_token=True, eos_token="<new>")}, is_split, **one)
        yield by_transformers(f"{where}: empty roles", {cfg: dict(sep_token="", additional_special_tokens=[])}, is_split, **one)
    yield by_transformers("of another class", {cfg: dict(tokenizer_class="PreTrainedTokenizerFast", add_prefix_space=True, eos_token="<s1>")}, False, **one)
    yield by_transformers("of another class, a prefix space", {cfg: dict(tokenizer_class="PreTrainedTokenizerFast", add_prefix_space=False)}, False, pre_tokenizer=byte_level(add_prefix_space=True), **one)
    yield by_transformers("a prefix space that the config takes back", {cfg: dict(add_prefix_space=False)}, False, pre_tokenizer=byte_level(add_prefix_space=True), **one)
    yield by_transformers("a prefix space that the config forgets", {cfg: dict(model_max_length=1024)}, False, pre_tokenizer=byte_level(add_prefix_space=True), **one)
    yield by_transformers("an added token by the template", {cfg: dict(add_bos_token=True)}, False, post_processor=template("bos $A", bos=0), **one)


def encoder(tokenizer, files, is_split, by):
    with tempfile.TemporaryDirectory() as directory:
        def write(name, text):
            with open(f"{directory}/{name}", "w", encoding="utf-8") as file:
                file.write(text)

        write("config.json", '{"model_type": "gpt2"}')
        if is_split:
            write("vocab.json", json.dumps(tokenizer["model"]["vocab"]))
            merges = [m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]]
            write("merges.txt", "#version: 0.2\n" + "\n".join(merges) + "\n")
        else:
            write("tokenizer.json", json.dumps(tokenizer))
        for name, content in files.items():
            write(name, json.dumps(content))
        if by == "transformers":
            loaded = AutoTokenizer.from_pretrained(directory)
            return lambda text: loaded(text).input_ids
        loaded = Tokenizer.from_file(directory + "/tokenizer.json")
        return lambda text: loaded.encode(text).ids


def main():
    rng = random.Random(12)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bases = {
        "full": base(330, sorted(alphabet), [EOT]),
        "course": base(80, [], [EOT]),
        "course_unk": base(80, [], [EOT, "[UNK]"], unk_token="[UNK]"),
        "course_fuse": base(80, [], [EOT, "[UNK]"], unk_token="[UNK]", fuse_unk=True),
    }
    for name, tokenizer in bases.items():
        print(json.dumps({"base": name, "tokenizer": tokenizer}, ensure_ascii=False))
    n = len(bases["full"]["model"]["vocab"])
    for name, base_name, patch, files, is_split, by in forms(n):
        tokenizer = copy.deepcopy(bases[base_name])
        patch = copy.deepcopy(patch)
        vocab = tokenizer["model"]["vocab"]
        for token in patch.get("added_tokens", []):
            if token["id"] == -1:
                token["id"] = vocab[token["content"]]
        if patch.get("model", {}).get("merges", 1) is None:
            merges = tokenizer["model"]["merges"]
            patch["model"]["merges"] = merges + merges[:3]
        merge(tokenizer, patch)
        try:
            encode = encoder(tokenizer, files, is_split, by)
        except Exception as error:  # a form that the libraries do not read is no form
            print(f"{name}: {error}", file=sys.stderr)
            continue
        texts = ["", " ", "Hi", " Hi", *("".join(rng.choices(WORDS, k=rng.randint(1, 14))) for _ in range(26))]
        row = {"name": name, "base": base_name, "by": by, "is_split": is_split, "patch": patch, "files": files}
        row["cases"] = [[text, encode(text)] for text in texts]
        print(json.dumps(row, ensure_ascii=False))


if __name__ == "__main__":
    main()
