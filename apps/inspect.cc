#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>

#include "apps/commands.h"
#include "convert/byte_size.h"
#include "convert/lint.h"
#include "convert/model_files.h"
#include "core/error.h"
#include "core/json_text.h"
#include "core/log.h"
#include "core/mapped_file.h"
#include "core/standard_output.h"
#include "format/model_dir.h"
#include "format/weight_check.h"
#include "tokenizer/model_chat_template.h"
#include "tokenizer/tokenizer.h"

namespace caravan {

namespace {

struct Flags {
  std::string model;
  bool is_json = false;
  bool lint = false;
  bool checksums = false;
};

const char* kind_name(ModelDirKind kind) {
  switch (kind) {
    case ModelDirKind::kHuggingFace:
      return "Hugging Face";
    case ModelDirKind::kCheckpoint:
      return "checkpoint";
    case ModelDirKind::kEngine:
      return "engine";
  }
  return "?";
}

struct TensorRow {
  std::string name;
  DType dtype;
  std::string shape;  // "[4096,12288]"; of an engine's packed matrix "4096 x 12288 panel32"
  int64_t num_bytes;
};

std::vector<TensorRow> tensor_rows(const ModelDir& dir, int rank) {
  const TensorSource source = dir.kind == ModelDirKind::kHuggingFace
                                  ? TensorSource::open_directory(dir.path)
                                  : TensorSource::open_file(dir.rank_path(rank));
  std::vector<TensorRow> rows;
  for (const StoredTensor& tensor : source.tensors()) {
    std::string shape = tensor.shape.to_string();
    const auto entry = dir.tensors.find(tensor.name);
    if (entry != dir.tensors.end() && entry->second.in_features != 0) {
      shape = fmt::format("{} x {} {}", entry->second.in_features, entry->second.out_features,
                          linear_layout_name(entry->second.layout));
    }
    rows.push_back({tensor.name, tensor.dtype, shape, static_cast<int64_t>(tensor.num_bytes())});
  }
  return rows;
}

boost::json::object config_json(const ModelConfig& config) {
  boost::json::array eos(config.eos_token_ids.begin(), config.eos_token_ids.end());
  return {{"architecture", config.architecture},
          {"parameters", config.num_parameters()},
          {"vocab_size", config.vocab_size},
          {"hidden_size", config.hidden_size},
          {"num_layers", config.num_layers},
          {"num_heads", config.num_heads},
          {"head_dim", config.head_dim()},
          {"ffn_size", config.ffn_size},
          {"max_seq_len", config.max_seq_len},
          {"activation_function", config.activation_function},
          {"activation", activation_name(config.activation)},
          {"layer_norm_epsilon", config.layer_norm_epsilon},
          {"tie_word_embeddings", config.tie_word_embeddings},
          {"torch_dtype", dtype_name(config.torch_dtype)},
          {"eos_token_ids", std::move(eos)}};
}

std::vector<LintFinding> lint(const ModelDir& dir) {
  LintInputs inputs;
  const TokenizerOrReason loaded = try_load_tokenizer(dir.path);
  inputs.tokenizer_problem = loaded.reason;
  if (loaded) inputs.tokenizer_vocab_size = loaded.value().vocab_size();
  inputs.chat_template_file = model_chat_template(dir.path);
  if (dir.kind == ModelDirKind::kEngine || dir.tensor_parallel > 1) return lint_model(dir, inputs);
  const TensorSource source = TensorSource::open_directory(dir.path);
  const ResolvedWeights weights =
      resolve_gpt2_weights(source, dir.config, dir.path, dir.kv_scale_dtype.has_value());
  inputs.weights = &weights;
  return lint_model(dir, inputs);
}

boost::json::object report(const ModelDir& dir) {
  boost::json::object json = {{"path", dir.path},
                              {"kind", kind_name(dir.kind)},
                              {"config", config_json(dir.config)},
                              {"tensor_parallel", dir.tensor_parallel}};
  if (dir.kind != ModelDirKind::kHuggingFace) {
    json["has_own_head"] = dir.has_own_head;
    // Everything that convert or build recorded, but for the tables of tensors.
    boost::json::object caravan = dir.caravan;
    caravan.erase("tensors");
    caravan.erase("checksums");
    json["caravan"] = std::move(caravan);
  }
  boost::json::array ranks;
  for (int rank = 0; rank < dir.tensor_parallel; ++rank) {
    boost::json::array tensors;
    for (const TensorRow& row : tensor_rows(dir, rank)) {
      boost::json::object tensor = {{"name", row.name},
                                    {"dtype", dtype_name(row.dtype)},
                                    {"shape", row.shape},
                                    {"bytes", row.num_bytes}};
      tensors.push_back(std::move(tensor));
    }
    ranks.push_back(std::move(tensors));
  }
  json["tensors"] = std::move(ranks);
  return json;
}

void print_text(const boost::json::object& json) {
  print_output("{}: {}\n", std::string(json.at("path").get_string()),
               std::string(json.at("kind").get_string()));
  for (const char* section : {"config", "caravan"}) {
    const boost::json::value* object = json.if_contains(section);
    if (object == nullptr) continue;
    for (const auto& member : object->get_object()) {
      print_output("  {:<22} {}\n", std::string(member.key()), to_json_text(member.value()));
    }
  }
  int rank = 0;
  for (const boost::json::value& tensors : json.at("tensors").get_array()) {
    int64_t total = 0;
    print_output("tensors of rank {}:\n", rank++);
    for (const boost::json::value& value : tensors.get_array()) {
      const boost::json::object& tensor = value.get_object();
      total += tensor.at("bytes").get_int64();
      print_output("  {:<36} {:<9} {:<28} {:>16} B\n",
                   printable(std::string_view(tensor.at("name").get_string())),
                   std::string(tensor.at("dtype").get_string()),
                   std::string(tensor.at("shape").get_string()),
                   group_digits(tensor.at("bytes").get_int64()));
    }
    print_output("  {} tensors, {}\n", tensors.get_array().size(), format_bytes(total));
  }
}

void run_inspect(const Flags& flags) {
  const ModelDir dir = open_model_dir(flags.model);
  boost::json::object json = report(dir);
  std::vector<LintFinding> findings;
  if (flags.lint) {
    findings = lint(dir);
    boost::json::array list;
    for (const LintFinding& finding : findings) {
      list.push_back({{"severity", lint_severity_name(finding.severity)},
                      {"id", finding.id},
                      {"message", finding.message}});
    }
    json["lint"] = std::move(list);
  }
  if (flags.checksums) {
    CARAVAN_CHECK(dir.kind != ModelDirKind::kHuggingFace,
                  "{}: a Hugging Face directory has no checksums; convert or build it", dir.path);
    json["checksums"] = verify_checksums(dir) ? "match" : "no table";
  }
  if (flags.is_json) {
    write_output(pretty_json(json, 4));
  } else {
    print_text(json);
    for (const LintFinding& finding : findings) {
      print_output("{}: {} [{}]\n", lint_severity_name(finding.severity), finding.message,
                   finding.id);
    }
    if (flags.checksums) {
      print_output("checksums: {}\n", json.at("checksums") == "match"
                                          ? "the weights match"
                                          : "no table; convert the model again to have one");
    }
  }
  flush_output();
  const auto is_error = [](const LintFinding& f) { return f.severity == LintSeverity::kError; };
  const auto num_errors = std::count_if(findings.begin(), findings.end(), is_error);
  CARAVAN_CHECK_CODE(num_errors == 0, kCorrupt, "{}: {} lint error{}", flags.model, num_errors,
                     num_errors == 1 ? "" : "s");
}

}  // namespace

void add_inspect_command(CLI::App& app) {
  auto flags = std::make_shared<Flags>();
  CLI::App* command = app.add_subcommand(
      "inspect",
      "Show what a model directory is: kind, configuration, limits, memory plan, certificate, and "
      "every tensor with dtype, shape and size. Exit status 65 when --lint finds an error or "
      "--checksums a difference; warnings and notes do not change it.");
  command->add_option("--model,-m,directory", flags->model, "Model directory")->required();
  command->add_flag("--json", flags->is_json, "Print JSON");
  command->add_flag(
      "--lint", flags->lint,
      "Look for settings that are probably not meant: a head that differs though tied, "
      "stored masks, exact against tanh GELU, token ids out of range, no end of text, "
      "conflicting lengths, a tokenizer of another size");
  command->add_flag(
      "--checksums", flags->checksums,
      "Read the weights of a checkpoint or engine and compare them with the checksums "
      "in config.json; an old checkpoint has none");
  command->callback([flags] { run_inspect(*flags); });
}

}  // namespace caravan
