#include "models/gpt2_weights.h"

#include <algorithm>
#include <set>

#include "core/cpu_count.h"
#include "core/error.h"

namespace caravan {

namespace {

constexpr uintptr_t kMappedAlignment = 64;  // bytes, of what the kernels read where it lies
// Half of the threads, because the first step runs beside them; more than so many are not faster
// than the memory.
constexpr int kMaxCheckThreads = 8;

// `tensor` as `dtype` in aligned memory: a view of the mapped file when nothing needs to change,
// else a conversion in `storage`.
const void* as_dtype(const StoredTensor& tensor, DType dtype, Buffer& storage) {
  const int64_t count = tensor.shape.num_elements();
  const bool is_aligned = reinterpret_cast<uintptr_t>(tensor.first_byte()) % dtype_size(dtype) == 0;
  if (tensor.dtype == dtype && is_aligned && tensor.is_contiguous()) return tensor.data();
  std::vector<std::byte> gathered;
  const std::byte* values = tensor.read(0, count, gathered);
  storage = Buffer::host(static_cast<size_t>(count) * dtype_size(dtype));
  convert_elements_in_parallel(values, tensor.dtype, storage.data(), dtype,
                               static_cast<size_t>(count));
  return storage.data();
}

LinearLayout transpose_of(LinearLayout layout) {
  return layout == LinearLayout::kInOut ? LinearLayout::kOutIn : LinearLayout::kInOut;
}

std::set<std::string> files_of(const TensorSource& source) {
  std::set<std::string> paths;
  for (const StoredTensor& tensor : source.tensors()) paths.insert(tensor.file->path());
  return paths;
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
  for (const char* name : {"wte.weight", "transformer.wte.weight", "lm_head.weight"}) {
    const StoredTensor* wte = source.find(name);
    if (wte != nullptr && (wte->dtype == DType::kF16 || wte->dtype == DType::kBF16)) {
      return wte->dtype;
    }
  }
  return DType::kF16;
}

Gpt2Weights Gpt2Weights::open(const ModelDir& dir, Backend& backend, std::optional<DType> wanted,
                              WeightCheck check) {
  CARAVAN_CHECK_CODE(dir.tensor_parallel == 1, kUnsupported,
                     "{}: split for {} tensor-parallel ranks; this version runs one rank: convert "
                     "with --tensor-parallel 1",
                     dir.path, dir.tensor_parallel);
  TensorSource source = dir.kind == ModelDirKind::kHuggingFace
                            ? TensorSource::open_directory(dir.path)
                            : TensorSource::open_file(dir.rank_path(0));
  Gpt2Weights weights(dir.config, backend, choose_weight_dtype(dir, source, wanted));
  weights.source_ = std::move(source);
  weights.is_engine_ = dir.kind == ModelDirKind::kEngine;
  weights.check_ = check;
  if (check != WeightCheck::kNone) {
    const std::set<std::string> paths = files_of(*weights.source_);
    for (const std::string& path : paths) weights.watches_.emplace_back(path);
    if (dir.kind == ModelDirKind::kHuggingFace) {
      CARAVAN_CHECK_CODE(!paths.contains(dir.rank_path(0)), kCorrupt,
                         "{}/config.json: no \"caravan\" object, but the weights are {}, which "
                         "caravan wrote with one",
                         dir.path, dir.rank_path(0));
    } else {  // before the names of a damaged header are looked for
      weights.file_check_ = std::make_unique<WeightFileCheck>(dir, *weights.source_, 0);
    }
  }
  if (weights.is_engine_) {
    weights.find_in_engine(dir);
  } else {
    weights.find_in_store(dir);
  }
  if (weights.file_check_) weights.start_checks();
  return weights;
}

Gpt2Weights Gpt2Weights::random(const ModelConfig& config, Backend& backend, DType dtype,
                                uint64_t seed) {
  Gpt2Weights weights(config, backend, dtype);
  for (WeightSpec& spec : gpt2_weight_specs(config, false)) {
    const std::string name = spec.name;
    weights.entries_[name] = {.spec = std::move(spec), .seed = seed++};
  }
  return weights;
}

void Gpt2Weights::find_in_engine(const ModelDir& dir) {
  has_own_head_ = dir.has_own_head;
  for (const WeightSpec& spec : gpt2_weight_specs(config_, has_own_head_)) {
    const StoredTensor* tensor = source_->find(spec.name);
    const auto record = dir.tensors.find(spec.name);
    CARAVAN_CHECK_CODE(tensor != nullptr && record != dir.tensors.end(), kCorrupt,
                       "{}: {} is missing from the {}", dir.path, spec.name,
                       tensor == nullptr ? "weight file" : "tensor table");
    const EngineTensor& info = record->second;
    const DType dtype = spec.role == WeightRole::kVector ? DType::kF32 : dtype_;
    CARAVAN_CHECK_CODE(tensor->dtype == dtype, kCorrupt, "{}: {} is {}, expected {}", dir.path,
                       spec.name, dtype_name(tensor->dtype), dtype_name(dtype));
    int64_t elements = spec.shape.num_elements();
    if (is_matrix(spec.role)) {
      CARAVAN_CHECK_CODE(backend_->reads_layout(info.layout, dtype_), kUnsupported,
                         "{}: {} is packed as {}, this backend reads {}; build the engine again "
                         "for this machine",
                         dir.path, spec.name, linear_layout_name(info.layout),
                         linear_layout_name(backend_->linear_layout(dtype_)));
      CARAVAN_CHECK_CODE(
          info.in_features == spec.in_features && info.out_features == spec.out_features, kCorrupt,
          "{}: {} is {} x {} in the tensor table, expected {} x {}", dir.path, spec.name,
          info.in_features, info.out_features, spec.in_features, spec.out_features);
      elements = linear_num_elements(info.layout, spec.in_features, spec.out_features);
    }
    CARAVAN_CHECK_CODE(tensor->shape.num_elements() == elements, kCorrupt,
                       "{}: {} has {} elements, expected {}", dir.path, spec.name,
                       tensor->shape.num_elements(), elements);
    entries_[spec.name] = {.spec = spec, .tensor = tensor, .layout = info.layout};
  }
}

void Gpt2Weights::find_in_store(const ModelDir& dir) {
  ResolvedWeights resolved =
      resolve_gpt2_weights(*source_, config_, dir.path, dir.kv_scale_dtype.has_value());
  has_own_head_ = resolved.has_own_head;
  for (ResolvedWeight& w : resolved.weights) {
    const std::string name = w.spec.name;
    entries_[name] = {.spec = std::move(w.spec), .tensor = w.tensor};
  }
}

bool Gpt2Weights::stays_mapped(const Entry& entry) const {
  return is_engine_ && entry.tensor != nullptr && backend_->reads_host_memory() &&
         reinterpret_cast<uintptr_t>(entry.tensor->data()) % kMappedAlignment == 0;
}

void Gpt2Weights::start_checks() {
  // What load() never comes by: scales of a KV cache.
  std::vector<std::unique_ptr<TensorCheck>> left;
  for (const StoredTensor* tensor : file_check_->tensors()) {
    const auto found = entries_.find(tensor->name);
    if (found == entries_.end()) {
      left.push_back(std::make_unique<TensorCheck>(*tensor, file_check_->find(tensor->name),
                                                   std::nullopt, file_check_->remedy()));
    } else if (check_ == WeightCheck::kInBackground && stays_mapped(found->second)) {
      left.push_back(tensor_check(found->second));
    }
  }
  const int num_threads = std::clamp(num_usable_cpus() / 2, 1, kMaxCheckThreads);
  background_ = std::make_unique<BackgroundCheck>(*file_check_, std::move(left), num_threads);
  if (check_ == WeightCheck::kAtLoad) background_->wait();
}

std::unique_ptr<TensorCheck> Gpt2Weights::tensor_check(const Entry& entry) const {
  const TensorChecksum* expected = file_check_ ? file_check_->find(entry.spec.name) : nullptr;
  // The threads that copy an engine to a device have no time for more than its checksums.
  std::optional<DType> finite_as;
  if (!is_engine_ || backend_->reads_host_memory()) {
    finite_as = entry.spec.role == WeightRole::kVector ? DType::kF32 : dtype_;
  }
  return std::make_unique<TensorCheck>(*entry.tensor, expected, finite_as,
                                       file_check_ ? file_check_->remedy() : "");
}

void Gpt2Weights::wait_until_checked() const {
  if (background_) background_->wait();
}

void Gpt2Weights::check_unchanged() const {
  for (const FileWatch& watch : watches_) watch.check();
}

void Gpt2Weights::finish_load() {
  check_unchanged();
  const auto is_mapped = [&](const auto& named) { return stays_mapped(named.second); };
  if (std::none_of(entries_.begin(), entries_.end(), is_mapped)) watches_.clear();
}

uint64_t Gpt2Weights::num_stored_bytes() const {
  uint64_t total = 0;
  for (const auto& [name, entry] : entries_) {
    if (entry.tensor != nullptr) total += entry.tensor->num_bytes();
  }
  return total;
}

const Gpt2Weights::Entry& Gpt2Weights::entry(const std::string& name) const {
  const auto found = entries_.find(name);
  CARAVAN_CHECK(found != entries_.end(), "weight {}: the model has none of this name",
                printable(name));
  return found->second;
}

// The entry's bytes where the kernels read them; `layout` says how a matrix lies there.
const void* Gpt2Weights::load(const Entry& entry, LinearLayout& layout,
                              std::vector<Buffer>& buffers, Progress* progress) const {
  const WeightSpec& spec = entry.spec;
  const DType dtype = spec.role == WeightRole::kVector ? DType::kF32 : dtype_;
  layout = is_engine_ ? entry.layout : backend_->linear_layout(dtype);
  const int64_t count = is_matrix(spec.role)
                            ? linear_num_elements(layout, spec.in_features, spec.out_features)
                            : spec.shape.num_elements();
  const auto allocate = [&] {
    buffers.push_back(backend_->allocate(static_cast<size_t>(count) * dtype_size(dtype)));
    return buffers.back().data();
  };
  if (entry.tensor == nullptr) {
    // Radford et al. 2019: normal of 0.02, here uniform of the same deviation; LayerNorm near 1.
    const bool is_norm_weight =
        spec.name.find("ln_") != std::string::npos && spec.name.ends_with(".weight");
    void* data = allocate();
    backend_->fill_random(data, dtype, count, is_norm_weight ? 1.0f : 0.0f, 0.02f * 1.7320508f,
                          entry.seed);
    return data;
  }
  const StoredTensor& tensor = *entry.tensor;
  const bool is_mapped = stays_mapped(entry);
  std::unique_ptr<TensorCheck> check;
  if (check_ == WeightCheck::kAtLoad || (check_ == WeightCheck::kInBackground && !is_mapped)) {
    check = tensor_check(entry);
  }
  const bool is_packed = !is_engine_ && is_matrix(spec.role);
  // The transpose of a stored layout is the other one, so only a matrix with gaps is gathered.
  const bool is_transposed = is_packed && tensor.is_transposed();
  std::vector<std::byte> gathered;
  Buffer converted;
  const void* src = nullptr;
  if (is_transposed) {
    src = tensor.first_byte();
  } else if (is_packed || is_mapped) {
    src = tensor.read(0, tensor.shape.num_elements(), gathered);
  } else {
    src = as_dtype(tensor, dtype, converted);
  }
  // Where the device copies the stored bytes, those are looked at that it is given.
  CopyPiece copy_piece;
  if (check && !backend_->reads_host_memory() && converted.data() == nullptr) {
    copy_piece = [&check](size_t offset, const std::byte* from, std::byte* to, size_t num_bytes) {
      check->copy(offset, from, to, num_bytes);
    };
  } else if (check) {
    check->look_at_all();
    check->finish();
  }
  if (is_mapped) return src;
  void* data = allocate();
  if (is_packed) {
    backend_->pack_weight(src, tensor.dtype,
                          is_transposed ? transpose_of(spec.stored_layout) : spec.stored_layout,
                          spec.in_features, spec.out_features, dtype, data, copy_piece);
  } else {
    backend_->copy_from_host(src, data, static_cast<size_t>(count) * dtype_size(dtype), copy_piece);
  }
  if (check) check->finish();
  if (!is_engine_) tensor.release(0, tensor.shape.num_elements());
  if (progress != nullptr) progress->add(tensor.num_bytes());
  return data;
}

LinearWeight Gpt2Weights::matrix(const std::string& name, std::vector<Buffer>& buffers,
                                 Progress* progress) const {
  const Entry& e = entry(name);
  LinearWeight weight{
      .dtype = dtype_, .in_features = e.spec.in_features, .out_features = e.spec.out_features};
  weight.data = load(e, weight.layout, buffers, progress);
  return weight;
}

ConstTensor Gpt2Weights::plain(const std::string& name, std::vector<Buffer>& buffers,
                               Progress* progress) const {
  const Entry& e = entry(name);
  LinearLayout layout{};
  const void* data = load(e, layout, buffers, progress);
  return {data, e.spec.role == WeightRole::kVector ? DType::kF32 : dtype_, e.spec.shape};
}

Gpt2LayerNorm Gpt2Weights::layer_norm(const std::string& name, std::vector<Buffer>& buffers,
                                      Progress* progress) const {
  return {.weight = plain(name + ".weight", buffers, progress),
          .bias = plain(name + ".bias", buffers, progress)};
}

Gpt2Embedding Gpt2Weights::load_embedding(std::vector<Buffer>& buffers, Progress* progress) const {
  return {.wte = matrix("wte.weight", buffers, progress),
          .wpe = plain("wpe.weight", buffers, progress)};
}

Gpt2Layer Gpt2Weights::load_layer(int64_t index, std::vector<Buffer>& buffers,
                                  Progress* progress) const {
  const std::string h = fmt::format("h.{}.", index);
  const auto bias = [&](const char* name) {
    return plain(h + name + ".bias", buffers, progress).as<float>();
  };
  Gpt2Layer layer;
  layer.ln_1 = layer_norm(h + "ln_1", buffers, progress);
  layer.c_attn = matrix(h + "attn.c_attn.weight", buffers, progress);
  layer.c_attn.bias = bias("attn.c_attn");
  layer.attn_c_proj = matrix(h + "attn.c_proj.weight", buffers, progress);
  layer.attn_c_proj_bias = bias("attn.c_proj");
  layer.ln_2 = layer_norm(h + "ln_2", buffers, progress);
  layer.c_fc = matrix(h + "mlp.c_fc.weight", buffers, progress);
  layer.c_fc.bias = bias("mlp.c_fc");
  layer.mlp_c_proj = matrix(h + "mlp.c_proj.weight", buffers, progress);
  layer.mlp_c_proj_bias = bias("mlp.c_proj");
  return layer;
}

Gpt2Head Gpt2Weights::load_head(const Gpt2Embedding* embedding, std::vector<Buffer>& buffers,
                                Progress* progress) const {
  Gpt2Head head;
  head.ln_f = layer_norm("ln_f", buffers, progress);
  if (has_own_head_) {
    head.head = matrix("lm_head.weight", buffers, progress);
  } else {
    head.head = embedding != nullptr ? embedding->wte : matrix("wte.weight", buffers, progress);
  }
  return head;
}

void Gpt2Weights::release_pages() const {
  for (const auto& [name, entry] : entries_) {
    const StoredTensor* tensor = entry.tensor;
    if (tensor != nullptr) tensor->release(0, tensor->shape.num_elements());
  }
}

std::vector<float> Gpt2Weights::to_host(const std::string& name) const {
  const Entry& e = entry(name);
  CARAVAN_CHECK(e.tensor != nullptr, "weight {}: random weights are not stored", name);
  std::vector<float> values(static_cast<size_t>(e.spec.shape.num_elements()));
  if (!is_engine_ || !is_matrix(e.spec.role)) {
    std::vector<std::byte> gathered;
    convert_elements_in_parallel(e.tensor->read(0, e.spec.shape.num_elements(), gathered),
                                 e.tensor->dtype, values.data(), DType::kF32, values.size());
    return values;
  }
  const int64_t in = e.spec.in_features;
  const int64_t out = e.spec.out_features;
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < in * out; ++i) {
    const bool is_in_out = e.spec.stored_layout == LinearLayout::kInOut;
    const int64_t k = is_in_out ? i / out : i % in;
    const int64_t n = is_in_out ? i % out : i / in;
    values[static_cast<size_t>(i)] =
        load_as_f32(e.tensor->data(), e.tensor->dtype,
                    static_cast<size_t>(linear_index(e.layout, in, out, k, n)));
  }
  return values;
}

std::vector<float> Gpt2Weights::row_to_host(const std::string& name, int64_t row) const {
  const Entry& e = entry(name);
  CARAVAN_CHECK(e.tensor != nullptr, "weight {}: random weights are not stored", name);
  CARAVAN_CHECK(e.spec.shape.rank() == 2 && row >= 0 && row < e.spec.shape[0],
                "weight {}: row {} of shape {}", name, row, e.spec.shape.to_string());
  const int64_t width = e.spec.shape[1];
  std::vector<float> values(static_cast<size_t>(width));
  if (!is_engine_ || !is_matrix(e.spec.role)) {
    std::vector<std::byte> gathered;
    convert_elements(e.tensor->read(row * width, width, gathered), e.tensor->dtype, values.data(),
                     DType::kF32, values.size());
    return values;
  }
  for (int64_t i = 0; i < width; ++i) {
    const bool is_in_out = e.spec.stored_layout == LinearLayout::kInOut;
    const int64_t at = linear_index(e.layout, e.spec.in_features, e.spec.out_features,
                                    is_in_out ? row : i, is_in_out ? i : row);
    values[static_cast<size_t>(i)] =
        load_as_f32(e.tensor->data(), e.tensor->dtype, static_cast<size_t>(at));
  }
  return values;
}

}  // namespace caravan
