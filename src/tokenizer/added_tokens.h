#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace caravan {

/// A token that is looked for in the text as it stands, before the text is split.
struct AddedToken {
  std::string content;
  int32_t id = -1;
  bool is_special = false;
  bool strips_left = false;     // takes the white space before it too
  bool strips_right = false;    // and the white space after it
  bool is_normalized = false;   // looked for after the tokens that are not
  bool is_single_word = false;  // only where no character of a word is beside it
};

/// Finds added tokens as Hugging Face `tokenizers` does: first those that are not normalized, then
/// the others in what is left; each time the leftmost match, of equals the longest.
class AddedTokens {
 public:
  explicit AddedTokens(std::vector<AddedToken> tokens);

  const std::vector<AddedToken>& tokens() const { return tokens_; }
  /// The token with this content, or nullptr.
  const AddedToken* find(std::string_view content) const;

  /// Calls on_text for each stretch of ordinary text and on_token for each token, in order.
  void split(std::string_view text, const std::function<void(std::string_view)>& on_text,
             const std::function<void(int32_t)>& on_token) const;

 private:
  struct Pass {
    std::vector<AddedToken> tokens;         // sorted by content
    std::array<bool, 256> is_first_byte{};  // of one of them
  };

  static const AddedToken* longest_match(const Pass& pass, std::string_view text);
  static void split_pass(const Pass& pass, std::string_view text,
                         const std::function<void(std::string_view)>& on_text,
                         const std::function<void(int32_t)>& on_token);

  std::vector<AddedToken> tokens_;
  Pass first_pass_;
  Pass second_pass_;
};

}  // namespace caravan
