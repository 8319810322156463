#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/json.h"
#include "tokenizer/added_tokens.h"
#include "tokenizer/bpe.h"

namespace caravan {

/// What a BPE model says beside vocabulary and merges.
struct BpeFields {
  std::string unk_token;  // "" for none
  bool fuses_unk = false;
  bool has_byte_fallback = false;
  bool ignores_merges = false;
};

/// Puts a vocabulary, added tokens and merges together and checks that they belong together: each
/// id is used once, every merge joins two tokens to a third. Ids may leave holes, up to 2^20 of
/// them. Errors: kCorrupt and kUnsupported naming file and place.
class VocabularyBuilder {
 public:
  /// `vocab` maps tokens, in the byte alphabet, to ids; `where` names it. It must outlive this.
  VocabularyBuilder(const boost::json::object& vocab, std::string where);

  /// Id that the vocabulary gives to this string, or nullptr.
  const boost::json::value* vocab_id(std::string_view content) const;
  const std::string& where() const { return where_; }

  /// Adds a token, whose content the caller adds once; it is not empty. A token that the vocabulary
  /// has too must have the same id there. Without an id it gets the next one above all others.
  void add_token(AddedToken token, std::optional<int64_t> id, const std::string& where);
  /// Leaves out the id that the next token without one would get.
  void skip_id();

  /// Ends the list of tokens; add_merge() may follow.
  void finish_tokens(size_t num_merges, const BpeFields& fields);

  /// The merges in order of rank, first those of rank 0. `place` gives the text for messages; it is
  /// called only when something is wrong.
  template <typename Place>
  void add_merge(std::string_view left, std::string_view right, const Place& place) {
    const std::string problem = try_add_merge(left, right);
    if (!problem.empty()) fail_merge(place(), problem);
  }

  Bpe build_bpe();
  std::vector<AddedToken> take_added_tokens() { return std::move(added_tokens_); }

 private:
  struct PendingToken {
    AddedToken token;
    std::optional<int64_t> id;
    std::string where;
    int64_t num_skipped = 0;  // ids that are left out before it
  };

  void choose_ids();
  void set_token(int32_t id, std::string_view bytes, bool is_searchable, const std::string& where);
  void set_vocab_tokens();
  void set_bytes(const BpeFields& fields);
  std::string try_add_merge(std::string_view left, std::string_view right);
  [[noreturn]] static void fail_merge(const std::string& where, const std::string& problem);

  const boost::json::object& vocab_;
  std::string where_;
  int64_t num_skipped_ = 0;
  int32_t num_ids_ = 0;
  std::vector<PendingToken> pending_;  // by content from finish_tokens() on
  std::vector<AddedToken> added_tokens_;
  TokenTable tokens_;
  MergeTable merges_;
  BpeOptions options_;
  std::string buffer_;  // bytes of a merge's two tokens, one after the other
};

/// Splits "a b" into its two tokens. Returns false unless there is exactly one space, inside.
bool split_merge(std::string_view merge, std::string_view& left, std::string_view& right);

}  // namespace caravan
