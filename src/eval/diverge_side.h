#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "eval/diverge_ops.h"
#include "eval/diverge_rounding.h"
#include "eval/logits_dump.h"
#include "format/model_config.h"
#include "models/layer_stream.h"

namespace caravan {

/// The tokens that both sides read: sequences, one after the other.
struct DivergeInput {
  std::vector<int32_t> ids;
  std::vector<int64_t> lengths;

  int64_t num_tokens() const { return static_cast<int64_t>(ids.size()); }
};

/// What a model is compared with: another model or recorded values. Parts are asked for in order,
/// each once, and only the last one is in memory.
class DivergeSide {
 public:
  virtual ~DivergeSide() = default;

  virtual std::string description() const = 0;
  virtual SideRounding rounding() const = 0;
  /// Null where it is not known.
  virtual const ModelConfig* config() const { return nullptr; }
  virtual const Gpt2Weights* weights() const { return nullptr; }

  /// What the operators of the part made of all tokens; those that are there.
  virtual OpValues embedding() = 0;
  virtual OpValues layer(int64_t index) = 0;
  /// "ln_f" and "logits" of tokens first_row...; after the last layer, rows in order.
  virtual OpValues head(int64_t first_row, int64_t num_rows) = 0;
};

/// A model that runs here, one layer in memory at a time. `input` must outlive it.
class ModelSide : public DivergeSide {
 public:
  ModelSide(std::unique_ptr<LayerStream> stream, const DivergeInput& input);

  std::string description() const override;
  SideRounding rounding() const override { return rounding_of(*stream_); }
  const ModelConfig* config() const override { return &stream_->config(); }
  const Gpt2Weights* weights() const override { return &stream_->weights(); }
  OpValues embedding() override;
  OpValues layer(int64_t index) override;
  OpValues head(int64_t first_row, int64_t num_rows) override;

 private:
  std::unique_ptr<LayerStream> stream_;
  const DivergeInput& input_;
  std::vector<float> states_;
  bool has_head_ = false;
};

/// A logits dump (eval/logits_dump.h) with any of the tensors "hidden.<operator>", float32, float16
/// or bfloat16 [N, ...], as tools/hf_reference.py writes it.
class DumpSide : public DivergeSide {
 public:
  /// `compute`: the dtype in which it was computed; unset: what its metadata say under "dtype",
  /// else the widest dtype of its tensors. Errors: kInvalidArgument for another vocabulary or
  /// longer windows than the model's; kCorrupt or kUnsupported naming a hidden tensor whose shape
  /// or dtype cannot be, for a model of `config`.
  DumpSide(LogitsDump dump, const ModelConfig& config, std::optional<DType> compute,
           int64_t max_tokens);

  /// The dump's ids and windows, the first max_tokens of them.
  const DivergeInput& input() const { return input_; }
  int64_t num_hidden() const { return static_cast<int64_t>(hidden_.size()); }

  std::string description() const override;
  SideRounding rounding() const override;
  OpValues embedding() override;
  OpValues layer(int64_t index) override;
  OpValues head(int64_t first_row, int64_t num_rows) override;

 private:
  void read(const std::string& name, int64_t first_row, int64_t num_rows, OpValues& values) const;

  LogitsDump dump_;
  int64_t num_layers_;
  int64_t vocab_size_;
  DType compute_;
  DivergeInput input_;
  std::map<std::string, const StoredTensor*> hidden_;  // by operator
};

}  // namespace caravan
