#include "server/chat_template.h"

#include <algorithm>

#include "core/error.h"
#include "core/mapped_file.h"
#include "engine/prompt_template.h"
#include "server/api_error.h"

namespace caravan {

namespace {

constexpr size_t kMaxTemplateBytes = size_t{64} << 10;
constexpr std::string_view kPlain = "System: {system}\n\nUser: {user}\nAssistant:{assistant}\n";

/// Where a placeholder stands; npos when it is absent. Errors: kCorrupt when it stands twice.
size_t find_once(std::string_view text, std::string_view placeholder, const std::string& where) {
  const size_t at = text.find(placeholder);
  CARAVAN_CHECK_CODE(
      at == std::string_view::npos || text.find(placeholder, at + 1) == std::string_view::npos,
      kCorrupt, "{}: {} stands there twice, expected once", where, placeholder);
  return at;
}

/// Collects the pieces, and notes where the text lies that may be cut.
class PromptWriter {
 public:
  void begin_turn() { prompt_.turn_begins.push_back(num_bytes_); }
  void add_template(std::string_view text) { add(text, true); }
  void add_text(std::string_view text) { add(text, false); }
  void add_cuttable(std::string_view text) {
    prompt_.prefix_bytes = num_bytes_;
    add(text, false);
    end_of_cuttable_ = num_bytes_;
  }
  ChatPrompt finish() {
    prompt_.suffix_bytes = num_bytes_ - end_of_cuttable_;
    return std::move(prompt_);
  }

 private:
  void add(std::string_view text, bool is_template) {
    num_bytes_ += text.size();
    if (!text.empty()) prompt_.pieces.push_back({std::string(text), is_template});
  }

  ChatPrompt prompt_;
  size_t num_bytes_ = 0;
  size_t end_of_cuttable_ = 0;
};

/// camel's prompts with marks in the place of their texts: what stands before, between and after.
void write_camel(const Conversation& conversation, size_t first, PromptWriter& writer) {
  static const std::string kMark(1, '\0');
  const auto split = [](const std::string& text) {
    std::vector<std::string> parts;
    size_t begin = 0;
    for (size_t at; (at = text.find(kMark, begin)) != std::string::npos; begin = at + 1) {
      parts.push_back(text.substr(begin, at - begin));
    }
    parts.push_back(text.substr(begin));
    return parts;
  };
  for (size_t i = first; i < conversation.turns.size(); ++i) {
    const Conversation::Turn& turn = conversation.turns[i];
    const bool is_last = i + 1 == conversation.turns.size();
    const auto add_user = [&] {
      is_last ? writer.add_cuttable(turn.user) : writer.add_text(turn.user);
    };
    const bool has_input = i == first && conversation.has_system && !turn.user.empty();
    const std::vector<std::string> parts = split(camel_prompt(kMark, has_input ? kMark : ""));
    if (i > first) {
      writer.begin_turn();
      const size_t instruction = parts.front().rfind("### Instruction:");
      writer.add_template("\n\n" + parts.front().substr(instruction));
      add_user();
    } else {
      writer.add_template(parts[0]);
      writer.begin_turn();
      if (conversation.has_system) {
        writer.add_text(conversation.system);
        if (has_input) writer.add_template(parts[1]);
      }
      if (!conversation.has_system || has_input) add_user();
    }
    writer.add_template(parts.back());
    if (turn.has_assistant) writer.add_text(turn.assistant);
  }
}

void join(std::string& text, const std::string& more) {
  if (!text.empty()) text += '\n';
  text += more;
}

}  // namespace

Conversation Conversation::of(const std::vector<ChatMessage>& messages) {
  Conversation conversation;
  std::vector<Turn>& turns = conversation.turns;
  for (const ChatMessage& message : messages) {
    if (message.role == ChatRole::kSystem && turns.empty()) {
      if (conversation.has_system) conversation.system += '\n';
      conversation.system += message.content;
      conversation.has_system = true;
    } else if (message.role == ChatRole::kAssistant) {
      if (turns.empty()) turns.emplace_back();
      join(turns.back().assistant, message.content);
      turns.back().has_assistant = true;
    } else {
      if (turns.empty() || turns.back().has_assistant) turns.emplace_back();
      join(turns.back().user, message.content);
    }
  }
  if (turns.empty()) turns.emplace_back();
  return conversation;
}

std::string ChatPrompt::text() const {
  std::string text;
  for (const Piece& piece : pieces) text += piece.text;
  return text;
}

size_t ChatPrompt::num_bytes() const {
  size_t sum = 0;
  for (const Piece& piece : pieces) sum += piece.text.size();
  return sum;
}

ChatTemplate ChatTemplate::open(const std::string& name_or_path) {
  if (name_or_path == "none") {
    return absent(
        "this server has no chat template: use /v1/completions, or start it with "
        "--chat-template");
  }
  ChatTemplate chat;
  if (name_or_path == "camel") {
    chat.kind_ = Kind::kCamel;
    return chat;
  }
  if (name_or_path == "plain") {
    chat = parse(kPlain, "plain");
    chat.turns_.stops = {"\nUser:"};
    return chat;
  }
  return parse(read_text_file(name_or_path, kMaxTemplateBytes), name_or_path);
}

ChatTemplate ChatTemplate::absent(std::string reason) {
  ChatTemplate chat;
  chat.reason_ = std::move(reason);
  return chat;
}

ChatTemplate ChatTemplate::parse(std::string_view text, const std::string& where) {
  constexpr std::string_view kSystem = "{system}", kUser = "{user}", kAssistant = "{assistant}";
  const size_t user = find_once(text, kUser, where);
  const size_t assistant = find_once(text, kAssistant, where);
  const size_t system = find_once(text, kSystem, where);
  const bool has_system = system != std::string_view::npos;
  CARAVAN_CHECK_CODE(user != std::string_view::npos && assistant != std::string_view::npos &&
                         user < assistant && (!has_system || system < user),
                     kCorrupt,
                     "{}: expected {{user}} and after it {{assistant}}, each once, and "
                     "{{system}} before them or not at all",
                     where);
  ChatTemplate chat;
  chat.kind_ = Kind::kTurns;
  Turns& turns = chat.turns_;
  size_t begin = 0;  // of the turn
  if (has_system) {
    const size_t after = system + kSystem.size();
    begin = std::min(text.find('\n', after), user);
    while (begin < user && text[begin] == '\n') ++begin;
    turns.system_begin = text.substr(0, system);
    turns.system_end = text.substr(after, begin - after);
  }
  turns.user_begin = text.substr(begin, user - begin);
  turns.user_end = text.substr(user + kUser.size(), assistant - user - kUser.size());
  turns.assistant_end = text.substr(assistant + kAssistant.size());
  return chat;
}

ChatPrompt ChatTemplate::render(const Conversation& conversation, size_t num_dropped) const {
  if (kind_ == Kind::kNone) throw_bad_request("messages", reason_, "no_chat_template");
  PromptWriter writer;
  if (kind_ == Kind::kCamel) {
    write_camel(conversation, num_dropped, writer);
    return writer.finish();
  }
  if (conversation.has_system) {
    writer.add_template(turns_.system_begin);
    writer.add_text(conversation.system);
    writer.add_template(turns_.system_end);
  }
  for (size_t i = num_dropped; i < conversation.turns.size(); ++i) {
    const Conversation::Turn& turn = conversation.turns[i];
    const bool is_last = i + 1 == conversation.turns.size();
    writer.begin_turn();
    writer.add_template(turns_.user_begin);
    is_last ? writer.add_cuttable(turn.user) : writer.add_text(turn.user);
    writer.add_template(turns_.user_end);
    writer.add_text(turn.assistant);
    if (!is_last) writer.add_template(turns_.assistant_end);
  }
  return writer.finish();
}

std::vector<std::string> ChatTemplate::stop_strings() const { return turns_.stops; }

ChatEncoder::ChatEncoder(const Tokenizer& tokenizer) : tokenizer_(&tokenizer) {
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    if (tokenizer.is_special(id)) special_.emplace_back(tokenizer.token_bytes(id), id);
  }
}

std::vector<int32_t> ChatEncoder::encode(const ChatPrompt& prompt, WorkBudget& budget) const {
  Tokenizer::EncodeOptions options;
  const std::function<void(size_t)> spend = [&](size_t num_bytes) { budget.spend(num_bytes); };
  options.on_progress = &spend;
  std::vector<int32_t> ids;
  std::string ordinary;  // since the last special token
  const auto flush = [&] {
    const std::vector<int32_t> added = tokenizer_->encode(ordinary, options);
    ids.insert(ids.end(), added.begin(), added.end());
    ordinary.clear();
  };
  for (const ChatPrompt::Piece& piece : prompt.pieces) {
    std::string_view rest = piece.text;
    while (piece.is_template && !rest.empty()) {
      size_t first = std::string_view::npos;
      const std::pair<std::string, int32_t>* found = nullptr;
      for (const auto& token : special_) {  // leftmost, of equals the longest
        const size_t at = rest.find(token.first);
        if (at > first || at == std::string_view::npos) continue;
        if (at == first && token.first.size() <= found->first.size()) continue;
        first = at;
        found = &token;
      }
      if (found == nullptr) break;
      ordinary += rest.substr(0, first);
      if (!ordinary.empty()) flush();
      ids.push_back(found->second);
      rest.remove_prefix(first + found->first.size());
    }
    ordinary += rest;
  }
  if (!ordinary.empty()) flush();
  return ids;
}

}  // namespace caravan
