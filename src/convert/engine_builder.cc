#include "convert/engine_builder.h"

#include <algorithm>
#include <optional>

#include "convert/convert_values.h"
#include "convert/model_files.h"
#include "convert/source_files.h"
#include "core/atomic_directory.h"
#include "core/error.h"
#include "core/op_params.h"
#include "core/progress.h"
#include "format/checksum.h"
#include "format/safetensors.h"
#include "format/tensor_source.h"
#include "format/weight_check.h"

namespace caravan {

namespace {

constexpr int64_t kPieceBytes = int64_t{8} << 20;   // of the source
constexpr int64_t kRowMultiple = kCoreOutMultiple;  // whole panels of every layout
static_assert(kRowMultiple % kPanelWidth == 0);
constexpr uint64_t kTensorAlignment = 4096;  // a page: tensors can be mapped one by one

/// Reads one stored tensor after the other and writes it in its engine form.
class EngineWriter {
 public:
  EngineWriter(SafetensorsWriter& file, Progress& progress) : file_(file), progress_(progress) {}

  /// Returns the checksums of the bytes written, and the XXH3 of them all in whole_checksum().
  TensorChecksum write(const ResolvedWeight& weight, const EngineWeight& form) {
    hash_.emplace();
    const StoredTensor& tensor = *weight.tensor;
    ValueConverter converter(fmt::format("{}: {}", tensor.file->path(), tensor.name), tensor.dtype,
                             form.dtype);
    if (!form.is_matrix()) {
      write_rows(tensor, form, 1, converter,
                 [&](const char* data, int64_t count) { emit(data, count, form.dtype); });
    } else if (weight.spec.stored_layout == LinearLayout::kOutIn) {
      write_panels(tensor, form, converter);
    } else {
      write_transposed(tensor, form, converter);
    }
    converter.finish();
    return hash_->finish();
  }

  /// A vector of float32.
  TensorChecksum write(const std::vector<float>& values) {
    hash_.emplace();
    emit(values.data(), static_cast<int64_t>(values.size()), DType::kF32);
    return hash_->finish();
  }

  uint64_t whole_checksum() const { return hash_->digest(); }

 private:
  void emit(const void* data, int64_t count, DType dtype) {
    const size_t num_bytes = static_cast<size_t>(count) * dtype_size(dtype);
    file_.write(data, num_bytes);
    hash_->update({static_cast<const std::byte*>(data), num_bytes});
    progress_.add(num_bytes);
  }

  // Converts `tensor` in pieces of whole rows of `row_size` elements, about kPieceBytes each and a
  // multiple of kRowMultiple rows where more than one row fits, and hands each to `use`.
  template <typename Use>
  void write_rows(const StoredTensor& tensor, const EngineWeight& form, int64_t row_size,
                  ValueConverter& converter, const Use& use) {
    const int64_t total = tensor.shape.num_elements();
    const auto src_size = static_cast<int64_t>(dtype_size(tensor.dtype));
    const int64_t panel_elements = kRowMultiple * row_size;
    const int64_t piece =
        std::max<int64_t>(1, kPieceBytes / (panel_elements * src_size)) * panel_elements;
    converted_.resize(static_cast<size_t>(std::min(piece, total)) * dtype_size(form.dtype));
    for (int64_t first = 0; first < total; first += piece) {
      const int64_t count = std::min(piece, total - first);
      converter.convert(tensor.read(first, count, gathered_), converted_.data(), count, first);
      tensor.release(first, count);
      use(converted_.data(), count);
    }
  }

  // [out, in] rows: a piece of whole panels is packed as a matrix of its own.
  void write_panels(const StoredTensor& tensor, const EngineWeight& form,
                    ValueConverter& converter) {
    write_rows(tensor, form, form.in_features, converter, [&](const char* data, int64_t count) {
      const int64_t rows = count / form.in_features;
      const int64_t packed = linear_num_elements(form.layout, form.in_features, rows);
      packed_.resize(static_cast<size_t>(packed) * dtype_size(form.dtype));
      pack_linear(data, LinearLayout::kOutIn, form.dtype, form.in_features, rows, form.layout,
                  packed_.data());
      emit(packed_.data(), packed, form.dtype);
    });
  }

  // [in, out] rows: a panel needs a part of every row, so the matrix is converted whole first.
  void write_transposed(const StoredTensor& tensor, const EngineWeight& form,
                        ValueConverter& converter) {
    const size_t size = dtype_size(form.dtype);
    whole_.resize(static_cast<size_t>(tensor.shape.num_elements()) * size);
    size_t done = 0;
    write_rows(tensor, form, form.out_features, converter, [&](const char* data, int64_t count) {
      const size_t num_bytes = static_cast<size_t>(count) * size;
      std::copy(data, data + num_bytes, whole_.data() + done);
      done += num_bytes;
    });
    packed_.resize(static_cast<size_t>(form.num_elements) * size);
    pack_linear(whole_.data(), LinearLayout::kInOut, form.dtype, form.in_features,
                form.out_features, form.layout, packed_.data());
    emit(packed_.data(), form.num_elements, form.dtype);
  }

  SafetensorsWriter& file_;
  Progress& progress_;
  std::optional<TensorHasher> hash_;  // of the tensor being written
  // Kept between tensors: their pages are touched once.
  std::vector<std::byte> gathered_;
  std::vector<char> converted_;
  std::vector<char> whole_;
  std::vector<char> packed_;
};

/// A damaged checkpoint does not become an engine with checksums of the damage.
void check_source(const WeightFileCheck& source, const StoredTensor& tensor) {
  if (!source.has_table()) return;
  TensorCheck check(tensor, source.find(tensor.name), std::nullopt, source.remedy());
  check.look_at_all();
  check.finish();
}

EngineTensor table_entry(const EngineWeight& form, uint64_t hash) {
  EngineTensor entry;
  entry.dtype = form.dtype;
  entry.layout = form.layout;
  entry.in_features = form.in_features;
  entry.out_features = form.out_features;
  entry.xxh3 = hash;
  return entry;
}

boost::json::object write_weights(const EngineBuildOptions& options, const WeightFileCheck* source,
                                  const ResolvedWeights& resolved, const ModelConfig& config,
                                  const std::optional<KvCalibration>& calibration,
                                  const AtomicDirectory& directory, FileChecksums& checksums,
                                  EngineBuildResult& result) {
  std::vector<EngineWeight> forms;
  std::vector<SafetensorsWriter::Spec> specs;
  uint64_t total = 0;
  for (const ResolvedWeight& weight : resolved.weights) {
    const EngineWeight form = engine_weight(weight.spec, options.build);
    specs.push_back({weight.spec.name, form.dtype,
                     form.is_matrix() ? Shape{form.num_elements} : weight.spec.shape});
    forms.push_back(form);
    total += static_cast<uint64_t>(form.num_bytes());
  }
  const std::vector<WeightSpec> kv_specs =
      calibration ? kv_scale_specs(config) : std::vector<WeightSpec>{};
  for (const WeightSpec& spec : kv_specs) {
    specs.push_back({spec.name, DType::kF32, spec.shape});
    total += static_cast<uint64_t>(spec.shape.num_elements()) * sizeof(float);
  }
  directory.check_room(total);
  Progress progress("build", total, "B");
  SafetensorsWriter file(directory.file("rank0.safetensors"), specs, {{"format", "caravan-engine"}},
                         kTensorAlignment);
  EngineWriter writer(file, progress);
  boost::json::object tensors;
  for (size_t i = 0; i < forms.size(); ++i) {
    const ResolvedWeight& weight = resolved.weights[i];
    if (source != nullptr) check_source(*source, *weight.tensor);
    checksums.tensors[specs[i].name] =
        calibration && attention_bias_layer(weight.spec)
            ? writer.write(centered_bias(weight, resolved, *calibration))
            : writer.write(weight, forms[i]);
    tensors[specs[i].name] = engine_tensor_to_json(table_entry(forms[i], writer.whole_checksum()));
  }
  for (const WeightSpec& spec : kv_specs) {
    checksums.tensors[spec.name] = writer.write(kv_scale_values(calibration->scales, config, spec));
    tensors[spec.name] = engine_tensor_to_json(table_entry({}, writer.whole_checksum()));
  }
  checksums.header = file.header_checksum();
  file.finish();
  result.num_tensors = static_cast<int64_t>(specs.size());
  result.num_bytes = static_cast<int64_t>(total);
  return tensors;
}

}  // namespace

DType default_engine_dtype(const ModelDir& source) {
  if (source.build) return source.build->dtype;
  const DType dtype = source.config.torch_dtype;
  return dtype == DType::kBF16 ? DType::kBF16 : DType::kF16;
}

EngineBuildResult build_engine(const EngineBuildOptions& options) {
  const SourceFiles source_files(options.input);  // before the first of them is read
  const ModelDir dir = open_model_dir(options.input);
  CARAVAN_CHECK(dir.kind != ModelDirKind::kEngine, "--model: {} is an engine already",
                options.input);
  check_model_output(options.output, options.replace, {{"--model", options.input}});
  CARAVAN_CHECK_CODE(dir.tensor_parallel == 1, kUnsupported,
                     "--model: {} is split for {} ranks and this version builds for one; convert "
                     "without --tensor-parallel",
                     options.input, dir.tensor_parallel);
  const TensorSource source = TensorSource::open_directory(options.input);
  const ResolvedWeights resolved =
      resolve_gpt2_weights(source, dir.config, options.input, dir.kv_scale_dtype.has_value());
  std::optional<WeightFileCheck> source_check;
  if (dir.kind == ModelDirKind::kCheckpoint) {
    source_check.emplace(dir, source, 0);
    source_check->check_filler();
    for (const WeightSpec& spec :
         dir.kv_scale_dtype ? kv_scale_specs(dir.config) : std::vector<WeightSpec>{}) {
      if (const StoredTensor* scales = source.find(spec.name)) check_source(*source_check, *scales);
    }
  }
  std::optional<KvCalibration> calibration = options.kv_calibration;
  if (!calibration) calibration = load_kv_calibration(dir);
  CARAVAN_CHECK(
      options.build.kv_cache_dtype != DType::kI8 || calibration,
      "--kv-cache-dtype int8: {} has no KV scales: add --calibrate-kv-cache FILE (text of "
      "the kind the model will read)",
      options.input);
  EngineBuildResult result;
  result.plan = make_memory_plan(dir.config, resolved.has_own_head, options.build, options.plan);
  result.skipped = resolved.skipped;

  AtomicDirectory directory(options.output, options.replace, model_directory_kind());
  try {
    directory.clear();
    const boost::json::object config = source_config_json(options.input, options.build.dtype);
    boost::json::object caravan = {{"kind", "engine"},
                                   {"format_version", kModelDirFormatVersion},
                                   {"tensor_parallel", 1},
                                   {"has_own_head", resolved.has_own_head},
                                   {"build", build_config_to_json(options.build)},
                                   {"memory_plan", plan_json(result.plan)}};
    if (calibration) caravan["kv_calibration"] = calibration->record;
    FileChecksums checksums;
    caravan["tensors"] = write_weights(options, source_check ? &*source_check : nullptr, resolved,
                                       dir.config, calibration, directory, checksums, result);
    caravan["checksums"] = checksums_to_json({checksums});
    result.copied_files = copy_side_files(options.input, directory);
    write_model_config(directory.file("config.json"), config, caravan);
    source_files.check_unchanged(resolved.weights);
    if (options.certify) {
      caravan["certificate"] = options.certify(directory.work_path());
      write_model_config(directory.file("config.json"), config, caravan);
    }
    directory.commit();
    return result;
  } catch (...) {
    directory.discard();
    throw;
  }
}

}  // namespace caravan
