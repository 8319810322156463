#pragma once

#include <string>
#include <vector>

#include "core/json.h"
#include "format/model_config.h"

namespace caravan {

/// Files of a model directory besides config.json and the weights that travel with a model
/// unchanged: tokenizer files and generation_config.json.
const std::vector<std::string>& model_side_files();

/// Copies those of model_side_files() that are in `from`; returns their names.
/// Errors: kIo, and kCorrupt for one larger than 64 MiB.
std::vector<std::string> copy_side_files(const std::string& from, const std::string& to);

/// Only the tokenizer files of model_side_files().
std::vector<std::string> copy_tokenizer_files(const std::string& from, const std::string& to);

/// Removes everything inside `directory`, which stays. For a work directory that an earlier, killed
/// run left behind. Errors: kIo.
void clear_directory(const std::string& directory);

/// JSON text with two spaces of indentation; objects and arrays of scalars deeper than `max_depth`
/// stay on one line.
std::string pretty_json(const boost::json::value& value, int max_depth = 2);

/// Writes pretty_json(value) to `path` atomically.
void write_json_file(const std::string& path, const boost::json::value& value);

/// Writes config.json of a checkpoint or engine: `config` with "caravan" set to `caravan` and in it
/// "config_xxh3", the file's checksum of itself.
void write_model_config(const std::string& path, boost::json::object config,
                        boost::json::object caravan);

/// config.json of `source_directory` as it is, with torch_dtype set to `dtype` and without any
/// "caravan" object.
boost::json::object source_config_json(const std::string& source_directory, DType dtype);

}  // namespace caravan
