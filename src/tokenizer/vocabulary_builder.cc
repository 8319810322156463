#include "tokenizer/vocabulary_builder.h"

#include <algorithm>
#include <climits>
#include <cstdint>
#include <utility>

#include "core/error.h"
#include "core/keyed_hash.h"
#include "core/log.h"
#include "tokenizer/byte_alphabet.h"
#include "tokenizer/json_fields.h"

namespace caravan {

namespace json = boost::json;

namespace {

// Longer than any real one; keeps the search for added tokens linear in the text.
constexpr size_t kMaxAddedTokenBytes = 1024;
// Ids without a token, of a vocabulary that was padded or pruned. Each takes memory.
constexpr int64_t kMaxHoles = int64_t{1} << 20;

}  // namespace

VocabularyBuilder::VocabularyBuilder(const json::object& vocab, std::string where)
    : vocab_(vocab), where_(std::move(where)), tokens_(0), merges_(0) {}

const json::value* VocabularyBuilder::vocab_id(std::string_view content) const {
  return vocab_.if_contains(content);
}

void VocabularyBuilder::add_token(AddedToken token, std::optional<int64_t> id,
                                  const std::string& where) {
  CARAVAN_CHECK_CODE(token.content.size() <= kMaxAddedTokenBytes, kUnsupported,
                     "{}: the added token has {} bytes, at most {} are supported", where,
                     token.content.size(), kMaxAddedTokenBytes);
  pending_.push_back({std::move(token), id, where, std::exchange(num_skipped_, 0)});
}

void VocabularyBuilder::skip_id() { ++num_skipped_; }

void VocabularyBuilder::set_token(int32_t id, std::string_view bytes, bool is_searchable,
                                  const std::string& where) {
  CARAVAN_CHECK_CODE(!tokens_.has(id), kCorrupt, "{}: id {} belongs to the token \"{}\" already",
                     where, id, printable(tokens_.bytes(id)));
  tokens_.set(id, bytes, is_searchable);
}

// Gives every added token its id; num_ids_ is the largest id + 1.
void VocabularyBuilder::choose_ids() {
  int64_t num_tokens = static_cast<int64_t>(vocab_.size());
  for (const PendingToken& added : pending_) {
    if (vocab_id(added.token.content) == nullptr) ++num_tokens;
  }
  CARAVAN_CHECK_CODE(num_tokens < INT32_MAX / 4, kUnsupported, "{}: {} tokens are too many", where_,
                     num_tokens);
  int64_t end = 0;
  const auto count = [&](int64_t id, const auto& place) {
    CARAVAN_CHECK_CODE(id < num_tokens + kMaxHoles, kUnsupported,
                       "{}: the id {} is too far above the {} tokens: at most {} ids without a "
                       "token are supported",
                       place(), id, num_tokens, kMaxHoles);
    end = std::max(end, id + 1);
  };
  for (const auto& member : vocab_) {
    const std::string_view key(member.key().data(), member.key().size());
    // The place is put into words only for a message: 50 thousand tokens go through here.
    const auto place = [&] { return fmt::format("{}[\"{}\"]", where_, printable(key)); };
    const json::value& id = member.value();
    if (!id.is_int64() || id.get_int64() < 0) expect_id(id, place());
    count(id.get_int64(), place);
  }
  std::vector<int64_t> new_ids;
  for (const PendingToken& added : pending_) {
    if (!added.id) continue;
    count(*added.id, [&] { return added.where; });
    if (vocab_id(added.token.content) == nullptr) new_ids.push_back(*added.id);
  }
  for (PendingToken& added : pending_) {
    const json::value* in_vocab = vocab_id(added.token.content);
    if (!added.id) {
      added.id = in_vocab != nullptr ? in_vocab->get_int64() : end + added.num_skipped;
      end = std::max(end, *added.id + 1);
    }
    CARAVAN_CHECK_CODE(in_vocab == nullptr || *in_vocab == *added.id, kCorrupt,
                       "{}: id {}, but {} gives \"{}\" the id {}", added.where, *added.id, where_,
                       printable(added.token.content), in_vocab->get_int64());
    added.token.id = static_cast<int32_t>(*added.id);
  }
  num_ids_ = static_cast<int32_t>(end);

  std::sort(new_ids.begin(), new_ids.end());
  for (size_t i = 0; i < new_ids.size(); ++i) {
    const auto counted = static_cast<int64_t>(vocab_.size() + i);
    if (new_ids[i] == counted) continue;
    log_warning(
        "{}: the added token with the id {} keeps it; transformers would give it {}, the "
        "next after {} tokens",
        where_, new_ids[i], counted, counted);
    break;
  }
}

void VocabularyBuilder::set_vocab_tokens() {
  std::sort(pending_.begin(), pending_.end(), [](const PendingToken& a, const PendingToken& b) {
    return a.token.content < b.token.content;
  });
  const auto is_special = [&](std::string_view key) {
    const auto it = std::lower_bound(
        pending_.begin(), pending_.end(), key,
        [](const PendingToken& a, std::string_view wanted) { return a.token.content < wanted; });
    return it != pending_.end() && it->token.content == key && it->token.is_special;
  };
  std::string bytes;
  size_t num_strangers = 0;
  std::string first_stranger;
  for (const auto& member : vocab_) {
    const std::string_view key(member.key().data(), member.key().size());
    if (key.empty()) continue;  // text never gives it, and it gives no text
    const auto id = static_cast<int32_t>(member.value().get_int64());
    bytes.clear();
    const std::optional<uint32_t> stranger = append_token_bytes(key, bytes);
    // A special token's text stands for itself. A token outside the alphabet does as well:
    // ByteLevel never gives its characters and decodes them as they are.
    const bool is_literal = stranger || (bytes != key && is_special(key));
    if (stranger && !is_special(key) && ++num_strangers == 1) {
      first_stranger =
          fmt::format("{}[\"{}\"]: the character U+{:04X} is", where_, printable(key), *stranger);
    }
    const std::string_view text = is_literal ? key : std::string_view(bytes);
    if (tokens_.has(id)) {
      set_token(id, text, !is_literal, fmt::format("{}[\"{}\"]", where_, printable(key)));
    }
    tokens_.set(id, text, !is_literal);
  }
  CARAVAN_CHECK_CODE(2 * num_strangers <= vocab_.size(), kUnsupported,
                     "{} not one of the 256 that stand for bytes, and {} of {} tokens have such; "
                     "only byte-level BPE is supported",
                     first_stranger, num_strangers, vocab_.size());
}

// Finds the tokens of the single bytes, and what stands for those that have none.
void VocabularyBuilder::set_bytes(const BpeFields& fields) {
  int num_missing = 0;
  int first_missing = 0;
  for (int byte = 255; byte >= 0; --byte) {
    const auto c = static_cast<char>(byte);
    const int32_t id = tokens_.find({&c, 1});
    options_.byte_ids[static_cast<size_t>(byte)] = id;
    if (id >= 0) continue;
    ++num_missing;
    first_missing = byte;
  }
  if (num_missing == 0) return;
  CARAVAN_CHECK_CODE(num_missing < 256, kUnsupported,
                     "{}: no byte has a token; only byte-level BPE is supported", where_);
  for (int byte = 0; fields.has_byte_fallback && byte < 256; ++byte) {
    const std::string token = fmt::format("<0x{:02X}>", byte);
    CARAVAN_CHECK_CODE(vocab_id(token) == nullptr, kUnsupported,
                       "{}: byte_fallback to the token \"{}\" is not supported", where_, token);
  }
  std::string_view what = "text loses them";
  if (!fields.unk_token.empty()) {
    const json::value* id = vocab_id(fields.unk_token);
    CARAVAN_CHECK_CODE(id != nullptr, kUnsupported,
                       "{}: {} of the 256 bytes have no token (the first is 0x{:02X}), and the "
                       "unk_token \"{}\" that would stand for them has none either",
                       where_, num_missing, first_missing, printable(fields.unk_token));
    options_.unk_id = static_cast<int32_t>(id->get_int64());
    options_.fuses_unk = fields.fuses_unk;
    what = "unk_token stands for them";
  }
  log_warning("{}: {} of the 256 bytes have no token (the first is 0x{:02X}): {}", where_,
              num_missing, first_missing, what);
}

void VocabularyBuilder::finish_tokens(size_t num_merges, const BpeFields& fields) {
  choose_ids();
  tokens_ = TokenTable(static_cast<size_t>(num_ids_));
  merges_ = MergeTable(num_merges);
  set_vocab_tokens();
  for (PendingToken& added : pending_) {
    if (vocab_id(added.token.content) == nullptr) {
      set_token(added.token.id, added.token.content, false, added.where);
    }
    if (added.token.is_special) options_.never_whole.push_back(added.token.id);
    added_tokens_.push_back(std::move(added.token));
  }
  pending_.clear();
  set_bytes(fields);
  options_.ignores_merges = fields.ignores_merges;
}

std::string VocabularyBuilder::try_add_merge(std::string_view left, std::string_view right) {
  buffer_.clear();
  const auto find = [&](std::string_view written, size_t begin) {
    if (written.empty() || append_token_bytes(written, buffer_)) return -1;
    return tokens_.find(std::string_view(buffer_).substr(begin));
  };
  const int32_t left_id = find(left, 0);
  const int32_t right_id = left_id < 0 ? -1 : find(right, buffer_.size());
  const int32_t merged_id = right_id < 0 ? -1 : tokens_.find(buffer_);
  if (merged_id >= 0) {
    merges_.add({left_id, right_id, merged_id});
    return "";
  }
  const std::string merged = std::string(left).append(right);
  for (const auto& [written, what] : {std::pair{left, "left"}, std::pair{right, "right"},
                                      std::pair{std::string_view(merged), "merged"}}) {
    if (vocab_id(written) == nullptr) {
      return fmt::format("the {} token \"{}\" is not in the vocabulary", what, printable(written));
    }
  }
  return "";  // of tokens that text never gives
}

void VocabularyBuilder::fail_merge(const std::string& where, const std::string& problem) {
  CARAVAN_FAIL(kCorrupt, "{}: {}", where, problem);
}

Bpe VocabularyBuilder::build_bpe() { return Bpe(std::move(tokens_), std::move(merges_), options_); }

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
