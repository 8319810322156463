#include "tokenizer/added_token_set.h"

#include <utility>

#include "core/error.h"
#include "core/log.h"
#include "tokenizer/json_fields.h"

namespace caravan {

AddedToken read_added_token(const boost::json::object& object, bool is_special,
                            const std::string& where) {
  check_keys(
      object,
      {"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special", "__type"},
      where);
  const boost::json::value* content = object.if_contains("content");
  CARAVAN_CHECK_CODE(content != nullptr, kCorrupt, "{}: the field \"content\" is missing", where);
  AddedToken token;
  token.content = expect_string(*content, where + ".content");
  token.is_special = bool_field(object, "special", is_special, where);
  token.strips_left = bool_field(object, "lstrip", false, where);
  token.strips_right = bool_field(object, "rstrip", false, where);
  token.is_normalized = bool_field(object, "normalized", !token.is_special, where);
  token.is_single_word = bool_field(object, "single_word", false, where);
  return token;
}

void AddedTokenSet::add(AddedToken token, int64_t id, const std::string& where, IfKnown if_known) {
  if (token.content.empty()) return;  // `tokenizers` leaves it out too
  const auto [it, is_new] = index_.try_emplace(token.content, entries_.size());
  if (is_new) {
    const auto [owner, is_free] = ids_.try_emplace(id, entries_.size());
    CARAVAN_CHECK_CODE(is_free, kCorrupt, "{}: id {} belongs to the token \"{}\" already, in {}",
                       where, id, printable(entries_[owner->second].token.content),
                       entries_[owner->second].where);
    entries_.push_back({std::move(token), id, where});
    return;
  }
  Entry& known = entries_[it->second];
  CARAVAN_CHECK_CODE(known.id == id, kCorrupt,
                     "{}: \"{}\" has the id {}, but the id {} in {}: make them equal", where,
                     printable(token.content), id, *known.id, known.where);
  if (if_known == IfKnown::kReplace) known.token = std::move(token);
}

void AddedTokenSet::name_special(AddedToken token, std::string_view role,
                                 const std::string& where) {
  if (token.content.empty()) return;
  roles_[std::string(role)] = token.content;
  const auto [it, is_new] = index_.try_emplace(token.content, entries_.size());
  if (!is_new) {
    Entry& known = entries_[it->second];
    known.token.is_special = true;
    known.is_left_out = known.is_left_out && role == "pad_token";
    return;
  }
  token.is_special = true;
  const bool is_in_vocab = builder_.vocab_id(token.content) != nullptr;
  entries_.push_back({std::move(token), std::nullopt, where, !is_in_vocab && role == "pad_token"});
}

void AddedTokenSet::name_default(std::string_view content, std::string_view role) {
  if (!contains(content) && builder_.vocab_id(content) == nullptr) return;
  AddedToken token;
  token.content = content;
  name_special(std::move(token), role, "");
}

std::string AddedTokenSet::token_of(const std::string& role) const {
  const auto it = roles_.find(role);
  return it == roles_.end() ? "" : it->second;
}

void AddedTokenSet::move_to_builder() {
  const Entry* first_new = nullptr;
  size_t num_new = 0;
  for (Entry& entry : entries_) {
    if (entry.is_left_out) {
      log_warning("{}: no file gives \"{}\" an id: ignored, as nothing is padded here", entry.where,
                  printable(entry.token.content));
      builder_.skip_id();
      continue;
    }
    if (!entry.id && builder_.vocab_id(entry.token.content) == nullptr && ++num_new == 1) {
      first_new = &entry;
    }
    builder_.add_token(entry.token, entry.id, entry.where);
  }
  if (num_new == 0) return;
  log_warning("{}: no file gives \"{}\" an id{}: next free ids are taken, as in transformers",
              first_new->where, printable(first_new->token.content),
              num_new == 1 ? "" : fmt::format(", nor {} others", num_new - 1));
}

}  // namespace caravan
