#include "tokenizer/vocabulary_builder.h"

#include <algorithm>

#include "core/error.h"
#include "core/keyed_hash.h"
#include "tokenizer/byte_alphabet.h"
#include "tokenizer/json_fields.h"

namespace caravan {

namespace json = boost::json;

namespace {

// Longer than any real one; keeps the search for added tokens linear in the text.
constexpr size_t kMaxAddedTokenBytes = 1024;

}  // namespace

VocabularyBuilder::VocabularyBuilder(const json::object& vocab, std::string where)
    : vocab_(vocab), where_(std::move(where)), tokens_(0), merges_(0) {}

const json::value* VocabularyBuilder::vocab_id(std::string_view content) const {
  return vocab_.if_contains(content);
}

void VocabularyBuilder::add_token(AddedToken token, const json::value& id,
                                  const std::string& where) {
  CARAVAN_CHECK_CODE(!token.content.empty(), kCorrupt, "{}: the token is empty", where);
  CARAVAN_CHECK_CODE(token.content.size() <= kMaxAddedTokenBytes, kUnsupported,
                     "{}: the added token has {} bytes, at most {} are supported", where,
                     token.content.size(), kMaxAddedTokenBytes);
  pending_.push_back({std::move(token), id, where});
}

void VocabularyBuilder::set_token(int32_t id, std::string_view bytes, bool is_searchable,
                                  const std::string& where) {
  CARAVAN_CHECK_CODE(!tokens_.has(id), kCorrupt, "{}: id {} belongs to the token \"{}\" already",
                     where, id, printable(tokens_.bytes(id)));
  tokens_.set(id, bytes, is_searchable);
}

void VocabularyBuilder::finish_tokens(size_t num_merges) {
  KeyedSet<std::string_view> added_contents;
  size_t num_tokens = vocab_.size();
  for (const PendingToken& added : pending_) {
    added_contents.insert(added.token.content);
    if (vocab_id(added.token.content) == nullptr) ++num_tokens;
  }
  CARAVAN_CHECK_CODE(num_tokens < INT32_MAX / 4, kUnsupported, "{}: {} tokens are too many", where_,
                     num_tokens);
  const auto limit = static_cast<int32_t>(num_tokens);
  tokens_ = TokenTable(num_tokens);
  merges_ = MergeTable(num_merges);

  std::string bytes;
  for (const auto& member : vocab_) {
    const std::string_view key(member.key().data(), member.key().size());
    const auto place = [&] { return fmt::format("{}[\"{}\"]", where_, printable(key)); };
    CARAVAN_CHECK_CODE(!key.empty(), kCorrupt, "{}: the token is empty", place());
    // The place is put into words only for a message: 50 thousand tokens go through here.
    const json::value& value = member.value();
    const bool is_good = value.is_int64() && value.get_int64() >= 0 && value.get_int64() < limit;
    if (!is_good) expect_id(value, limit, place());
    const auto id = static_cast<int32_t>(value.get_int64());
    bytes.clear();
    const std::optional<uint32_t> stranger = append_token_bytes(key, bytes);
    // The text of an added token stands for itself.
    const bool is_added = added_contents.contains(key);
    if (is_added && (stranger || bytes != key)) {
      set_token(id, key, false, place());
      continue;
    }
    CARAVAN_CHECK_CODE(!stranger, kUnsupported,
                       "{}: the character U+{:04X} is not one of the 256 that stand for bytes; "
                       "only byte-level BPE is supported",
                       place(), stranger.value_or(0));
    if (tokens_.has(id)) set_token(id, bytes, true, place());
    tokens_.set(id, bytes, true);
  }
  for (PendingToken& added : pending_) {
    added.token.id = expect_id(added.id, limit, added.where);
    const json::value* in_vocab = vocab_id(added.token.content);
    if (in_vocab == nullptr) {
      set_token(added.token.id, added.token.content, false, added.where);
    } else {
      CARAVAN_CHECK_CODE(*in_vocab == added.id, kCorrupt,
                         "{}: id {}, but the vocabulary gives \"{}\" the id {}", added.where,
                         added.token.id, printable(added.token.content), in_vocab->get_int64());
    }
    added_tokens_.push_back(std::move(added.token));
  }
  pending_.clear();

  for (size_t byte = 0; byte < byte_ids_.size(); ++byte) {
    const auto c = static_cast<char>(byte);
    byte_ids_[byte] = tokens_.find({&c, 1});
    CARAVAN_CHECK_CODE(byte_ids_[byte] >= 0, kCorrupt,
                       "{}: no token for the byte 0x{:02X}; byte-level BPE needs all 256", where_,
                       byte);
  }
}

std::string VocabularyBuilder::try_add_merge(std::string_view left, std::string_view right) {
  buffer_.clear();
  const auto find = [&](std::string_view written, size_t begin) {
    if (written.empty() || append_token_bytes(written, buffer_)) return -1;
    return tokens_.find(std::string_view(buffer_).substr(begin));
  };
  const auto unknown = [](std::string_view written, const char* what) {
    return fmt::format("{} \"{}\" is not in the vocabulary", what, printable(written));
  };
  const int32_t left_id = find(left, 0);
  if (left_id < 0) return unknown(left, "the left token");
  const int32_t right_id = find(right, buffer_.size());
  if (right_id < 0) return unknown(right, "the right token");
  const int32_t merged_id = tokens_.find(buffer_);
  if (merged_id < 0) return unknown(std::string(left).append(right), "the merged token");
  const int32_t earlier = merges_.add({left_id, right_id, merged_id});
  if (earlier >= 0) {
    return fmt::format("\"{} {}\" is listed twice, first as merge {} counted from 0",
                       printable(left), printable(right), earlier);
  }
  return "";
}

void VocabularyBuilder::fail_merge(const std::string& where, const std::string& problem) {
  CARAVAN_FAIL(kCorrupt, "{}: {}", where, problem);
}

Bpe VocabularyBuilder::build_bpe() {
  return Bpe(std::move(tokens_), std::move(merges_), byte_ids_);
}

bool split_merge(std::string_view merge, std::string_view& left, std::string_view& right) {
  const size_t space = merge.find(' ');
  if (space == std::string_view::npos || merge.find(' ', space + 1) != std::string_view::npos) {
    return false;
  }
  left = merge.substr(0, space);
  right = merge.substr(space + 1);
  return !left.empty() && !right.empty();
}

}  // namespace caravan
