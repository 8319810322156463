#include "eval/summary_prompt.h"

#include <gtest/gtest.h>

#include "core/error.h"
#include "engine/prompt_template.h"

namespace caravan {
namespace {

const Tokenizer& nano() {
  static const Tokenizer tokenizer =
      Tokenizer::from_directory(CARAVAN_SOURCE_DIR "/models/camel-nano");
  return tokenizer;
}

std::string words(const std::string& word, int count) {
  std::string text;
  for (int i = 0; i < count; ++i) text += (i == 0 ? "" : " ") + word + std::to_string(i);
  return text;
}

TEST(SummaryPromptTest, TldrIsWhat2023Sent) {
  EXPECT_EQ(tldr_prompt("A b.").text, "A b. TL;DR:");
  // strip() of the whole: in front all white space that Python knows, behind that of " TL;DR: "
  // only.
  EXPECT_EQ(tldr_prompt(" \t\n\x1c\u00a0\u2003\u3000 A b. \n").text, "A b. \n TL;DR:");
  EXPECT_EQ(tldr_prompt("\u200b A").text, "\u200b A TL;DR:") << "a zero-width space is none";
  EXPECT_EQ(tldr_prompt("It does n't, do n't  n't").text, "It doesn't, don't n't TL;DR:");
  EXPECT_EQ(tldr_prompt(" \n ").text, "TL;DR:");
  EXPECT_EQ(tldr_prompt("").suffix_bytes, 6u);
  const SummaryPrompt prompt = tldr_prompt("A b.");
  EXPECT_EQ(prompt.prefix_bytes, 0u);
  EXPECT_EQ(prompt.text.substr(prompt.text.size() - prompt.suffix_bytes), " TL;DR:");
}

TEST(SummaryPromptTest, CamelIsThePublishedTemplate) {
  const SummaryPrompt prompt = camel_summary_prompt("Summarize the article.", "A b.\n");
  EXPECT_EQ(prompt.text, camel_prompt("Summarize the article.", "A b.\n"));
  EXPECT_TRUE(prompt.text.substr(0, prompt.prefix_bytes).ends_with("\n\n### Input:\n"));
  EXPECT_EQ(prompt.text.substr(prompt.prefix_bytes, 5), "A b.\n");
  EXPECT_EQ(prompt.text.substr(prompt.prefix_bytes + 5), "\n\n### Response:");
  const SummaryPrompt none = camel_summary_prompt("Do it.", "");
  EXPECT_EQ(none.text.find("### Input"), std::string::npos);
  EXPECT_EQ(none.prefix_bytes + none.suffix_bytes, none.text.size());
}

TEST(FitPromptTest, WhatFitsIsTheEncodingOfTheText) {
  for (const SummaryPrompt& prompt :
       {tldr_prompt(words("dune", 40)), camel_summary_prompt("Say it.", words("dune", 40))}) {
    const std::vector<int32_t> all = nano().encode(prompt.text);
    const FittedPrompt fitted =
        fit_prompt(nano(), prompt, static_cast<int64_t>(all.size()), Overflow::kTail);
    EXPECT_EQ(fitted.ids, all);
    EXPECT_EQ(fitted.num_dropped, 0);
  }
}

TEST(FitPromptTest, PrefixAndSuffixStayWhole) {
  // Articles that melt into what surrounds them: line breaks before the suffix, none at all, a
  // character of several tokens at either end.
  for (const std::string& article : {words("dune", 60) + "\n\n\n", "\n\n" + words("x", 60),
                                     "🐪" + words("z", 50) + "🐪", words("dune", 60)}) {
    for (const bool is_camel : {false, true}) {
      const SummaryPrompt prompt =
          is_camel ? camel_summary_prompt("Summarize the article.", article) : tldr_prompt(article);
      const std::vector<int32_t> all = nano().encode(prompt.text);
      const std::string prefix = prompt.text.substr(0, prompt.prefix_bytes);
      const std::string suffix = prompt.text.substr(prompt.text.size() - prompt.suffix_bytes);
      for (const Overflow overflow : {Overflow::kHead, Overflow::kTail, Overflow::kMiddle}) {
        for (const int64_t dropped : {1, 2, 7, 33}) {
          const auto limit = static_cast<int64_t>(all.size()) - dropped;
          const FittedPrompt fitted = fit_prompt(nano(), prompt, limit, overflow);
          const std::string text = nano().decode(fitted.ids);
          EXPECT_EQ(fitted.num_dropped, dropped);
          EXPECT_EQ(static_cast<int64_t>(fitted.ids.size()), limit);
          EXPECT_TRUE(text.starts_with(prefix)) << text;
          EXPECT_TRUE(text.ends_with(suffix)) << text;
        }
      }
    }
  }
}

TEST(FitPromptTest, DropsTheSideItIsTold) {
  const SummaryPrompt prompt = tldr_prompt(words("dune", 60));
  const std::vector<int32_t> all = nano().encode(prompt.text);
  const std::vector<int32_t> suffix = nano().encode(" TL;DR:");
  const auto num_article = static_cast<int64_t>(all.size() - suffix.size());
  const int64_t num_kept = 21;
  const int64_t limit = num_kept + static_cast<int64_t>(suffix.size());
  const auto expected = [&](int64_t in_front, int64_t behind) {
    std::vector<int32_t> ids(all.begin(), all.begin() + in_front);
    ids.insert(ids.end(), all.begin() + (num_article - behind), all.end());
    return ids;
  };
  EXPECT_EQ(fit_prompt(nano(), prompt, limit, Overflow::kTail).ids, expected(21, 0));
  EXPECT_EQ(fit_prompt(nano(), prompt, limit, Overflow::kHead).ids, expected(0, 21));
  EXPECT_EQ(fit_prompt(nano(), prompt, limit, Overflow::kMiddle).ids, expected(11, 10));
  // Down to nothing of the article, and not further.
  EXPECT_EQ(fit_prompt(nano(), prompt, limit - num_kept, Overflow::kTail).ids, suffix);
  try {
    fit_prompt(nano(), prompt, limit - num_kept - 1, Overflow::kTail);
    FAIL() << "the suffix was cut";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    EXPECT_NE(std::string_view(error.what()).find("the prompt around the article has"),
              std::string_view::npos);
  }
}

TEST(Trtllm2023Test, OneSideLosesItsInstruction) {
  const std::string article = words("dune", 700);
  const std::string text = tldr_prompt(article).text;
  const std::vector<int32_t> all = nano().encode(text);
  ASSERT_GT(all.size(), 1124u);
  const Trtllm2023Prompts prompts = trtllm_2023_prompts(nano(), text, 1024);
  EXPECT_EQ(prompts.ids, (std::vector<int32_t>(all.end() - 923, all.end())));
  EXPECT_EQ(prompts.hf_ids, (std::vector<int32_t>(all.begin() + 101, all.begin() + 1024)));
  EXPECT_TRUE(nano().decode(prompts.ids).ends_with(" TL;DR:"));
  EXPECT_EQ(nano().decode(prompts.hf_ids).find("TL;DR"), std::string::npos);
  EXPECT_EQ(trtllm_2023_prompts(nano(), text, -1).hf_ids, prompts.ids);
  const Trtllm2023Prompts brief = trtllm_2023_prompts(nano(), "a<|endoftext|> TL;DR:", 1024);
  EXPECT_EQ(brief.ids, brief.hf_ids);
  EXPECT_EQ(brief.ids[1], 50256);
  EXPECT_EQ(model_max_length(CARAVAN_SOURCE_DIR "/models/camel-nano"), 1024);
  EXPECT_EQ(model_max_length(CARAVAN_SOURCE_DIR "/src"), -1);
}

TEST(Trtllm2023Test, CleansUpAsTransformersDid) {
  EXPECT_EQ(clean_up_tokenization("Oh , it is n't . I 'm sure they 've seen Ann 's ? We 're ! "),
            "Oh, it isn't. I'm sure they've seen Ann's? We're! ");
  EXPECT_EQ(clean_up_tokenization("rock ' n ' roll"), "rock'n'roll");
  EXPECT_EQ(clean_up_tokenization("plain"), "plain");
}

}  // namespace
}  // namespace caravan
