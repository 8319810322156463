#include <map>

#include "core/error.h"
#include "core/progress.h"
#include "models/gpt2.h"

namespace caravan {

namespace {

// `tensor` as `dtype` in aligned memory: a view of the mapped file when nothing needs to change,
// else a conversion in `storage`.
const void* as_dtype(const StoredTensor& tensor, DType dtype, Buffer& storage) {
  const size_t count = static_cast<size_t>(tensor.shape.num_elements());
  const bool is_aligned = reinterpret_cast<uintptr_t>(tensor.data()) % dtype_size(dtype) == 0;
  if (tensor.dtype == dtype && is_aligned) return tensor.data();
  storage = Buffer::host(count * dtype_size(dtype));
  convert_elements_in_parallel(tensor.data(), tensor.dtype, storage.data(), dtype, count);
  return storage.data();
}

bool is_matrix(WeightRole role) {
  return role == WeightRole::kLinear || role == WeightRole::kTokenEmbedding ||
         role == WeightRole::kHead;
}

}  // namespace

DType choose_weight_dtype(const ModelDir& dir, const TensorSource& source,
                          std::optional<DType> wanted) {
  if (dir.kind == ModelDirKind::kEngine) {
    CARAVAN_CHECK_CODE(dir.build.has_value(), kCorrupt, "{}: an engine without build limits",
                       dir.path);
    CARAVAN_CHECK(!wanted || *wanted == dir.build->dtype,
                  "{}: the engine was built as {}; --dtype {} needs a new `caravan build`",
                  dir.path, dtype_name(dir.build->dtype), dtype_name(*wanted));
    return dir.build->dtype;
  }
  if (wanted) {
    CARAVAN_CHECK(*wanted == DType::kF32 || *wanted == DType::kF16 || *wanted == DType::kBF16,
                  "dtype {}, expected float32, float16 or bfloat16", dtype_name(*wanted));
    return *wanted;
  }
  for (const char* name : {"wte.weight", "transformer.wte.weight"}) {
    const StoredTensor* wte = source.find(name);
    if (wte != nullptr && (wte->dtype == DType::kF16 || wte->dtype == DType::kBF16)) {
      return wte->dtype;
    }
  }
  return DType::kF16;
}

/// Fills a Gpt2Model tensor by tensor; the only place that knows where each weight goes.
class Gpt2Model::Loader {
 public:
  Loader(const ModelDir& dir, Backend& backend)
      : dir_(dir), backend_(backend), model_(dir.config, backend) {}

  Gpt2Model load(std::optional<DType> wanted) {
    CARAVAN_CHECK_CODE(
        dir_.tensor_parallel == 1, kUnsupported,
        "{}: split for {} tensor-parallel ranks; this version runs one rank: convert "
        "with --tensor-parallel 1",
        dir_.path, dir_.tensor_parallel);
    TensorSource source = dir_.kind == ModelDirKind::kHuggingFace
                              ? TensorSource::open_directory(dir_.path)
                              : TensorSource::open_file(dir_.rank_path(0));
    dtype_ = choose_weight_dtype(dir_, source, wanted);
    model_.weight_dtype_ = dtype_;
    model_.activation_dtype_ = backend_.activation_dtype(dtype_);
    if (dir_.kind == ModelDirKind::kEngine) {
      load_engine(source);
      model_.sources_.push_back(std::move(source));
    } else {
      load_stored(source);
    }
    assign();
    return std::move(model_);
  }

  Gpt2Model random(DType dtype, uint64_t seed) {
    dtype_ = model_.weight_dtype_ = dtype;
    model_.activation_dtype_ = backend_.activation_dtype(dtype);
    for (const WeightSpec& spec : gpt2_weight_specs(model_.config_, false)) {
      const DType stored = spec.role == WeightRole::kVector ? DType::kF32 : dtype;
      const LinearLayout layout = backend_.linear_layout(stored);
      const int64_t count = is_matrix(spec.role)
                                ? linear_num_elements(layout, spec.in_features, spec.out_features)
                                : spec.shape.num_elements();
      model_.buffers_.push_back(backend_.allocate(static_cast<size_t>(count) * dtype_size(stored)));
      void* data = model_.buffers_.back().data();
      // Radford et al. 2019: normal of 0.02, here uniform of the same deviation; LayerNorm near 1.
      const bool is_norm_weight =
          spec.name.find("ln_") != std::string::npos && spec.name.ends_with(".weight");
      backend_.fill_random(data, stored, count, is_norm_weight ? 1.0f : 0.0f, 0.02f * 1.7320508f,
                           seed++);
      add(spec, data, stored, layout);
    }
    assign();
    return std::move(model_);
  }

 private:
  void load_engine(const TensorSource& source) {
    model_.has_own_head_ = dir_.has_own_head;
    for (const WeightSpec& spec : gpt2_weight_specs(dir_.config, dir_.has_own_head)) {
      const StoredTensor* tensor = source.find(spec.name);
      const auto record = dir_.tensors.find(spec.name);
      CARAVAN_CHECK_CODE(tensor != nullptr && record != dir_.tensors.end(), kCorrupt,
                         "{}: {} is missing from the {}", dir_.path, spec.name,
                         tensor == nullptr ? "weight file" : "tensor table");
      const EngineTensor& info = record->second;
      const DType dtype = spec.role == WeightRole::kVector ? DType::kF32 : dtype_;
      CARAVAN_CHECK_CODE(tensor->dtype == dtype, kCorrupt, "{}: {} is {}, expected {}", dir_.path,
                         spec.name, dtype_name(tensor->dtype), dtype_name(dtype));
      int64_t elements = spec.shape.num_elements();
      if (is_matrix(spec.role)) {
        CARAVAN_CHECK_CODE(backend_.reads_layout(info.layout, dtype_), kUnsupported,
                           "{}: {} is packed as {}, this backend reads {}; build the engine again "
                           "for this machine",
                           dir_.path, spec.name, linear_layout_name(info.layout),
                           linear_layout_name(backend_.linear_layout(dtype_)));
        CARAVAN_CHECK_CODE(
            info.in_features == spec.in_features && info.out_features == spec.out_features,
            kCorrupt, "{}: {} is {} x {} in the tensor table, expected {} x {}", dir_.path,
            spec.name, info.in_features, info.out_features, spec.in_features, spec.out_features);
        elements = linear_num_elements(info.layout, spec.in_features, spec.out_features);
      }
      CARAVAN_CHECK_CODE(tensor->shape.num_elements() == elements, kCorrupt,
                         "{}: {} has {} elements, expected {}", dir_.path, spec.name,
                         tensor->shape.num_elements(), elements);
      const void* data = tensor->data();
      if (!backend_.reads_host_memory() || reinterpret_cast<uintptr_t>(data) % 64 != 0) {
        data = to_device(data, tensor->num_bytes());
      }
      add(spec, data, dtype, info.layout);
    }
  }

  void load_stored(const TensorSource& source) {
    const ResolvedWeights resolved = resolve_gpt2_weights(source, dir_.config, dir_.path);
    model_.has_own_head_ = resolved.has_own_head;
    uint64_t total = 0;
    for (const ResolvedWeight& w : resolved.weights) total += w.tensor->num_bytes();
    Progress progress("loading", total, "B");
    for (const ResolvedWeight& w : resolved.weights) {
      load_one(w);
      w.tensor->file->release(w.tensor->offset, w.tensor->num_bytes());
      progress.add(w.tensor->num_bytes());
    }
  }

  void load_one(const ResolvedWeight& w) {
    const DType dtype = w.spec.role == WeightRole::kVector ? DType::kF32 : dtype_;
    const LinearLayout layout = backend_.linear_layout(dtype);
    if (!is_matrix(w.spec.role)) {
      Buffer converted;
      const void* source = as_dtype(*w.tensor, dtype, converted);
      add(w.spec,
          to_device(source, static_cast<size_t>(w.spec.shape.num_elements()) * dtype_size(dtype)),
          dtype, layout);
      return;
    }
    const auto num_bytes =
        static_cast<size_t>(linear_num_elements(layout, w.spec.in_features, w.spec.out_features)) *
        dtype_size(dtype);
    model_.buffers_.push_back(backend_.allocate(num_bytes));
    void* packed = model_.buffers_.back().data();
    backend_.pack_weight(w.tensor->data(), w.tensor->dtype, w.spec.stored_layout,
                         w.spec.in_features, w.spec.out_features, dtype, packed);
    add(w.spec, packed, dtype, layout);
  }

  const void* to_device(const void* host, size_t num_bytes) {
    model_.buffers_.push_back(backend_.allocate(num_bytes));
    backend_.copy_from_host(host, model_.buffers_.back().data(), num_bytes);
    return model_.buffers_.back().data();
  }

  void add(const WeightSpec& spec, const void* data, DType dtype, LinearLayout layout) {
    if (is_matrix(spec.role)) {
      matrices_[spec.name] = {.data = data,
                              .dtype = dtype,
                              .layout = layout,
                              .in_features = spec.in_features,
                              .out_features = spec.out_features};
    } else {
      plain_[spec.name] = {data, dtype, spec.shape};
    }
  }

  LayerNormWeights layer_norm(const std::string& name) const {
    return {.weight = plain_.at(name + ".weight"), .bias = plain_.at(name + ".bias")};
  }
  LinearWeight linear(const std::string& name) const {
    LinearWeight weight = matrices_.at(name + ".weight");
    weight.bias = bias(name);
    return weight;
  }
  const float* bias(const std::string& name) const { return plain_.at(name + ".bias").as<float>(); }

  void assign() {
    model_.wte_ = matrices_.at("wte.weight");
    model_.head_ = model_.has_own_head_ ? matrices_.at("lm_head.weight") : model_.wte_;
    model_.wpe_ = plain_.at("wpe.weight");
    for (int64_t i = 0; i < model_.config_.num_layers; ++i) {
      const std::string h = fmt::format("h.{}.", i);
      model_.layers_.push_back({.ln_1 = layer_norm(h + "ln_1"),
                                .c_attn = linear(h + "attn.c_attn"),
                                .attn_c_proj = matrices_.at(h + "attn.c_proj.weight"),
                                .attn_c_proj_bias = bias(h + "attn.c_proj"),
                                .ln_2 = layer_norm(h + "ln_2"),
                                .c_fc = linear(h + "mlp.c_fc"),
                                .mlp_c_proj = matrices_.at(h + "mlp.c_proj.weight"),
                                .mlp_c_proj_bias = bias(h + "mlp.c_proj")});
    }
    model_.ln_f_ = layer_norm("ln_f");
  }

  const ModelDir& dir_;
  Backend& backend_;
  Gpt2Model model_;
  DType dtype_ = DType::kF32;
  std::map<std::string, LinearWeight> matrices_;
  std::map<std::string, ConstTensor> plain_;
};

Gpt2Model Gpt2Model::load(const ModelDir& dir, Backend& backend, std::optional<DType> dtype) {
  return Loader(dir, backend).load(dtype);
}

Gpt2Model Gpt2Model::random(const ModelConfig& config, Backend& backend, DType dtype,
                            uint64_t seed) {
  ModelDir dir;
  dir.config = config;
  return Loader(dir, backend).random(dtype, seed);
}

}  // namespace caravan
