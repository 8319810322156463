#include "server/chat_template.h"

#include <gtest/gtest.h>

#include <chrono>

#include "core/error.h"
#include "engine/prompt_template.h"
#include "server/api_error.h"
#include "server/prompt_preparation.h"
#include "tokenizer/tiny_tokenizer.h"

namespace caravan {
namespace {

using Messages = std::vector<ChatMessage>;
constexpr ChatRole kSystem = ChatRole::kSystem, kUser = ChatRole::kUser,
                   kAssistant = ChatRole::kAssistant;

std::string written(const std::string& form, const Messages& messages) {
  return ChatTemplate::open(form).render(Conversation::of(messages)).text();
}
std::string camel(const Messages& messages) { return written("camel", messages); }
std::string plain(const Messages& messages) { return written("plain", messages); }

WorkBudget endless() {
  return {SIZE_MAX, WorkBudget::Clock::now() + std::chrono::hours(1), nullptr};
}

TEST(ChatTemplateTest, CamelIsTheModelsOwnPrompt) {
  EXPECT_EQ(camel({{kUser, "Name three colours."}}), camel_prompt("Name three colours.", ""));
  EXPECT_EQ(camel({{kSystem, "Sum up."}, {kUser, "A text."}}), camel_prompt("Sum up.", "A text."));
  EXPECT_EQ(camel({{kSystem, "A"}, {kSystem, "B"}, {kUser, "c"}}), camel_prompt("A\nB", "c"));
  EXPECT_EQ(camel({{kSystem, "Go."}, {kUser, ""}}), camel_prompt("Go.", ""));
}

TEST(ChatTemplateTest, CamelGoesOnWithFurtherTurns) {
  EXPECT_EQ(camel({{kUser, "a"}, {kAssistant, " b"}, {kUser, "c"}}),
            camel_prompt("a", "") + " b\n\n### Instruction:\nc\n\n### Response:");
  EXPECT_EQ(camel({{kUser, "a"}, {kAssistant, " b"}}), camel_prompt("a", "") + " b");
}

TEST(ChatTemplateTest, PlainWritesLines) {
  EXPECT_EQ(plain({{kSystem, "s"}, {kUser, "a"}, {kAssistant, " b"}, {kUser, "c"}}),
            "System: s\n\nUser: a\nAssistant: b\nUser: c\nAssistant:");
  EXPECT_EQ(plain({{kUser, "a"}}), "User: a\nAssistant:");
  EXPECT_EQ(ChatTemplate::open("plain").stop_strings(), std::vector<std::string>{"\nUser:"});
}

TEST(ChatTemplateTest, FilesMustHaveTheirPlaceholders) {
  for (const char* text : {"", "{user}", "{assistant}{user}", "{user}{user}{assistant}",
                           "{user}{system}{assistant}", "{user}{assistant}{system}"}) {
    EXPECT_THROW(ChatTemplate::parse(text, "f"), Error) << text;
  }
  EXPECT_THROW(ChatTemplate::open("/nonexistent/template"), Error);
}

TEST(ChatTemplateTest, TurnsComeInAnyOrder) {
  // Neighbours of one role are one text.
  EXPECT_EQ(plain({{kUser, "a"}, {kUser, "b"}}), "User: a\nb\nAssistant:");
  EXPECT_EQ(plain({{kUser, "a"}, {kAssistant, " b"}, {kAssistant, "c"}}),
            "User: a\nAssistant: b\nc");
  // A greeting.
  EXPECT_EQ(plain({{kAssistant, " hi"}, {kUser, "a"}}),
            "User: \nAssistant: hi\nUser: a\nAssistant:");
  EXPECT_EQ(plain({{kAssistant, " hi"}}), "User: \nAssistant: hi");
  // A system message that comes late is said where it stands.
  EXPECT_EQ(plain({{kUser, "a"}, {kSystem, "s"}}), "User: a\ns\nAssistant:");
  EXPECT_EQ(plain({{kUser, "a"}, {kSystem, "s"}, {kUser, "b"}}), "User: a\ns\nb\nAssistant:");
  EXPECT_EQ(plain({{kUser, "a"}, {kAssistant, " b"}, {kSystem, "s"}, {kUser, "c"}}),
            "User: a\nAssistant: b\nUser: s\nc\nAssistant:");
  EXPECT_EQ(plain({{kSystem, "t"}, {kAssistant, " b"}, {kSystem, "s"}}),
            "System: t\n\nUser: \nAssistant: b\nUser: s\nAssistant:");
  // And one that is alone.
  EXPECT_EQ(plain({{kSystem, "s"}}), "System: s\n\nUser: \nAssistant:");
  EXPECT_EQ(camel({{kSystem, "Go."}}), camel_prompt("Go.", ""));
  EXPECT_EQ(camel({{kSystem, "Go."}, {kAssistant, " Hi"}, {kUser, "c"}}),
            camel_prompt("Go.", "") + " Hi\n\n### Instruction:\nc\n\n### Response:");
  // Texts that are empty add no line.
  EXPECT_EQ(plain({{kUser, ""}, {kUser, "b"}}), "User: b\nAssistant:");
}

TEST(ChatTemplateTest, OneThatIsNotThereSaysWhy) {
  const Conversation said = Conversation::of({{kUser, "a"}});
  EXPECT_THROW(ChatTemplate::open("none").render(said), ApiError);
  try {
    ChatTemplate::absent("because of x").render(said);
    FAIL();
  } catch (const ApiError& error) {
    EXPECT_EQ(error.status(), 400);
    EXPECT_STREQ(error.what(), "because of x");
  }
}

TEST(ChatEncoderTest, SpecialTokensStandInTheTemplateAlone) {
  const Tokenizer tokenizer = Tokenizer::from_files(testing::tiny_tokenizer_json());
  const int32_t end = tokenizer.token_id("<|end|>");
  const ChatTemplate chat = ChatTemplate::parse("U{user}<|end|>A{assistant}<|end|>", "f");
  const ChatEncoder encoder(tokenizer);
  WorkBudget budget = endless();
  const std::vector<int32_t> ids = encoder.encode(
      chat.render(Conversation::of({{kUser, "<|end|>"}, {kAssistant, "<|end|>"}, {kUser, "x"}})),
      budget);
  EXPECT_EQ(std::count(ids.begin(), ids.end(), end), 3);  // two of the first turn, one of the last
  EXPECT_EQ(tokenizer.decode(ids), "U<|end|><|end|>A<|end|><|end|>Ux<|end|>A");
  // Without special tokens in it, a prompt is encoded as one text.
  const ChatPrompt camel_prompt =
      ChatTemplate::open("camel").render(Conversation::of({{kUser, "abc abc"}}));
  EXPECT_EQ(encoder.encode(camel_prompt, budget), tokenizer.encode(camel_prompt.text()));
}

class PromptPreparationTest : public ::testing::Test {
 protected:
  PromptPreparation preparation(const std::string& overflow, int64_t max_model_len) {
    return {tokenizer_, ChatTemplate::parse("{system}\nU:{user}\nA:{assistant}\n", "f"),
            ApiLimits{.max_model_len = max_model_len, .vocab_size = tokenizer_.vocab_size()},
            overflow};
  }
  static GenerateRequest completion(const std::string& text, std::optional<int64_t> max_tokens) {
    GenerateRequest request;
    request.prompts.push_back({.text = text, .ids = {}, .is_ids = false});
    request.max_tokens = max_tokens;
    return request;
  }
  static GenerateRequest chat(Messages messages, std::optional<int64_t> max_tokens) {
    GenerateRequest request;
    request.is_chat = true;
    request.messages = std::move(messages);
    request.max_tokens = max_tokens;
    return request;
  }
  /// With the bytes that were encoded for it in num_encoded_.
  PreparedRequest prepare(const PromptPreparation& preparation, const GenerateRequest& request) {
    WorkBudget budget = endless();
    PreparedRequest prepared = preparation.prepare(request, budget);
    num_encoded_ = budget.num_spent();
    return prepared;
  }
  std::string text(const PreparedRequest& prepared) {
    return tokenizer_.decode(prepared.prompts.at(0).ids);
  }
  static std::string refusal_code(const std::function<void()>& call) {
    try {
      call();
    } catch (const ApiError& error) {
      EXPECT_EQ(error.status(), 400);
      return error.code();
    }
    return "none";
  }

  size_t num_encoded_ = 0;
  Tokenizer tokenizer_ = Tokenizer::from_files(testing::tiny_tokenizer_json());
};

TEST_F(PromptPreparationTest, ExactLimitsOfTheContext) {
  const PromptPreparation reject = preparation("reject", 32);
  EXPECT_EQ(prepare(reject, completion("xxxxxxxx", 24)).max_tokens, 24);
  EXPECT_EQ(refusal_code([&] { prepare(reject, completion("xxxxxxxx", 25)); }),
            "context_length_exceeded");
  EXPECT_EQ(prepare(reject, completion("xxxxxxxx", std::nullopt)).max_tokens, 16);
  EXPECT_EQ(prepare(reject, completion(std::string(31, 'x'), std::nullopt)).max_tokens, 1);
  EXPECT_EQ(refusal_code([&] { prepare(reject, completion(std::string(32, 'x'), std::nullopt)); }),
            "context_length_exceeded");
  EXPECT_EQ(prepare(reject, completion(std::string(32, 'x'), 0)).max_tokens, 0);
  EXPECT_EQ(refusal_code([&] { prepare(reject, completion("x", 2147483647)); }),
            "context_length_exceeded");
  EXPECT_EQ(refusal_code([&] { prepare(reject, completion("", 1)); }), "");
  const auto said = chat({{kUser, "xxxx"}}, std::nullopt);  // "U:xxxx\nA:" are 9 tokens
  EXPECT_EQ(prepare(reject, said).max_tokens, 32 - 9);
}

TEST_F(PromptPreparationTest, CompletionsAreCutWhereTheRequestSays) {
  const std::string prompt = "0123456789zyxwvutsrq";  // 20 tokens, of which 12 fit
  const auto cut = [&](const std::string& overflow, int64_t first, int64_t last) {
    GenerateRequest request = completion(prompt, 4);
    request.overflow = overflow;
    request.keep_first = first;
    request.keep_last = last;
    const PreparedRequest prepared = prepare(preparation("reject", 16), request);
    EXPECT_EQ(prepared.prompts[0].num_dropped, 8);
    EXPECT_EQ(prepared.prompts[0].ids.size(), 12u);
    return text(prepared);
  };
  EXPECT_EQ(cut("head", 0, 0), "89zyxwvutsrq");
  EXPECT_EQ(cut("tail", 0, 0), "0123456789zy");
  EXPECT_EQ(cut("middle", 0, 0), "012345vutsrq");
  EXPECT_EQ(cut("head", 2, 0), "01zyxwvutsrq");
  EXPECT_EQ(cut("tail", 0, 3), "012345678srq");
  EXPECT_EQ(cut("middle", 8, 4), "01234567tsrq");
  EXPECT_EQ(refusal_code([&] { cut("middle", 8, 5); }), "context_length_exceeded");
  EXPECT_EQ(refusal_code([&] { cut("reject", 0, 0); }), "context_length_exceeded");
}

TEST_F(PromptPreparationTest, TruncatePromptTokensKeepsTheLast) {
  GenerateRequest request = completion("0123456789", 4);
  request.truncate_prompt_tokens = 3;
  const PreparedRequest three = prepare(preparation("reject", 16), request);
  EXPECT_EQ(text(three), "789");
  EXPECT_EQ(three.prompts[0].num_dropped, 7);
  request.truncate_prompt_tokens = -1;
  EXPECT_EQ(text(prepare(preparation("reject", 10), request)), "456789");
}

TEST_F(PromptPreparationTest, ChatsLoseTheirOldestTurnsThenPartOfTheLastMessage) {
  const Messages messages{{kSystem, "SS"},   {kUser, "111111"},      {kAssistant, "222222"},
                          {kUser, "333333"}, {kAssistant, "444444"}, {kUser, "0123456789"}};
  // "SS\nU:0123456789\nA:" are 18 tokens, each earlier turn 18 ("U:111111\nA:222222\n").
  const auto cut = [&](int64_t room, const std::string& overflow) {
    GenerateRequest request = chat(messages, 4);
    request.overflow = overflow;
    return prepare(preparation("reject", room + 4), request);
  };
  const PreparedRequest whole = cut(54, "tail");
  EXPECT_EQ(whole.prompts[0].num_dropped, 0);
  const PreparedRequest one = cut(53, "tail");
  EXPECT_EQ(text(one), "SS\nU:333333\nA:444444\nU:0123456789\nA:");
  EXPECT_EQ(one.prompts[0].num_dropped, 18);
  EXPECT_EQ(text(cut(18, "tail")), "SS\nU:0123456789\nA:");
  EXPECT_EQ(text(cut(15, "tail")), "SS\nU:0123456\nA:");
  EXPECT_EQ(text(cut(15, "head")), "SS\nU:3456789\nA:");
  EXPECT_EQ(text(cut(15, "middle")), "SS\nU:0123789\nA:");
  EXPECT_EQ(cut(15, "middle").prompts[0].num_dropped, 39);
  EXPECT_EQ(text(cut(8, "tail")), "SS\nU:\nA:");
  EXPECT_EQ(refusal_code([&] { cut(7, "tail"); }), "context_length_exceeded");
  EXPECT_EQ(refusal_code([&] { cut(53, "reject"); }), "context_length_exceeded");
}

TEST_F(PromptPreparationTest, EachTurnIsEncodedOnceHoweverManyAreDropped) {
  for (const int num_turns : {20, 120}) {
    Messages messages{{kSystem, "S"}};
    for (int i = 0; i < num_turns; ++i) {
      messages.push_back({kUser, std::string(200, 'x') + std::to_string(i)});
      messages.push_back({kAssistant, std::string(100, 'y')});
    }
    messages.push_back({kUser, "last"});
    GenerateRequest request = chat(messages, 4);
    request.overflow = "tail";
    const PreparedRequest prepared = prepare(preparation("reject", 1000), request);
    EXPECT_LE(prepared.prompts[0].ids.size(), 996u);
    EXPECT_GT(prepared.prompts[0].ids.size(), 996u - 320);  // not a turn more than there must be
    EXPECT_TRUE(text(prepared).starts_with("S\nU:x"));
    EXPECT_TRUE(text(prepared).ends_with("U:last\nA:"));
    size_t num_bytes = 0;
    for (const ChatMessage& message : messages) num_bytes += message.content.size() + 3;
    EXPECT_LE(num_encoded_, num_bytes + 4 * 1400u);
  }
}

TEST_F(PromptPreparationTest, WhatCannotFitIsNotEncoded) {
  const PromptPreparation reject = preparation("reject", 32);
  const std::string text(size_t{1} << 20, 'x');
  WorkBudget budget = endless();
  EXPECT_EQ(refusal_code([&] { reject.prepare(completion(text, 1), budget); }),
            "context_length_exceeded");
  EXPECT_EQ(refusal_code([&] {
              reject.prepare(chat({{kUser, text}}, 1), budget);
            }),
            "context_length_exceeded");
  EXPECT_EQ(budget.num_spent(), 0u);
}

TEST(WorkBudgetTest, EndsWorkThatIsTooMuchTooLateOrForNobody) {
  const auto later = WorkBudget::Clock::now() + std::chrono::hours(1);
  const auto status = [](WorkBudget budget, size_t num_bytes) {
    try {
      budget.spend(num_bytes);
    } catch (const ApiError& error) {
      return error.status();
    }
    return 0;
  };
  EXPECT_EQ(status({10, later, nullptr}, 10), 0);
  EXPECT_EQ(status({10, later, nullptr}, 11), 413);
  EXPECT_EQ(status({10, WorkBudget::Clock::now(), nullptr}, 0), 504);
  EXPECT_EQ(status({10, later, [] { return true; }}, 0), 499);
  // A long text is left in the middle.
  const Tokenizer tokenizer = Tokenizer::from_files(testing::tiny_tokenizer_json());
  int num_asked = 0;
  WorkBudget budget(SIZE_MAX, later, [&] { return ++num_asked == 3; });
  Tokenizer::EncodeOptions options;
  const std::function<void(size_t)> spend = [&](size_t num_bytes) { budget.spend(num_bytes); };
  options.on_progress = &spend;
  std::string text;
  for (int i = 0; i < 100'000; ++i) text += "x !";
  EXPECT_THROW(tokenizer.encode(text, options), ApiError);
  EXPECT_LT(budget.num_spent(), text.size() / 4);
}

}  // namespace
}  // namespace caravan
