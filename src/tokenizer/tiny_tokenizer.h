#pragma once

#include <string>

#include "tokenizer/byte_alphabet.h"
#include "tokenizer/tokenizer.h"

namespace caravan::testing {

/// The 256 byte tokens as members of a JSON object: the byte b has the id b.
inline std::string byte_vocab_members() {
  std::string members;
  for (int byte = 0; byte < 256; ++byte) {
    std::string written = written_form(std::string(1, static_cast<char>(byte)));
    if (written == "\"" || written == "\\") written.insert(0, "\\");
    if (byte > 0) members += ", ";
    members += "\"" + written + "\": " + std::to_string(byte);
  }
  return members;
}

/// A tokenizer of 261 tokens in the form tokenizer.json: the bytes, "ab", "abc", " a", and two
/// added tokens of which one is in the vocabulary. Tests edit its text.
inline TokenizerFiles tiny_tokenizer_json() {
  TokenizerFiles files;
  files.directory = "/m";
  files.tokenizer_json = R"({
    "version": "1.0", "truncation": null, "padding": null,
    "added_tokens": [
      {"id": 259, "content": "<|end|>", "single_word": false, "lstrip": false, "rstrip": false,
       "normalized": false, "special": true},
      {"id": 260, "content": "[PAD]", "single_word": false, "lstrip": false, "rstrip": false,
       "normalized": true, "special": false}],
    "normalizer": null,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                      "use_regex": true},
    "post_processor": {"type": "ByteLevel"},
    "decoder": {"type": "ByteLevel"},
    "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
              "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false,
              "vocab": {)" +
                         byte_vocab_members() +
                         R"(, "ab": 256, "abc": 257, "Ġa": 258, "<|end|>": 259},
              "merges": ["a b", "ab c", ["Ġ", "a"]]}})";
  return files;
}

/// The same tokenizer in the other form.
inline TokenizerFiles tiny_vocab_and_merges() {
  TokenizerFiles files;
  files.directory = "/m";
  files.vocab_json =
      "{" + byte_vocab_members() + R"(, "ab": 256, "abc": 257, "Ġa": 258, "<|end|>": 259})";
  files.merges_txt = "#version: 0.2\na b\nab c\nĠ a\n";
  files.added_tokens_json = R"({"[PAD]": 260})";
  files.special_tokens_map_json =
      R"({"bos_token": "<|end|>", "eos_token": {"content": "<|end|>", "lstrip": false,
          "normalized": true, "rstrip": false, "single_word": false}})";
  files.tokenizer_config_json = R"({"add_prefix_space": false, "model_max_length": 1024})";
  return files;
}

/// Replaces the one occurrence of `from`; a test that finds none is wrong and says so.
inline std::string replace_once(std::string text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  if (at == std::string::npos || text.find(from, at + 1) != std::string::npos) {
    return "the text to replace is not there exactly once: " + from;
  }
  return text.replace(at, from.size(), to);
}

}  // namespace caravan::testing
