#include "convert/hf_converter.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>
#include <span>

#include "convert/byte_size.h"
#include "convert/convert_values.h"
#include "convert/model_files.h"
#include "convert/resumable_file.h"
#include "convert/source_files.h"
#include "core/atomic_directory.h"
#include "core/error.h"
#include "core/json_text.h"
#include "core/log.h"
#include "core/progress.h"
#include "format/model_dir.h"

namespace caravan {

namespace {

constexpr int64_t kPieceBytes = int64_t{8} << 20;  // of the source

struct SourceFile {
  std::string name;
  uint64_t num_bytes = 0;
  uint64_t xxh3 = 0;
};

std::vector<SourceFile> hash_sources(const ResolvedWeights& resolved) {
  std::set<std::string> paths;
  for (const ResolvedWeight& weight : resolved.weights) paths.insert(weight.tensor->file->path());
  const auto size_of = [](const std::string& path) {
    const auto identity = FileIdentity::of(path);
    CARAVAN_CHECK_OS(identity, "{}: cannot look at it", path);
    return identity->num_bytes;
  };
  uint64_t total = 0;
  for (const std::string& path : paths) total += size_of(path);
  Progress progress("hash the source", total, "B");
  std::vector<SourceFile> files;
  for (const std::string& path : paths) {
    SourceFile file;
    file.name = std::filesystem::path(path).filename().string();
    file.num_bytes = size_of(path);
    file.xxh3 = hash_file(path, progress);
    files.push_back(std::move(file));
  }
  return files;
}

DType stored_dtype(const WeightSpec& spec, DType dtype) {
  return spec.role == WeightRole::kVector ? DType::kF32 : dtype;
}

// The dtype to convert to when none was asked for.
DType natural_dtype(const ResolvedWeights& resolved) {
  const DType dtype = resolved.weights.front().tensor->dtype;
  return dtype == DType::kF64 ? DType::kF32 : dtype;
}

/// Streams one slice of one tensor into the file; returns the XXH3 of the bytes.
uint64_t write_slice(const ResolvedWeight& weight, const WeightSlice& slice, DType dtype,
                     ResumableSafetensors& file, Progress& progress) {
  const StoredTensor& tensor = *weight.tensor;
  const auto src_size = static_cast<int64_t>(dtype_size(tensor.dtype));
  const auto dst_size = static_cast<int64_t>(dtype_size(dtype));
  int64_t columns = 0;
  for (const auto& [begin, end] : slice.columns) columns += end - begin;
  const int64_t row_bytes = slice.row_size * src_size;
  const int64_t rows_at_once = std::max<int64_t>(1, kPieceBytes / std::max<int64_t>(1, row_bytes));
  std::vector<char> out(static_cast<size_t>(
      std::min(rows_at_once, std::max<int64_t>(1, slice.row_end - slice.row_begin)) * columns *
      dst_size));
  ValueConverter converter(fmt::format("{}: {}", tensor.file->path(), tensor.name), tensor.dtype,
                           dtype);
  std::vector<std::byte> scratch;
  for (int64_t row = slice.row_begin; row < slice.row_end; row += rows_at_once) {
    const int64_t num_rows = std::min(rows_at_once, slice.row_end - row);
    const std::byte* src = tensor.read(row * slice.row_size, num_rows * slice.row_size, scratch);
    if (slice.has_whole_rows()) {
      converter.convert(src, out.data(), num_rows * columns, row * slice.row_size);
    } else {
      char* dst = out.data();
      for (int64_t r = 0; r < num_rows; ++r) {
        for (const auto& [begin, end] : slice.columns) {
          const int64_t first = r * slice.row_size + begin;
          converter.convert(src + first * src_size, dst, end - begin, row * slice.row_size + first);
          dst += (end - begin) * dst_size;
        }
      }
    }
    file.write(out.data(), static_cast<size_t>(num_rows * columns * dst_size));
    tensor.release(row * slice.row_size, num_rows * slice.row_size);
    progress.add(static_cast<uint64_t>(num_rows * columns * dst_size));
  }
  const std::vector<char> zeros(static_cast<size_t>(columns * dst_size), '\0');
  for (int64_t r = 0; r < slice.zero_rows; ++r) file.write(zeros.data(), zeros.size());
  converter.finish();
  return file.end_tensor();
}

boost::json::object caravan_object(const ConvertOptions& options, const ResolvedWeights& resolved,
                                   DType dtype, const std::vector<SourceFile>& sources) {
  boost::json::array files;
  for (const SourceFile& file : sources) {
    files.push_back(
        {{"name", file.name}, {"bytes", file.num_bytes}, {"xxh3", checksum_text(file.xxh3)}});
  }
  boost::json::object result = {{"kind", "checkpoint"},
                                {"format_version", kModelDirFormatVersion},
                                {"tensor_parallel", options.tensor_parallel},
                                {"has_own_head", resolved.has_own_head},
                                {"dtype", dtype_name(dtype)},
                                {"source", std::move(files)}};
  if (options.kv_calibration) result["kv_calibration"] = options.kv_calibration->record;
  if (options.tensor_parallel > 1) {
    const WeightSlice slice =
        weight_slice(resolved.weights.front().spec, 0, options.tensor_parallel);
    result["vocab_rows_per_rank"] = slice.shape[0];
  }
  return result;
}

uint64_t journal_key(const boost::json::object& config, const ConvertOptions& options) {
  std::string text = to_json_text(config);
  if (options.kv_calibration) {
    for (const auto* scales :
         {&options.kv_calibration->scales.k, &options.kv_calibration->scales.v,
          &options.kv_calibration->key_offsets, &options.kv_calibration->value_offsets}) {
      text.append(reinterpret_cast<const char*>(scales->data()), scales->size() * sizeof(float));
    }
  }
  return xxh3(std::as_bytes(std::span(text.data(), text.size())));
}

class Conversion {
 public:
  Conversion(const ConvertOptions& options, const ModelDir& dir, const TensorSource& source)
      : options_(options),
        model_config_(dir.config),
        resolved_(resolve_gpt2_weights(source, dir.config, options.input)),
        dtype_(options.dtype.value_or(natural_dtype(resolved_))) {
    CARAVAN_CHECK(dtype_ == DType::kF32 || dtype_ == DType::kF16 || dtype_ == DType::kBF16,
                  "--dtype: got {}, wanted float16, bfloat16 or float32", dtype_name(dtype_));
    if (options.kv_calibration) kv_specs_ = kv_scale_specs(dir.config);
    config_ = source_config_json(options.input, dtype_);
  }

  const std::vector<ResolvedWeight>& weights() const { return resolved_.weights; }

  ConvertResult run(AtomicDirectory& directory) {
    boost::json::object caravan =
        caravan_object(options_, resolved_, dtype_, hash_sources(resolved_));
    config_["caravan"] = caravan;
    if (options_.restart) directory.clear();
    ConvertResult result;
    result.dtype = dtype_;
    result.has_own_head = resolved_.has_own_head;
    result.skipped = resolved_.skipped;
    ConvertJournal journal(directory.file(kJournalName), journal_key(config_, options_),
                           settings());
    if (!journal.restart_reason().empty()) {
      log_warning("{}: what an earlier run left there is begun anew: {}", directory.work_path(),
                  journal.restart_reason());
    }
    uint64_t total = 0;
    for (int rank = 0; rank < options_.tensor_parallel; ++rank) {
      for (const auto& spec : rank_specs(rank)) {
        total += static_cast<uint64_t>(spec.shape.num_elements()) * dtype_size(spec.dtype);
      }
    }
    directory.check_room(total);
    Progress progress("convert", total, "B");
    std::vector<FileChecksums> checksums;
    for (int rank = 0; rank < options_.tensor_parallel; ++rank) {
      checksums.push_back(convert_rank(rank, directory, journal, progress, result));
    }
    progress.finish();
    result.copied_files = copy_side_files(options_.input, directory);
    caravan["checksums"] = checksums_to_json(checksums);
    write_model_config(directory.file("config.json"), config_, std::move(caravan));
    remove_leftovers(directory, result.copied_files);
    return result;
  }

 private:
  std::vector<SafetensorsWriter::Spec> rank_specs(int rank) const {
    std::vector<SafetensorsWriter::Spec> specs;
    for (const ResolvedWeight& weight : resolved_.weights) {
      specs.push_back({weight.spec.name, stored_dtype(weight.spec, dtype_),
                       weight_slice(weight.spec, rank, options_.tensor_parallel).shape});
    }
    for (const WeightSpec& spec : kv_specs_) {
      specs.push_back(
          {spec.name, DType::kF32, weight_slice(spec, rank, options_.tensor_parallel).shape});
    }
    return specs;
  }

  // What decides the output, for a person who changed a part of it between two runs.
  boost::json::object settings() const {
    boost::json::object settings = {{"--dtype", dtype_name(dtype_)},
                                    {"--tensor-parallel", options_.tensor_parallel},
                                    {"--calibrate-kv-cache", nullptr}};
    if (options_.kv_calibration) {
      settings["--calibrate-kv-cache"] = options_.kv_calibration->record;
    }
    return settings;
  }

  FileChecksums convert_rank(int rank, const AtomicDirectory& directory, ConvertJournal& journal,
                             Progress& progress, ConvertResult& result) const {
    const auto specs = rank_specs(rank);
    ResumableSafetensors file(directory.file(fmt::format("rank{}.safetensors", rank)), specs,
                              {{"format", "pt"}, {"rank", std::to_string(rank)}});
    const size_t num_kept = file.resume(journal.finished(rank));
    journal.keep(rank, num_kept);
    for (size_t i = 0; i < num_kept; ++i) progress.add(file.tensor_bytes(i));
    const size_t num_weights = resolved_.weights.size();
    for (size_t i = num_kept; i < specs.size(); ++i) {
      if (i >= num_weights) {
        journal.record(rank, i, write_kv_scales(kv_specs_[i - num_weights], rank, file, progress));
        continue;
      }
      const ResolvedWeight& weight = resolved_.weights[i];
      if (options_.kv_calibration && attention_bias_layer(weight.spec)) {
        journal.record(rank, i, write_attention_bias(weight, rank, file, progress));
        continue;
      }
      const WeightSlice slice = weight_slice(weight.spec, rank, options_.tensor_parallel);
      journal.record(rank, i, write_slice(weight, slice, specs[i].dtype, file, progress));
    }
    file.finish();
    result.num_tensors += static_cast<int64_t>(specs.size());
    result.num_resumed += static_cast<int64_t>(num_kept);
    result.num_bytes += static_cast<int64_t>(file.num_bytes());
    return file.checksums();
  }

  uint64_t write_attention_bias(const ResolvedWeight& weight, int rank, ResumableSafetensors& file,
                                Progress& progress) const {
    const std::vector<float> bias = centered_bias(weight, resolved_, *options_.kv_calibration);
    for (const auto& [begin, end] :
         weight_slice(weight.spec, rank, options_.tensor_parallel).columns) {
      const auto num_bytes = static_cast<size_t>(end - begin) * sizeof(float);
      file.write(bias.data() + begin, num_bytes);
      progress.add(num_bytes);
    }
    return file.end_tensor();
  }

  uint64_t write_kv_scales(const WeightSpec& spec, int rank, ResumableSafetensors& file,
                           Progress& progress) const {
    const std::vector<float> values =
        kv_scale_values(options_.kv_calibration->scales, model_config_, spec);
    const auto [begin, end] = weight_slice(spec, rank, options_.tensor_parallel).columns.front();
    const auto num_bytes = static_cast<size_t>(end - begin) * sizeof(float);
    file.write(values.data() + begin, num_bytes);
    progress.add(num_bytes);
    return file.end_tensor();
  }

  // Everything that does not belong to the result: the journal, temporary files of a killed run.
  void remove_leftovers(AtomicDirectory& directory,
                        const std::vector<std::string>& copied_files) const {
    std::set<std::string> wanted(copied_files.begin(), copied_files.end());
    wanted.insert("config.json");
    for (int rank = 0; rank < options_.tensor_parallel; ++rank) {
      wanted.insert(fmt::format("rank{}.safetensors", rank));
    }
    directory.clear(wanted);
  }

  const ConvertOptions& options_;
  const ModelConfig& model_config_;
  ResolvedWeights resolved_;
  std::vector<WeightSpec> kv_specs_;  // empty without a calibration
  DType dtype_;
  boost::json::object config_;
};

}  // namespace

WeightSlice weight_slice(const WeightSpec& spec, int rank, int tensor_parallel) {
  const bool is_vector = spec.shape.rank() == 1;
  WeightSlice slice;
  const int64_t rows = is_vector ? 1 : spec.shape[0];
  slice.row_size = is_vector ? spec.shape[0] : spec.shape[1];
  slice.row_end = rows;
  slice.columns = {{0, slice.row_size}};
  const auto part_of = [&](int64_t size, const char* what) {
    CARAVAN_CHECK(size % tensor_parallel == 0, "{}: {} {} does not divide by {} ranks", spec.name,
                  size, what, tensor_parallel);
    return size / tensor_parallel;
  };
  switch (spec.split) {
    case WeightSplit::kNone:
      break;
    case WeightSplit::kColumns: {
      const int64_t part = part_of(slice.row_size, "columns");
      slice.columns = {{rank * part, (rank + 1) * part}};
      break;
    }
    case WeightSplit::kQkvColumns: {
      CARAVAN_CHECK(slice.row_size % 3 == 0, "{}: {} columns do not divide into q, k and v",
                    spec.name, slice.row_size);
      const int64_t third = slice.row_size / 3;
      const int64_t part = part_of(third, "columns of q");
      slice.columns.clear();
      for (int64_t i = 0; i < 3; ++i) {
        slice.columns.emplace_back(i * third + rank * part, i * third + (rank + 1) * part);
      }
      if (tensor_parallel == 1) slice.columns = {{0, slice.row_size}};
      break;
    }
    case WeightSplit::kRows: {
      const int64_t part = part_of(rows, "rows");
      slice.row_begin = rank * part;
      slice.row_end = slice.row_begin + part;
      break;
    }
    case WeightSplit::kVocabulary: {
      const int64_t part = ceil_div(rows, tensor_parallel);
      slice.row_begin = std::min(rows, rank * part);
      slice.row_end = std::min(rows, slice.row_begin + part);
      slice.zero_rows = part - (slice.row_end - slice.row_begin);
      break;
    }
  }
  int64_t columns = 0;
  for (const auto& [begin, end] : slice.columns) columns += end - begin;
  slice.shape = is_vector ? Shape{columns}
                          : Shape{slice.row_end - slice.row_begin + slice.zero_rows, columns};
  return slice;
}

void check_tensor_parallel(const ModelConfig& config, int tensor_parallel) {
  CARAVAN_CHECK(tensor_parallel >= 1 && tensor_parallel <= 64,
                "--tensor-parallel: got {}, wanted 1 to 64", tensor_parallel);
  const auto check = [&](int64_t size, const char* field) {
    CARAVAN_CHECK(size % tensor_parallel == 0,
                  "--tensor-parallel {}: {} {} of the model does not divide by it", tensor_parallel,
                  field, size);
  };
  check(config.num_heads, "n_head");
  check(config.hidden_size, "n_embd");
  check(config.ffn_size, "n_inner");
}

ConvertResult convert_checkpoint(const ConvertOptions& options) {
  const SourceFiles source_files(options.input);  // before the first of them is read
  const ModelDir dir = open_model_dir(options.input);
  CARAVAN_CHECK(dir.kind == ModelDirKind::kHuggingFace,
                "--model: {} is not a Hugging Face directory but one that caravan wrote",
                options.input);
  check_model_output(options.output, options.replace, {{"--model", options.input}});
  check_tensor_parallel(dir.config, options.tensor_parallel);
  const TensorSource source = TensorSource::open_directory(options.input);
  Conversion conversion(options, dir, source);
  AtomicDirectory directory(options.output, options.replace, model_directory_kind());
  try {
    const ConvertResult result = conversion.run(directory);
    source_files.check_unchanged(conversion.weights());
    directory.commit();
    return result;
  } catch (...) {
    directory.discard();
    throw;
  }
}

}  // namespace caravan
