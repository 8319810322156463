#include <CLI/CLI.hpp>
#include <cmath>
#include <memory>

#include "apps/commands.h"
#include "apps/model_flags.h"
#include "apps/prompt_line.h"
#include "apps/prompt_tokens.h"
#include "apps/result_flags.h"
#include "backend/create_backend.h"
#include "core/error.h"
#include "core/json_text.h"
#include "core/jsonl.h"
#include "core/line_reader.h"
#include "core/log.h"
#include "core/progress.h"
#include "eval/score.h"
#include "eval/statistics.h"
#include "format/model_dir.h"
#include "tokenizer/tokenizer.h"

namespace caravan {

namespace {

struct ScoreFlags {
  ModelFlags model;
  std::string input;
  ResultFlags results;
  bool parse_special = false;
  int num_top = 20;
};

/// The figures of one text; "error" beside them when they are not all finite.
boost::json::object score_json(const Score& score) {
  bool is_finite = std::isfinite(score.nll) && std::isfinite(score.last_logsumexp);
  boost::json::array top;
  for (const auto& [id, logit] : score.last_top) {
    is_finite = is_finite && std::isfinite(logit);
    top.emplace_back(boost::json::array{id, number_json(static_cast<double>(logit))});
  }
  boost::json::object row{{"nll", number_json(score.nll)},
                          {"num_scored", score.num_scored},
                          {"last_top20", std::move(top)},
                          {"last_logsumexp", number_json(score.last_logsumexp)}};
  if (!is_finite) row["error"] = "the model's logits are not finite";
  return row;
}

/// Scores line after line; see add_score_command.
class ScoreBatch {
 public:
  ScoreBatch(const ScoreFlags& flags, LineReader& reader, ResultLog& log, Scorer& scorer)
      : flags_(flags),
        reader_(reader),
        log_(log),
        resumed_(log),
        scorer_(scorer),
        tokenizer_(try_load_tokenizer(flags.model.model)),
        special_(tokenizer_ ? &*tokenizer_.tokenizer : nullptr),
        progress_("score", static_cast<uint64_t>(reader.count_lines()), "lines") {}

  int run() {
    std::string line;
    int64_t num_texts = 0, num_failed = 0;
    for (; reader_.next(line, kMaxJsonLineBytes); progress_.add(1)) {
      if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
      ++num_texts;
      const std::string checksum = log_.is_file() ? line_checksum(line) : "";
      if (log_.is_file()) {
        const ResumedLines::Rows there = resumed_.take(reader_.number(), checksum);
        num_failed += there.has_failed ? 1 : 0;
        if (there.count > 0) continue;
      }
      boost::json::object row = score_line(line);
      num_failed += row.contains("error") ? 1 : 0;
      if (log_.is_file()) row["input_checksum"] = checksum;
      log_.append(std::move(row));
    }
    resumed_.finish();
    progress_.finish();
    special_.report();
    CARAVAN_CHECK_CODE(num_texts > 0, kCorrupt, "{}: no texts", reader_.path());
    if (num_failed > 0) log_warning("{} of {} texts failed", num_failed, num_texts);
    return num_failed > 0 ? 1 : 0;
  }

 private:
  boost::json::object score_line(const std::string& text) {
    const std::string where = reader_.where();
    boost::json::object row;
    std::vector<int32_t> ids;
    try {
      CARAVAN_CHECK_CODE(!reader_.is_too_long(), kCorrupt,
                         "{}: the line has more than {} bytes; is this JSON Lines?", where,
                         kMaxJsonLineBytes);
      const boost::json::value value = parse_json(text, where);
      CARAVAN_CHECK_CODE(value.is_object(), kCorrupt, "{}: expected a JSON object", where);
      row = line_names(value.get_object());
      row["line"] = reader_.number();
      const ScoreLine line = parse_score_line(value.get_object(), flags_.parse_special, where);
      ids = token_ids(line, where);
    } catch (const Error& error) {
      if (!is_of_the_line(error)) throw;
      row["line"] = reader_.number();
      row["error"] = error.what();
      return row;
    }
    // Here only a text of a wrong length is the line's fault; damaged weights end the run.
    try {
      for (auto& member : score_json(scorer_.score(ids, flags_.num_top))) {
        row[member.key()] = std::move(member.value());
      }
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kInvalidArgument) throw;
      row["error"] = fmt::format("{}: {}", where, error.what());
    }
    return row;
  }

  std::vector<int32_t> token_ids(const ScoreLine& line, const std::string& where) {
    if (line.is_ids) return line.ids;
    special_.look_at(
        {.prompt = line.text, .prompt_ids = {}, .parse_special = line.parse_special, .params = {}},
        where);
    try {
      return tokenizer_.value().encode(line.text,
                                       {.parse_special = line.parse_special, .add_special = true});
    } catch (const Error& error) {
      throw Error(error.code(), fmt::format("{}: {}", where, error.what()));
    }
  }

  const ScoreFlags& flags_;
  LineReader& reader_;
  ResultLog& log_;
  ResumedLines resumed_;
  Scorer& scorer_;
  TokenizerOrReason tokenizer_;
  SpecialTextWarning special_;
  Progress progress_;
};

int run_score(const ScoreFlags& flags) {
  const ModelDir dir = open_model_dir(flags.model.model);
  const ModelRunnerOptions options{.dtype = dtype_flag(flags.model.dtype, "--dtype"),
                                   .kv_cache_dtype = kv_dtype_flag(flags.model.kv_cache_dtype),
                                   .max_num_batched_tokens = 512,
                                   .max_num_logits = 64,
                                   .max_seq_len = ModelRunner::sequence_limit(dir, 0),
                                   .max_batch_size = 1,
                                   .verify_weights = !flags.model.skips_verification};
  boost::json::object settings = model_settings(flags.model);
  settings["--parse-special"] = flags.parse_special;
  LineReader reader(flags.input);
  ResultLog log(flags.results.output, flags.results.mode(), ResultSettings(settings), flags.input);
  check_memory(dir, flags.model, options);
  ModelRunner runner(dir, create_backend(flags.model.backend()), options);
  Scorer scorer(runner);
  return ScoreBatch(flags, reader, log, scorer).run();
}

}  // namespace

void add_score_command(CLI::App& app) {
  auto flags = std::make_shared<ScoreFlags>();
  CLI::App* command = app.add_subcommand(
      "score",
      "Log-likelihood of given texts: {\"ids\"} or {\"text\"} a line in, one JSON object a "
      "line out: nll (summed, nats), num_scored, last_top20, last_logsumexp");
  flags->model.add_to(*command);
  command->add_option("--input,-f", flags->input, "JSON Lines file, or - for standard input")
      ->required();
  flags->results.add_to(*command);
  command->add_flag("--parse-special", flags->parse_special,
                    "\"<|endoftext|>\" and the like in the texts are the tokens they name");
  command->callback([flags] {
    const int status = run_score(*flags);
    if (status != 0) throw CLI::RuntimeError(status);
  });
}

}  // namespace caravan
