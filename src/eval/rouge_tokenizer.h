#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace caravan {

/// The words of a text as rouge-score's DefaultTokenizer sees them: Python's str.lower(), then the
/// runs of a-z and 0-9; everything else, other letters too, is space between them. Two characters
/// outside ASCII have a lower form with an ASCII letter: U+0130 becomes "i" and a combining dot,
/// which is space; U+212A (the Kelvin sign) becomes "k".
/// With the stemmer, words of more than 3 characters become their Porter stem.
/// text: UTF-8; bytes that are no UTF-8 are space.
/// Source: rouge-score 0.1.2, tokenize.py.
std::vector<std::string> rouge_tokenize(std::string_view text, bool use_stemmer);

}  // namespace caravan
