#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "apps/commands.h"
#include "apps/model_flags.h"
#include "backend/create_backend.h"
#include "core/error.h"
#include "core/jsonl.h"
#include "eval/score.h"
#include "format/model_dir.h"
#include "tokenizer/tokenizer.h"

namespace caravan {

namespace {

struct ScoreFlags {
  ModelFlags model;
  std::string input;
  int num_top = 20;
};

void run_score(const ScoreFlags& flags) {
  const ModelDir dir = open_model_dir(flags.model.model);
  const ModelRunnerOptions options{.dtype = dtype_flag(flags.model.dtype, "--dtype"),
                                   .kv_cache_dtype = kv_dtype_flag(flags.model.kv_cache_dtype),
                                   .max_num_batched_tokens = 512,
                                   .max_num_logits = 64,
                                   .max_seq_len = ModelRunner::sequence_limit(dir, 0),
                                   .max_batch_size = 1,
                                   .verify_weights = !flags.model.skips_verification};
  check_memory(dir, flags.model, options);
  ModelRunner runner(dir, create_backend(flags.model.backend()), options);
  Scorer scorer(runner);
  std::unique_ptr<Tokenizer> tokenizer;  // loaded only when a row has text
  for_each_json_line(flags.input, [&](const boost::json::object& row, const std::string& where) {
    std::vector<int32_t> ids;
    if (const boost::json::value* given = row.if_contains("ids")) {
      ids = token_ids_of(*given, where);
    } else {
      CARAVAN_CHECK_CODE(row.contains("text"), kCorrupt,
                         "{}: expected a member \"ids\" or \"text\"", where);
      if (!tokenizer) {
        tokenizer = std::make_unique<Tokenizer>(Tokenizer::from_directory(flags.model.model));
      }
      ids = tokenizer->encode(string_of(row, "text", where));
    }
    const Score score = scorer.score(ids, flags.num_top);
    boost::json::array top;
    for (const auto& [id, logit] : score.last_top) {
      top.emplace_back(boost::json::array{id, static_cast<double>(logit)});
    }
    const boost::json::object result{{"nll", score.nll},
                                     {"num_scored", score.num_scored},
                                     {"last_top20", std::move(top)},
                                     {"last_logsumexp", score.last_logsumexp}};
    std::printf("%s\n", boost::json::serialize(result).c_str());
  });
}

}  // namespace

void add_score_command(CLI::App& app) {
  auto flags = std::make_shared<ScoreFlags>();
  CLI::App* command = app.add_subcommand(
      "score",
      "Log-likelihood of given texts: {\"ids\"} or {\"text\"} a line in, one JSON object a "
      "line out: nll (summed, nats), num_scored, last_top20, last_logsumexp");
  flags->model.add_to(*command);
  command->add_option("--input", flags->input, "JSON Lines file, or - for standard input")
      ->required();
  command->callback([flags] { run_score(*flags); });
}

}  // namespace caravan
