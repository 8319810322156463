#pragma once

#include <array>
#include <string>
#include <string_view>
#include <vector>

#include "core/json.h"
#include "tokenizer/added_tokens.h"
#include "tokenizer/bpe.h"

namespace caravan {

/// Puts a vocabulary, added tokens and merges together and checks that they belong together: the
/// ids of all tokens are 0 to N-1, each used once; every byte has a token; every merge joins two
/// tokens to a third. Errors: kCorrupt and kUnsupported naming file and place.
class VocabularyBuilder {
 public:
  /// `vocab` maps tokens, in the byte alphabet, to ids; `where` names it. It must outlive this.
  VocabularyBuilder(const boost::json::object& vocab, std::string where);

  /// Id that the vocabulary gives to this string, or nullptr.
  const boost::json::value* vocab_id(std::string_view content) const;

  /// Adds a token whose `id` is still unchecked JSON. A token that the vocabulary has too must have
  /// the same id there. The caller adds each content once.
  void add_token(AddedToken token, const boost::json::value& id, const std::string& where);

  /// Ends the list of tokens; add_merge() may follow.
  void finish_tokens(size_t num_merges);

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
    boost::json::value id;
    std::string where;
  };

  void set_token(int32_t id, std::string_view bytes, bool is_searchable, const std::string& where);
  std::string try_add_merge(std::string_view left, std::string_view right);
  [[noreturn]] static void fail_merge(const std::string& where, const std::string& problem);

  const boost::json::object& vocab_;
  std::string where_;
  std::vector<PendingToken> pending_;
  std::vector<AddedToken> added_tokens_;
  TokenTable tokens_;
  MergeTable merges_;
  std::array<int32_t, 256> byte_ids_{};
  std::string buffer_;  // bytes of a merge's two tokens, one after the other
};

/// Splits "a b" into its two tokens. Returns false unless there is exactly one space, inside.
bool split_merge(std::string_view merge, std::string_view& left, std::string_view& right);

}  // namespace caravan
