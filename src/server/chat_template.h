#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "server/work_budget.h"
#include "tokenizer/tokenizer.h"

namespace caravan {

enum class ChatRole : uint8_t { kSystem, kUser, kAssistant };

struct ChatMessage {
  ChatRole role = ChatRole::kUser;
  std::string content;
};

/// A conversation as templates write it. Neighbours of one role are one text, with line breaks
/// between them. System messages before the first turn are the system's text; a later one is what
/// the user says there. An assistant who speaks first, or a system message alone, stands in a turn
/// whose user said nothing.
struct Conversation {
  std::string system;
  bool has_system = false;
  struct Turn {
    std::string user;
    std::string assistant;
    bool has_assistant = false;
  };
  std::vector<Turn> turns;  // at least one

  static Conversation of(const std::vector<ChatMessage>& messages);
};

/// A prompt as pieces: what the template wrote, and what the client did. Special tokens stand only
/// in the template's: text of a client is ordinary text, whatever it looks like.
struct ChatPrompt {
  struct Piece {
    std::string text;
    bool is_template = false;
  };
  std::vector<Piece> pieces;
  /// The text of the last user message, which may be cut; everything else stays.
  size_t prefix_bytes = 0;
  size_t suffix_bytes = 0;
  std::vector<size_t> turn_begins;  // where the turns begin, in bytes

  std::string text() const;
  size_t num_bytes() const;
};

/// Turns a conversation into the prompt of its next answer.
class ChatTemplate {
 public:
  /// "camel": the instruction prompts of camel-5b (engine/prompt_template.h). A system message is
  /// the instruction and the user's first message its input; without one, the user's message is the
  /// instruction. Later turns are "\n\n### Instruction:\n...\n\n### Response:" again.
  /// "plain": "System: ...", "User: ..." and "Assistant: ..." in lines; answers end before
  /// "\nUser:". "none": there is none, render() is an error. Else the path of a file of at most 64
  /// KiB with {user} and then {assistant}, and before them {system} or not. Everything to the end
  /// of {system}'s line, and the empty lines after it, is written once, where there is a system
  /// message; the rest once a turn. Errors: kNotFound, kIo; kCorrupt for a file without these
  /// placeholders.
  static ChatTemplate open(const std::string& name_or_path);
  /// There is none, and render() says why.
  static ChatTemplate absent(std::string reason);
  /// From the text of such a file; `where` names it in messages.
  static ChatTemplate parse(std::string_view text, const std::string& where);

  bool exists() const { return kind_ != Kind::kNone; }
  /// Without the first `num_dropped` turns, of which one at least stays. An assistant's last
  /// message is continued. Errors: ApiError 400 when there is no template.
  ChatPrompt render(const Conversation& conversation, size_t num_dropped = 0) const;
  /// Texts that end every answer.
  std::vector<std::string> stop_strings() const;

 private:
  enum class Kind : uint8_t { kNone, kCamel, kTurns };
  struct Turns {
    std::string system_begin, system_end;  // around {system}
    std::string user_begin;                // before {user}
    std::string user_end;                  // between {user} and {assistant}
    std::string assistant_end;             // after {assistant}
    std::vector<std::string> stops;
  };

  Kind kind_ = Kind::kNone;
  std::string reason_;  // of kNone
  Turns turns_;
};

/// Token ids of prompts: special tokens where the template names them. Immutable, thread safe.
class ChatEncoder {
 public:
  /// The tokenizer must outlive this object.
  explicit ChatEncoder(const Tokenizer& tokenizer);
  /// Errors: those of the budget.
  std::vector<int32_t> encode(const ChatPrompt& prompt, WorkBudget& budget) const;

 private:
  const Tokenizer* tokenizer_;
  std::vector<std::pair<std::string, int32_t>> special_;  // content, id
};

}  // namespace caravan
