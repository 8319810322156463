#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tokenizer/tokenizer.h"

namespace caravan {

/// What activations are collected on.
struct CalibrationText {
  std::vector<std::vector<int32_t>> samples;  // token ids, none empty
  uint64_t xxh3 = 0;                          // XXH3-64 of every sample's length and ids

  int64_t num_tokens() const;
};

/// The first `num_samples` samples of a file, each cut to `max_len` tokens. JSON lines (told by an
/// opening brace) with a string "text", as LAMBADA is published: one sample a line. Any other text:
/// pieces of max_len tokens, one after the other; no more of the file is read than they need.
/// Errors: kNotFound, kIo; kCorrupt naming the line; kInvalidArgument when there is no text, or a
/// token is outside the vocabulary of `vocab_size`.
CalibrationText read_calibration_text(const std::string& path, const Tokenizer& tokenizer,
                                      int64_t vocab_size, int64_t num_samples, int64_t max_len);

}  // namespace caravan
