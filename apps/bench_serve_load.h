#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "apps/bench_serve_client.h"

namespace caravan {

/// What to send. Names and defaults as those of `vllm bench serve`.
struct LoadPlan {
  std::string model;               // of the request; empty: left out
  bool is_chat = false;            // messages in place of a prompt
  std::string dataset = "random";  // random, jsonl, sonnet, trace
  std::string dataset_path;        // of the other three
  int64_t num_prompts = 1000;
  int64_t random_input_len = 1024;  // tokens
  int64_t random_output_len = 128;
  double random_range_ratio = 0;    // lengths within +-ratio of these, evenly
  int64_t vocab_size = 50256;       // of random prompts: ids below; special ones lie above
  bool sends_text = false;          // random words in place of token ids
  int64_t output_len = 0;           // of jsonl; 0: as the line says, else random_output_len
  double request_rate = 0;          // requests a second; 0: all at once
  double burstiness = 1;            // shape of the gamma distribution of the gaps; 1: Poisson
  int64_t sonnet_prefix_len = 200;  // tokens with which all prompts of sonnet begin
  int64_t canary_every = 0;         // this and every so many-th request is the canary; 0: none
  bool ignores_eos = false;
  double temperature = 0;
  uint64_t seed = 0;
};

/// The requests, in the order in which they start. The same for the same plan.
/// jsonl: {"prompt": TEXT} or vicuna's {"turns": [TEXT, ...]}, and optionally "output_tokens".
/// trace: CSV of TIMESTAMP,ContextTokens,GeneratedTokens (Azure's LLM inference traces): random
/// prompts of those lengths, sent at those times unless request_rate is given.
/// sonnet: prompts of lines of a text file, of about random_input_len tokens: the file's first
/// lines up to sonnet_prefix_len tokens, then lines drawn from all. Four characters count as a
/// token. The canary is one greedy request, sent first and then in place of every canary_every-th.
/// Errors: kInvalidArgument for a value, kNotFound and kCorrupt for a file, with its line.
std::vector<LoadRequest> make_load(const LoadPlan& plan);

}  // namespace caravan
