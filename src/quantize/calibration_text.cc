#include "quantize/calibration_text.h"

#include <algorithm>
#include <span>
#include <string_view>

#include "core/error.h"
#include "core/json.h"
#include "core/mapped_file.h"
#include "core/text_input.h"
#include "format/checksum.h"

namespace caravan {

namespace {

constexpr size_t kMaxLineBytes = size_t{16} << 20;
// Bytes of plain text read for each token that is wanted. English takes 4 to 5.
constexpr int64_t kBytesPerToken = 8;

class Samples {
 public:
  Samples(const std::string& path, int64_t vocab_size, int64_t num_samples, int64_t max_len)
      : path_(path),
        vocab_size_(vocab_size),
        num_samples_(static_cast<size_t>(num_samples)),
        max_len_(static_cast<size_t>(max_len)) {}

  bool is_full() const { return text_.samples.size() >= num_samples_; }
  size_t max_len() const { return max_len_; }

  void add(std::span<const int32_t> ids) {
    ids = ids.first(std::min(ids.size(), max_len_));
    if (ids.empty() || is_full()) return;
    for (const int32_t id : ids) {
      CARAVAN_CHECK(id >= 0 && id < vocab_size_,
                    "{}: token {} is outside the model's vocabulary of {}: is this the tokenizer "
                    "of the model?",
                    path_, id, vocab_size_);
    }
    text_.samples.emplace_back(ids.begin(), ids.end());
  }

  CalibrationText finish() {
    CARAVAN_CHECK(!text_.samples.empty(), "--calibrate-kv-cache {}: no text in it", path_);
    Xxh3 hash;
    for (const std::vector<int32_t>& sample : text_.samples) {
      const auto length = static_cast<uint64_t>(sample.size());
      hash.update(std::as_bytes(std::span(&length, 1)));
      hash.update(std::as_bytes(std::span(sample)));
    }
    text_.xxh3 = hash.digest();
    return std::move(text_);
  }

 private:
  const std::string& path_;
  int64_t vocab_size_;
  size_t num_samples_;
  size_t max_len_;
  CalibrationText text_;
};

void add_lines(std::string_view text, const std::string& path, const Tokenizer& tokenizer,
               Samples& samples) {
  for (int64_t line = 1; !text.empty() && !samples.is_full(); ++line) {
    const std::string_view row = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(text.size(), row.size() + 1));
    if (row.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const std::string where = fmt::format("{}: line {}", path, line);
    CARAVAN_CHECK_CODE(row.size() <= kMaxLineBytes, kCorrupt, "{}: {} bytes, expected at most {}",
                       where, row.size(), kMaxLineBytes);
    const boost::json::value value = parse_json(row, where);
    const boost::json::value* content =
        value.is_object() ? value.get_object().if_contains("text") : nullptr;
    CARAVAN_CHECK_CODE(content != nullptr && content->is_string(), kCorrupt,
                       "{}: expected an object with a string \"text\"", where);
    const boost::json::string& string = content->get_string();
    samples.add(tokenizer.encode({string.data(), string.size()}));
  }
}

void add_pieces(std::string_view text, int64_t num_samples, const Tokenizer& tokenizer,
                Samples& samples) {
  const auto wanted =
      static_cast<size_t>(num_samples) * samples.max_len() * static_cast<size_t>(kBytesPerToken);
  if (text.size() > wanted) {
    // Not inside a word, so that its tokens are those of the whole text.
    const size_t space = text.find_last_of(" \n", wanted);
    text = text.substr(0, space == std::string_view::npos ? wanted : space);
  }
  const std::vector<int32_t> ids = tokenizer.encode(text);
  std::span<const int32_t> left = ids;
  while (!left.empty() && !samples.is_full()) {
    samples.add(left);
    left = left.subspan(std::min(left.size(), samples.max_len()));
  }
}

}  // namespace

int64_t CalibrationText::num_tokens() const {
  int64_t total = 0;
  for (const std::vector<int32_t>& sample : samples) total += static_cast<int64_t>(sample.size());
  return total;
}

CalibrationText read_calibration_text(const std::string& path, const Tokenizer& tokenizer,
                                      int64_t vocab_size, int64_t num_samples, int64_t max_len) {
  constexpr size_t kMaxPipedBytes = size_t{1} << 30;
  const bool is_piped = path == "-";
  const MappedFile file = is_piped ? MappedFile() : MappedFile::open(path);
  const std::string piped = is_piped ? read_text_file(path, kMaxPipedBytes) : "";
  const std::string_view text = skip_byte_order_mark(
      is_piped ? std::string_view(piped)
               : std::string_view(reinterpret_cast<const char*>(file.data()), file.size()));
  check_not_lfs_pointer(text, path);
  Samples samples(path, vocab_size, num_samples, max_len);
  const size_t first = text.find_first_not_of(" \t\r\n");
  if (first != std::string_view::npos && text[first] == '{') {
    add_lines(text, path, tokenizer, samples);
  } else {
    add_pieces(text, num_samples, tokenizer, samples);
  }
  return samples.finish();
}

}  // namespace caravan
