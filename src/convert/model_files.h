#pragma once

#include <string>
#include <vector>

#include "core/atomic_directory.h"
#include "core/json.h"
#include "core/output_paths.h"
#include "format/model_config.h"

namespace caravan {

/// Files of a model directory besides config.json and the weights that travel with a model
/// unchanged: tokenizer files and generation_config.json.
const std::vector<std::string>& model_side_files();

/// A member of the metadata of a synthetic model's weights or of their index.
inline constexpr const char* kSyntheticMark = "caravan_synth";

/// What `convert`, `build` and `synth` write: config.json has a "caravan" object of one of their
/// kinds, and every other name is one that they give.
const DirectoryKind& model_directory_kind();

/// Refuses an output directory that is in the way of the inputs or not ours to replace. For before
/// any work. Errors: as check_output_directory() and AtomicDirectory.
void check_model_output(const std::string& output, bool replace,
                        const std::vector<InputPath>& inputs);

/// Copies those of model_side_files() that are in `from`; returns their names. A link that leads
/// nowhere is an error, not absent.
/// Errors: kIo, kPermission, kNotFound, and kCorrupt for one larger than 64 MiB.
std::vector<std::string> copy_side_files(const std::string& from, const AtomicDirectory& to);

/// Only the tokenizer files of model_side_files().
std::vector<std::string> copy_tokenizer_files(const std::string& from, const AtomicDirectory& to);

/// JSON text with two spaces of indentation; objects and arrays of scalars deeper than `max_depth`
/// stay on one line.
std::string pretty_json(const boost::json::value& value, int max_depth = 2);

/// Writes pretty_json(value) to `path` atomically.
void write_json_file(const FileAt& path, const boost::json::value& value);

/// Writes config.json of a checkpoint or engine: `config` with "caravan" set to `caravan` and in it
/// "config_xxh3", the file's checksum of itself.
void write_model_config(const FileAt& path, boost::json::object config,
                        boost::json::object caravan);

/// config.json of `source_directory` as it is, with torch_dtype set to `dtype` and without any
/// "caravan" object.
boost::json::object source_config_json(const std::string& source_directory, DType dtype);

}  // namespace caravan
