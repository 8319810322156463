#include "server/chat_template.h"

#include <gtest/gtest.h>

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

std::string camel(const Messages& messages) {
  return ChatTemplate::open("camel").render(messages).text();
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
  const ChatTemplate plain = ChatTemplate::open("plain");
  EXPECT_EQ(plain.render({{kSystem, "s"}, {kUser, "a"}, {kAssistant, " b"}, {kUser, "c"}}).text(),
            "System: s\n\nUser: a\nAssistant: b\nUser: c\nAssistant:");
  EXPECT_EQ(plain.render({{kUser, "a"}}).text(), "User: a\nAssistant:");
  EXPECT_EQ(plain.stop_strings(), std::vector<std::string>{"\nUser:"});
}

TEST(ChatTemplateTest, FilesMustHaveTheirPlaceholders) {
  for (const char* text : {"", "{user}", "{assistant}{user}", "{user}{user}{assistant}",
                           "{user}{system}{assistant}", "{user}{assistant}{system}"}) {
    EXPECT_THROW(ChatTemplate::parse(text, "f"), Error) << text;
  }
  EXPECT_THROW(ChatTemplate::open("/nonexistent/template"), Error);
}

TEST(ChatTemplateTest, OtherOrdersAreRefused) {
  const ChatTemplate plain = ChatTemplate::open("plain");
  for (const Messages& messages :
       {Messages{{kSystem, "s"}}, Messages{{kAssistant, "a"}}, Messages{{kUser, "a"}, {kUser, "b"}},
        Messages{{kUser, "a"}, {kSystem, "s"}},
        Messages{{kUser, "a"}, {kAssistant, "b"}, {kAssistant, "c"}}}) {
    EXPECT_THROW(plain.render(messages), ApiError);
  }
  EXPECT_THROW(ChatTemplate::open("none").render({{kUser, "a"}}), ApiError);
}

TEST(ChatEncoderTest, SpecialTokensStandInTheTemplateAlone) {
  const Tokenizer tokenizer = Tokenizer::from_files(testing::tiny_tokenizer_json());
  const int32_t end = tokenizer.token_id("<|end|>");
  const ChatTemplate chat = ChatTemplate::parse("U{user}<|end|>A{assistant}<|end|>", "f");
  const ChatEncoder encoder(tokenizer);
  const std::vector<int32_t> ids =
      encoder.encode(chat.render({{kUser, "<|end|>"}, {kAssistant, "<|end|>"}, {kUser, "x"}}));
  EXPECT_EQ(std::count(ids.begin(), ids.end(), end), 3);  // two of the first turn, one of the last
  EXPECT_EQ(tokenizer.decode(ids), "U<|end|><|end|>A<|end|><|end|>Ux<|end|>A");
  // Without special tokens in it, a prompt is encoded as one text.
  const ChatPrompt camel_prompt = ChatTemplate::open("camel").render({{kUser, "abc abc"}});
  EXPECT_EQ(encoder.encode(camel_prompt), tokenizer.encode(camel_prompt.text()));
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

  Tokenizer tokenizer_ = Tokenizer::from_files(testing::tiny_tokenizer_json());
};

TEST_F(PromptPreparationTest, ExactLimitsOfTheContext) {
  const PromptPreparation reject = preparation("reject", 32);
  EXPECT_EQ(reject.prepare(completion("xxxxxxxx", 24)).max_tokens, 24);
  EXPECT_EQ(refusal_code([&] { reject.prepare(completion("xxxxxxxx", 25)); }),
            "context_length_exceeded");
  EXPECT_EQ(reject.prepare(completion("xxxxxxxx", std::nullopt)).max_tokens, 16);
  EXPECT_EQ(reject.prepare(completion(std::string(31, 'x'), std::nullopt)).max_tokens, 1);
  EXPECT_EQ(refusal_code([&] { reject.prepare(completion(std::string(32, 'x'), std::nullopt)); }),
            "context_length_exceeded");
  EXPECT_EQ(reject.prepare(completion(std::string(32, 'x'), 0)).max_tokens, 0);
  EXPECT_EQ(refusal_code([&] { reject.prepare(completion("x", 2147483647)); }),
            "context_length_exceeded");
  EXPECT_EQ(refusal_code([&] { reject.prepare(completion("", 1)); }), "");
  const auto said = chat({{kUser, "xxxx"}}, std::nullopt);  // "U:xxxx\nA:" are 9 tokens
  EXPECT_EQ(reject.prepare(said).max_tokens, 32 - 9);
}

TEST_F(PromptPreparationTest, CompletionsAreCutWhereTheRequestSays) {
  const std::string prompt = "0123456789zyxwvutsrq";  // 20 tokens, of which 12 fit
  const auto cut = [&](const std::string& overflow, int64_t first, int64_t last) {
    GenerateRequest request = completion(prompt, 4);
    request.overflow = overflow;
    request.keep_first = first;
    request.keep_last = last;
    const PreparedRequest prepared = preparation("reject", 16).prepare(request);
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
  const PreparedRequest three = preparation("reject", 16).prepare(request);
  EXPECT_EQ(text(three), "789");
  EXPECT_EQ(three.prompts[0].num_dropped, 7);
  request.truncate_prompt_tokens = -1;
  EXPECT_EQ(text(preparation("reject", 10).prepare(request)), "456789");
}

TEST_F(PromptPreparationTest, ChatsLoseTheirOldestTurnsThenPartOfTheLastMessage) {
  const Messages messages{{kSystem, "SS"},   {kUser, "111111"},      {kAssistant, "222222"},
                          {kUser, "333333"}, {kAssistant, "444444"}, {kUser, "0123456789"}};
  // "SS\nU:0123456789\nA:" are 18 tokens, each earlier turn 18 ("U:111111\nA:222222\n").
  const auto cut = [&](int64_t room, const std::string& overflow) {
    GenerateRequest request = chat(messages, 4);
    request.overflow = overflow;
    return preparation("reject", room + 4).prepare(request);
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

}  // namespace
}  // namespace caravan
