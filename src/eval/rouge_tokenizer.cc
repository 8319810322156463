#include "eval/rouge_tokenizer.h"

#include "eval/porter_stemmer.h"

namespace caravan {

namespace {

constexpr size_t kShortestStemmed = 4;

bool is_word_char(char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'); }

}  // namespace

std::vector<std::string> rouge_tokenize(std::string_view text, bool use_stemmer) {
  std::vector<std::string> tokens;
  std::string word;
  const auto end_word = [&] {
    if (use_stemmer && word.size() >= kShortestStemmed) word = porter_stem(word);
    if (!word.empty()) tokens.push_back(word);
    word.clear();
  };
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (is_word_char(c)) {
      word.push_back(c);
    } else if (c >= 'A' && c <= 'Z') {
      word.push_back(static_cast<char>(c - 'A' + 'a'));
    } else if (text.substr(i).starts_with("\xe2\x84\xaa")) {  // U+212A
      word.push_back('k');
      i += 2;
    } else if (text.substr(i).starts_with("\xc4\xb0")) {  // U+0130
      word.push_back('i');
      end_word();
      i += 1;
    } else {
      end_word();
    }
  }
  end_word();
  return tokens;
}

}  // namespace caravan
