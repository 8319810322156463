#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/json.h"
#include "tokenizer/added_tokens.h"
#include "tokenizer/vocabulary_builder.h"

namespace caravan {

/// An added token as any of the files writes it as an object.
AddedToken read_added_token(const boost::json::object& object, bool is_special,
                            const std::string& where);

/// The added tokens of a tokenizer, gathered from all its files as transformers does. Each file may
/// name the same tokens; what they say about ids must agree.
class AddedTokenSet {
 public:
  /// The builder must outlive this.
  explicit AddedTokenSet(VocabularyBuilder& builder) : builder_(builder) {}

  enum class IfKnown { kKeep, kReplace };  // the flags that a token already has
  /// Errors: kCorrupt, naming both places, when a known token has another id, or the id another
  /// token.
  void add(AddedToken token, int64_t id, const std::string& where, IfKnown if_known);

  /// Names a token as special, for a role such as "bos_token": a token that is known, else one of
  /// the vocabulary, else a new one with the next free id, of which a warning tells. A pad_token
  /// that is unknown is left out: it never stands in a text.
  void name_special(AddedToken token, std::string_view role, const std::string& where);
  /// The same for a role that transformers fills where no file does; a token that is unknown is
  /// left out without a word.
  void name_default(std::string_view content, std::string_view role);

  /// Content of the token in a role, or "".
  std::string token_of(const std::string& role) const;
  bool contains(std::string_view content) const { return index_.contains(content); }

  /// Hands all tokens to the builder.
  void move_to_builder();

 private:
  struct Entry {
    AddedToken token;
    std::optional<int64_t> id;
    std::string where;
    bool is_left_out = false;  // its id stays without a token
  };

  VocabularyBuilder& builder_;
  std::vector<Entry> entries_;
  std::map<std::string, size_t, std::less<>> index_;  // content to entry
  std::map<int64_t, size_t> ids_;                     // to entry
  std::map<std::string, std::string> roles_;          // to content
};

}  // namespace caravan
