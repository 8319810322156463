#include "format/model_dir.h"

#include <algorithm>
#include <limits>
#include <set>

#include "core/error.h"
#include "core/mapped_file.h"
#include "core/op_params.h"
#include "format/checksum.h"
#include "format/json_fields.h"
#include "format/tensor_source.h"

namespace caravan {

namespace {

constexpr size_t kMaxConfigBytes = size_t{64} << 20;
constexpr int64_t kMaxTensorParallel = 64;
constexpr int64_t kMaxBatchSize = int64_t{1} << 16;

DType dtype_field(const JsonFields& fields, std::string_view field) {
  const std::optional<DType> dtype = parse_dtype(fields.string(field));
  if (!dtype || *dtype == DType::kF64 || !is_floating(*dtype)) {
    fields.fail(field, "float32, float16 or bfloat16");
  }
  return *dtype;
}

DType kv_dtype_field(const JsonFields& fields, std::string_view field) {
  const std::optional<DType> dtype = parse_dtype(fields.string(field));
  if (dtype && is_quantized_kv(*dtype)) return *dtype;
  if (!dtype || *dtype == DType::kF64 || !is_floating(*dtype)) {
    fields.fail(field, "float32, float16, bfloat16, int8 or float8_e4m3fn");
  }
  return *dtype;
}

BuildConfig parse_build_config(const boost::json::object& object, const std::string& where) {
  const JsonFields fields(object, where, "caravan.build.");
  BuildConfig build;
  build.target = fields.string("target");
  build.dtype = dtype_field(fields, "dtype");
  build.kv_cache_dtype = kv_dtype_field(fields, "kv_cache_dtype");
  build.max_batch_size = fields.integer("max_batch_size", 1, kMaxBatchSize);
  build.max_input_len = fields.integer("max_input_len", 1, kMaxPositions);
  build.max_output_len = fields.integer("max_output_len", 1, kMaxPositions);
  return build;
}

EngineTensor parse_engine_tensor(const boost::json::value& value, std::string_view name,
                                 const std::string& where) {
  const std::string shown = printable(name);
  CARAVAN_CHECK_CODE(value.is_object(), kCorrupt,
                     "{}: caravan.tensors.{}: got {}, expected an object", where, shown,
                     json_text(value));
  const JsonFields fields(value.get_object(), where, fmt::format("caravan.tensors.{}.", shown));
  EngineTensor tensor;
  tensor.dtype = dtype_field(fields, "dtype");
  const std::optional<LinearLayout> layout = parse_linear_layout(fields.string("layout"));
  if (!layout) fields.fail("layout", "in_out, out_in, panel32 or panel32_pairs");
  tensor.layout = *layout;
  tensor.in_features = fields.integer("in_features", 0, kMaxFfnSize);
  tensor.out_features = fields.integer("out_features", 0, kMaxVocabSize);
  const std::optional<uint64_t> checksum = parse_checksum(fields.string("xxh3"));
  if (!checksum) fields.fail("xxh3", "16 hexadecimal digits");
  tensor.xxh3 = *checksum;
  return tensor;
}

// What an engine's file and table hold.
std::vector<WeightSpec> engine_tensor_specs(const ModelDir& dir) {
  std::vector<WeightSpec> specs = gpt2_weight_specs(dir.config, dir.has_own_head);
  if (dir.kv_scale_dtype) {
    for (WeightSpec& spec : kv_scale_specs(dir.config)) specs.push_back(std::move(spec));
  }
  return specs;
}

// The table must be exactly what the architecture needs, so that a loader may rely on it.
void check_engine_table(const ModelDir& dir, const std::string& where) {
  const std::vector<WeightSpec> specs = engine_tensor_specs(dir);
  for (const WeightSpec& spec : specs) {
    const auto found = dir.tensors.find(spec.name);
    CARAVAN_CHECK_CODE(found != dir.tensors.end(), kCorrupt, "{}: caravan.tensors: {} is missing",
                       where, spec.name);
    const EngineTensor& tensor = found->second;
    CARAVAN_CHECK_CODE(
        tensor.in_features == spec.in_features && tensor.out_features == spec.out_features,
        kCorrupt, "{}: caravan.tensors.{}: got {} x {} features, expected {} x {}", where,
        spec.name, tensor.in_features, tensor.out_features, spec.in_features, spec.out_features);
    const bool is_packed =
        tensor.layout != LinearLayout::kInOut && tensor.layout != LinearLayout::kOutIn;
    CARAVAN_CHECK_CODE(!is_packed || spec.in_features != 0, kCorrupt,
                       "{}: caravan.tensors.{}.layout: got {}, which only matrices have", where,
                       spec.name, linear_layout_name(tensor.layout));
  }
  // Every name that is needed is there, once: only a longer table has others.
  if (dir.tensors.size() == specs.size()) return;
  std::set<std::string_view> known;
  for (const WeightSpec& spec : specs) known.insert(spec.name);
  for (const auto& [name, tensor] : dir.tensors) {
    CARAVAN_CHECK_CODE(known.contains(name), kCorrupt,
                       "{}: caravan.tensors: {} has no place in the architecture", where,
                       printable(name));
  }
}

void parse_engine(const JsonFields& fields, const std::string& where, ModelDir& dir) {
  CARAVAN_CHECK_CODE(dir.tensor_parallel == 1, kUnsupported,
                     "{}: caravan.tensor_parallel: got {}, expected 1: an engine is one rank's",
                     where, dir.tensor_parallel);
  dir.build = parse_build_config(fields.object("build"), where);
  for (const auto& [key, value] : fields.object("tensors")) {
    dir.tensors[std::string(key)] = parse_engine_tensor(value, {key.data(), key.size()}, where);
  }
  check_engine_table(dir, where);
}

uint64_t engine_tensor_bytes(const EngineTensor& tensor, const WeightSpec& spec) {
  const int64_t count = spec.in_features == 0 ? spec.shape.num_elements()
                                              : linear_num_elements(tensor.layout, spec.in_features,
                                                                    spec.out_features);
  return static_cast<uint64_t>(count) * dtype_size(tensor.dtype);
}

// Engines of older versions have a checksum of each whole tensor and none of the header.
std::vector<FileChecksums> old_engine_checksums(const ModelDir& dir) {
  FileChecksums file;
  for (const auto& [name, tensor] : dir.tensors) {
    file.tensors[name] = {.chunks = {tensor.xxh3}, .is_whole = true};
  }
  return {std::move(file)};
}

}  // namespace

ModelDir parse_model_dir(std::string_view json, ModelConfig config, const std::string& path) {
  const std::string where = path + "/config.json";
  ModelDir dir;
  dir.path = path;
  dir.config = std::move(config);
  const boost::json::value root = parse_json(json, where);
  CARAVAN_CHECK_CODE(root.is_object(), kCorrupt, "{}: got {}, expected a JSON object", where,
                     json_text(root));
  if (!root.get_object().contains("caravan")) return dir;

  dir.caravan = JsonFields(root.get_object(), where).object("caravan");
  const JsonFields fields(dir.caravan, where, "caravan.");
  const int64_t version = fields.integer("format_version", 1, std::numeric_limits<int32_t>::max());
  CARAVAN_CHECK_CODE(version == kModelDirFormatVersion, kUnsupported,
                     "{}: caravan.format_version: got {}, expected {}: convert the model again",
                     where, version, kModelDirFormatVersion);
  const std::string byte_order = fields.optional_string("byte_order").value_or("little");
  CARAVAN_CHECK_CODE(byte_order == "little", kUnsupported,
                     "{}: caravan.byte_order: got \"{}\", expected \"little\"", where,
                     printable(byte_order));
  const std::string kind = fields.string("kind");
  if (kind == "synthetic") {  // a Hugging Face directory that `synth` wrote
    dir.caravan.clear();
    return dir;
  }
  if (kind != "checkpoint" && kind != "engine") fields.fail("kind", "\"checkpoint\" or \"engine\"");
  dir.kind = kind == "engine" ? ModelDirKind::kEngine : ModelDirKind::kCheckpoint;
  dir.tensor_parallel = static_cast<int>(fields.integer("tensor_parallel", 1, kMaxTensorParallel));
  dir.has_own_head = fields.boolean("has_own_head");
  if (dir.caravan.contains("kv_calibration")) {
    const JsonFields calibration(fields.object("kv_calibration"), where, "caravan.kv_calibration.");
    const std::optional<DType> dtype = parse_dtype(calibration.string("dtype"));
    if (!dtype || !is_quantized_kv(*dtype)) calibration.fail("dtype", "int8 or float8_e4m3fn");
    dir.kv_scale_dtype = dtype;
  }
  if (dir.kind == ModelDirKind::kEngine) parse_engine(fields, where, dir);
  if (dir.caravan.contains("checksums")) {
    dir.checksums = parse_checksums(fields.object("checksums"), where, dir.tensor_parallel);
  } else if (dir.kind == ModelDirKind::kEngine) {
    dir.checksums = old_engine_checksums(dir);
  }
  if (dir.caravan.contains("config_xxh3")) {
    dir.config_checksum = config_checksum_of(json, fields.string("config_xxh3"), where);
  }
  return dir;
}

std::string ModelDir::rank_path(int rank) const {
  return fmt::format("{}/rank{}.safetensors", path, rank);
}

ModelDir open_model_dir(const std::string& path) {
  check_directory(path);
  ModelConfig config = load_model_config(path);
  return parse_model_dir(read_text_file(path + "/config.json", kMaxConfigBytes), std::move(config),
                         path);
}

boost::json::object build_config_to_json(const BuildConfig& build) {
  return {{"target", build.target},
          {"dtype", dtype_name(build.dtype)},
          {"kv_cache_dtype", dtype_name(build.kv_cache_dtype)},
          {"max_batch_size", build.max_batch_size},
          {"max_input_len", build.max_input_len},
          {"max_output_len", build.max_output_len}};
}

boost::json::object engine_tensor_to_json(const EngineTensor& tensor) {
  return {{"dtype", dtype_name(tensor.dtype)},
          {"layout", linear_layout_name(tensor.layout)},
          {"in_features", tensor.in_features},
          {"out_features", tensor.out_features},
          {"xxh3", checksum_text(tensor.xxh3)}};
}

const StoredTensor& find_engine_tensor(const ModelDir& dir, const TensorSource& source,
                                       const WeightSpec& spec) {
  const EngineTensor& expected = dir.tensors.at(spec.name);
  const StoredTensor* tensor = source.find(spec.name);
  CARAVAN_CHECK_CODE(tensor != nullptr, kCorrupt, "{}: {} is missing", dir.rank_path(0), spec.name);
  CARAVAN_CHECK_CODE(tensor->dtype == expected.dtype, kCorrupt, "{}: {}: dtype {}, expected {}",
                     dir.rank_path(0), spec.name, dtype_name(tensor->dtype),
                     dtype_name(expected.dtype));
  const uint64_t num_bytes = engine_tensor_bytes(expected, spec);
  CARAVAN_CHECK_CODE(tensor->num_bytes() == num_bytes, kCorrupt, "{}: {}: {} bytes, expected {}",
                     dir.rank_path(0), spec.name, tensor->num_bytes(), num_bytes);
  return *tensor;
}

}  // namespace caravan
