#include "tokenizer/added_tokens.h"

#include <algorithm>

#include "tokenizer/pre_tokenizer.h"

namespace caravan {

AddedTokens::AddedTokens(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
  std::sort(tokens_.begin(), tokens_.end(),
            [](const AddedToken& a, const AddedToken& b) { return a.content < b.content; });
  for (const AddedToken& token : tokens_) {
    Pass& pass = token.is_normalized ? second_pass_ : first_pass_;
    pass.tokens.push_back(token);
    pass.is_first_byte[static_cast<uint8_t>(token.content[0])] = true;
  }
}

const AddedToken* AddedTokens::find(std::string_view content) const {
  const auto it = std::lower_bound(
      tokens_.begin(), tokens_.end(), content,
      [](const AddedToken& token, std::string_view wanted) { return token.content < wanted; });
  return it != tokens_.end() && it->content == content ? &*it : nullptr;
}

// Narrows the sorted tokens byte by byte to those that start with what was read of the text.
const AddedToken* AddedTokens::longest_match(const Pass& pass, std::string_view text) {
  const AddedToken* longest = nullptr;
  auto begin = pass.tokens.begin();
  auto end = pass.tokens.end();
  for (size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<uint8_t>(text[i]);
    const auto byte_of = [i](const AddedToken& token) {
      return static_cast<uint8_t>(token.content[i]);
    };
    // A token that ends here sorts first in its range, and has been taken as a match already.
    if (begin != end && begin->content.size() == i) ++begin;
    begin = std::partition_point(begin, end, [&](const auto& t) { return byte_of(t) < byte; });
    end = std::partition_point(begin, end, [&](const auto& t) { return byte_of(t) == byte; });
    if (begin == end) break;
    if (begin->content.size() == i + 1) longest = &*begin;
  }
  return longest;
}

void AddedTokens::split_pass(const Pass& pass, std::string_view text,
                             const std::function<void(std::string_view)>& on_text,
                             const std::function<void(int32_t)>& on_token) {
  size_t text_begin = 0;
  for (size_t position = 0; position < text.size();) {
    const AddedToken* token = pass.is_first_byte[static_cast<uint8_t>(text[position])]
                                  ? longest_match(pass, text.substr(position))
                                  : nullptr;
    if (token == nullptr) {
      ++position;
      continue;
    }
    size_t begin = position;
    size_t end = position + token->content.size();
    position = end;
    if (token->is_single_word &&
        (ends_with_word(text.substr(0, begin)) || starts_with_word(text.substr(end)))) {
      continue;
    }
    // Space that a token took is not looked at again: of a text of such tokens each would go over
    // all of it.
    if (token->strips_left) {
      begin = std::max(begin, text_begin);
      begin -= trailing_space(text.substr(text_begin, begin - text_begin));
    }
    if (token->strips_right) {
      end = end < text_begin ? text_begin : end + leading_space(text.substr(end));
    }
    // A token of white space may lie wholly in the space that the token before it took.
    if (begin >= end) continue;
    if (text_begin < begin) on_text(text.substr(text_begin, begin - text_begin));
    on_token(token->id);
    text_begin = end;
  }
  if (text_begin < text.size()) on_text(text.substr(text_begin));
}

void AddedTokens::split(std::string_view text, const std::function<void(std::string_view)>& on_text,
                        const std::function<void(int32_t)>& on_token) const {
  const auto second = [&](std::string_view rest) {
    if (second_pass_.tokens.empty()) return on_text(rest);
    split_pass(second_pass_, rest, on_text, on_token);
  };
  if (first_pass_.tokens.empty()) return second(text);
  split_pass(first_pass_, text, second, on_token);
}

}  // namespace caravan
