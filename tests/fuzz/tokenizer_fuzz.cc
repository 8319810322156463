// libFuzzer target of the tokenizer. The first byte of the input says what the rest is: the files
// of a tokenizer, or text and ids for a fixed vocabulary.

#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "core/error.h"
#include "tests/fuzz/cpu_budget.h"
#include "tokenizer/detokenizer.h"
#include "tokenizer/tiny_tokenizer.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/utf8.h"

namespace caravan {
namespace {

constexpr Tokenizer::EncodeOptions kParseSpecial{.parse_special = true};

void require(bool is_true) {
  if (!is_true) std::abort();
}

std::string sanitized(std::string_view bytes) {
  std::string text;
  append_sanitized_utf8(bytes, true, text);
  return text;
}

void check_detokenizer(const Tokenizer& tokenizer, const std::vector<int32_t>& ids) {
  Detokenizer detokenizer(tokenizer, false);
  std::string text;
  for (const int32_t id : ids) {
    const std::string part = detokenizer.push(id);
    require(sanitized(part) == part);
    text += part;
  }
  text += detokenizer.flush();
  require(text == sanitized(tokenizer.decode(ids)));
}

// Whatever loads must also work; whatever does not load must say so by an Error.
void fuzz_files(const TokenizerFiles& files) {
  try {
    const Tokenizer tokenizer = Tokenizer::from_files(files);
    const std::vector<int32_t> ids =
        tokenizer.encode("Hello abc  <|end|> \xC3\xA9\xFF", kParseSpecial);
    tokenizer.decode(ids);
  } catch (const Error& e) {
    require(std::string_view(e.what()).find('\n') == std::string_view::npos);
  }
}

// The next of several texts with a zero byte between them.
std::string take_part(std::string_view& rest) {
  const size_t end = rest.find('\0');
  const std::string part(rest.substr(0, end));
  rest.remove_prefix(end == std::string_view::npos ? rest.size() : end + 1);
  return part;
}

// Members for the tiny vocabulary, its merges and the smaller files.
void fuzz_vocab_and_merges(std::string_view data) {
  TokenizerFiles files = testing::tiny_vocab_and_merges();
  const std::string members = take_part(data);
  if (!members.empty()) {
    files.vocab_json = "{" + testing::byte_vocab_members() + ", " + members + "}";
  }
  files.merges_txt = take_part(data);
  if (!data.empty()) files.added_tokens_json = take_part(data);
  if (!data.empty()) files.special_tokens_map_json = take_part(data);
  if (!data.empty()) files.tokenizer_config_json = take_part(data);
  fuzz_files(files);
}

// The vocabulary and the byte tokens are long: a part of tokenizer.json that goes in before them.
void fuzz_tokenizer_json(std::string_view data) {
  TokenizerFiles files = testing::tiny_tokenizer_json();
  const std::string added = take_part(data);
  const std::string merges = take_part(data);
  files.tokenizer_json =
      testing::replace_once(*files.tokenizer_json, "\"normalizer\": null,",
                            std::string(data.empty() ? "\"normalizer\": null," : data));
  files.tokenizer_json = testing::replace_once(*files.tokenizer_json, "\"added_tokens\": [",
                                               "\"added_tokens\": [" + added);
  files.tokenizer_json =
      testing::replace_once(*files.tokenizer_json, "\"merges\": [", "\"merges\": [" + merges);
  fuzz_files(files);
}

void fuzz_text(std::string_view text) {
  static const Tokenizer tokenizer = Tokenizer::from_files(testing::tiny_tokenizer_json());
  for (const auto options : {Tokenizer::EncodeOptions{}, kParseSpecial}) {
    const std::vector<int32_t> ids = tokenizer.encode(text, options);
    require(tokenizer.decode(ids) == text);
    check_detokenizer(tokenizer, ids);
  }
}

void fuzz_ids(std::string_view data) {
  static const Tokenizer tokenizer = Tokenizer::from_files(testing::tiny_tokenizer_json());
  std::vector<int32_t> ids;
  for (size_t i = 0; i + 1 < data.size(); i += 2) {
    const int32_t number = static_cast<uint8_t>(data[i]) * 256 + static_cast<uint8_t>(data[i + 1]);
    ids.push_back(number % tokenizer.vocab_size());
  }
  check_detokenizer(tokenizer, ids);
}

}  // namespace
}  // namespace caravan

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const caravan::CpuBudget budget(size);
  if (size == 0) return 0;
  const std::string_view rest(reinterpret_cast<const char*>(data) + 1, size - 1);
  switch (data[0] % 6) {
    case 0: {
      caravan::TokenizerFiles files;
      files.directory = "/m";
      files.tokenizer_json = rest;
      caravan::fuzz_files(files);
      break;
    }
    case 1: {
      caravan::TokenizerFiles files;
      files.directory = "/m";
      std::string_view parts = rest;
      files.vocab_json = caravan::take_part(parts);
      files.merges_txt = parts;
      caravan::fuzz_files(files);
      break;
    }
    case 2:
      caravan::fuzz_vocab_and_merges(rest);
      break;
    case 3:
      caravan::fuzz_tokenizer_json(rest);
      break;
    case 4:
      caravan::fuzz_text(rest);
      break;
    case 5:
      caravan::fuzz_ids(rest);
      break;
  }
  return 0;
}
