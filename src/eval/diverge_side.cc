#include "eval/diverge_side.h"

#include <algorithm>

#include "core/error.h"
#include "core/mapped_file.h"

namespace caravan {

namespace {

// Appends rows to the values of their operator; rows come in order.
LayerStream::Hook recorder(OpValues& values) {
  return [&values](std::string_view name, int64_t, const Tensor& value) {
    auto& all = values[std::string(name)];
    all.insert(all.end(), value.as<float>(), value.as<float>() + value.shape.num_elements());
    return false;
  };
}

int64_t op_width(const OpId& op, const ModelConfig& config) {
  switch (op.kind) {
    case OpKind::kCAttn:
      return 3 * config.hidden_size;
    case OpKind::kMlpAct:
      return config.ffn_size;
    case OpKind::kLogits:
      return config.vocab_size;
    default:
      return config.hidden_size;
  }
}

// "dtype" of the file's metadata.
std::optional<DType> metadata_dtype(const std::string& path) {
  const MappedFile file = MappedFile::open(path);
  const SafetensorsHeader header = parse_safetensors({file.data(), file.size()}, path);
  const auto found = header.metadata.find("dtype");
  if (found == header.metadata.end()) return std::nullopt;
  std::string_view name = found->second;
  if (name.starts_with("torch.")) name.remove_prefix(6);
  const std::optional<DType> dtype = parse_dtype(name);
  CARAVAN_CHECK_CODE(
      dtype == DType::kF64 || dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16,
      kCorrupt, "{}: metadata \"dtype\" is {}, expected float32, float16 or bfloat16", path,
      printable(found->second));
  return dtype;
}

}  // namespace

ModelSide::ModelSide(std::unique_ptr<LayerStream> stream, const DivergeInput& input)
    : stream_(std::move(stream)), input_(input) {
  states_.resize(input.ids.size() * static_cast<size_t>(stream_->config().hidden_size));
}

std::string ModelSide::description() const {
  return fmt::format("{}, {} weights, {} KV cache", stream_->backend().description(),
                     dtype_name(stream_->weight_dtype()), dtype_name(stream_->kv_cache_dtype()));
}

OpValues ModelSide::embedding() {
  OpValues values;
  stream_->load_embedding();
  stream_->embed(input_.ids, input_.lengths, states_, recorder(values));
  return values;
}

OpValues ModelSide::layer(int64_t index) {
  OpValues values;
  stream_->load_layer(index);
  stream_->run_layer(input_.lengths, states_, recorder(values));
  return values;
}

OpValues ModelSide::head(int64_t first_row, int64_t num_rows) {
  if (!has_head_) stream_->load_head();
  has_head_ = true;
  OpValues values;
  auto& logits = values["logits"];
  const auto hidden = static_cast<size_t>(stream_->config().hidden_size);
  const std::span<const float> states(states_);
  stream_->run_head(
      states.subspan(static_cast<size_t>(first_row) * hidden,
                     static_cast<size_t>(num_rows) * hidden),
      [&](int64_t, const Tensor& value) {
        logits.insert(logits.end(), value.as<float>(),
                      value.as<float>() + value.shape.num_elements());
      },
      recorder(values));
  return values;
}

DumpSide::DumpSide(LogitsDump dump, const ModelConfig& config, std::optional<DType> compute,
                   int64_t max_tokens)
    : dump_(std::move(dump)), num_layers_(config.num_layers), vocab_size_(config.vocab_size) {
  CARAVAN_CHECK(dump_.vocab_size() == vocab_size_,
                "{}: logits of a vocabulary of {}, the model has {}: not a dump of this model",
                dump_.path(), dump_.vocab_size(), vocab_size_);
  const std::string prefix = "hidden.";
  DType widest = dump_.dtype();
  for (const StoredTensor& tensor : dump_.tensors().tensors()) {
    if (!tensor.name.starts_with(prefix)) continue;
    const std::string name = tensor.name.substr(prefix.size());
    const std::optional<OpId> op = parse_op_name(name);
    if (!op || op->kind == OpKind::kLogits || op->layer >= num_layers_) continue;
    CARAVAN_CHECK_CODE(
        tensor.dtype == DType::kF32 || tensor.dtype == DType::kF16 || tensor.dtype == DType::kBF16,
        kUnsupported, "{}: {} is {}, expected float32, float16 or bfloat16", dump_.path(),
        tensor.name, dtype_name(tensor.dtype));
    const Shape wanted{dump_.num_tokens(), op_width(*op, config)};
    CARAVAN_CHECK_CODE(tensor.shape == wanted, kCorrupt, "{}: {} has shape {}, expected {}",
                       dump_.path(), tensor.name, tensor.shape.to_string(), wanted.to_string());
    if (dtype_size(tensor.dtype) > dtype_size(widest)) widest = tensor.dtype;
    if (dtype_size(tensor.dtype) == dtype_size(widest)) widest = tensor.dtype;
    hidden_[name] = &tensor;
  }
  compute_ = compute ? *compute : metadata_dtype(dump_.path()).value_or(widest);
  // Rows of the dump are those of the input only while windows are taken whole.
  for (int64_t w = 0; w < dump_.num_windows(); ++w) {
    const int64_t length = dump_.window_end(w) - dump_.window_begin(w);
    const int64_t room = max_tokens - input_.num_tokens();
    if (room <= 0) break;
    CARAVAN_CHECK(length <= config.max_seq_len, "{}: a window of {} tokens, the model has {}",
                  dump_.path(), length, config.max_seq_len);
    const int64_t taken = std::min(length, room);
    const auto ids = dump_.input_ids().subspan(static_cast<size_t>(dump_.window_begin(w)),
                                               static_cast<size_t>(taken));
    input_.ids.insert(input_.ids.end(), ids.begin(), ids.end());
    input_.lengths.push_back(taken);
  }
}

std::string DumpSide::description() const {
  return fmt::format("dump {}, {}, logits and {} recorded operators", dump_.path(),
                     dtype_name(compute_), num_hidden());
}

SideRounding DumpSide::rounding() const {
  SideRounding rounding;
  if (compute_ == DType::kF16 || compute_ == DType::kBF16) {
    rounding.weights = rounding.activations = rounding.kv_cache = rounding.stream = compute_;
    rounding.rounds_inside = true;
  }
  rounding.logits = dump_.dtype();
  return rounding;
}

void DumpSide::read(const std::string& name, int64_t first_row, int64_t num_rows,
                    OpValues& values) const {
  const auto found = hidden_.find(name);
  if (found == hidden_.end()) return;
  const StoredTensor& tensor = *found->second;
  const auto width = static_cast<size_t>(tensor.shape[1]);
  const size_t first = static_cast<size_t>(first_row) * width;
  auto& out = values[name];
  out.resize(static_cast<size_t>(num_rows) * width);
  convert_elements_in_parallel(tensor.data() + first * dtype_size(tensor.dtype), tensor.dtype,
                               out.data(), DType::kF32, out.size());
}

OpValues DumpSide::embedding() {
  OpValues values;
  read("embedding", 0, input_.num_tokens(), values);
  return values;
}

OpValues DumpSide::layer(int64_t index) {
  OpValues values;
  for (const OpKind kind : {OpKind::kLn1, OpKind::kCAttn, OpKind::kAttention, OpKind::kAttnResidual,
                            OpKind::kLn2, OpKind::kMlpAct, OpKind::kLayer}) {
    read(op_name({kind, index}), 0, input_.num_tokens(), values);
  }
  return values;
}

OpValues DumpSide::head(int64_t first_row, int64_t num_rows) {
  OpValues values;
  read("ln_f", first_row, num_rows, values);
  auto& logits = values["logits"];
  const auto vocab = static_cast<size_t>(vocab_size_);
  logits.resize(static_cast<size_t>(num_rows) * vocab);
  for (int64_t i = 0; i < num_rows; ++i) {
    dump_.read_row(first_row + i, std::span(logits).subspan(static_cast<size_t>(i) * vocab, vocab));
  }
  return values;
}

}  // namespace caravan
