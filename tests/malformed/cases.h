#pragma once

#include <string>
#include <vector>

#include "core/error.h"

namespace caravan::test {

/// One malformed input and exactly what the reader must say of it.
struct MalformedCase {
  std::string name;  // of the test: letters, digits and underscores
  ErrorCode code;
  std::string message;  // whole; the file is called FILE, the directory DIR
  std::string input;    // what `read` gets: the file's bytes
  void (*read)(const std::string& input);
};

std::vector<MalformedCase> safetensors_cases();
std::vector<MalformedCase> zip_cases();
std::vector<MalformedCase> legacy_cases();
std::vector<MalformedCase> pickle_cases();
std::vector<MalformedCase> config_cases();
std::vector<MalformedCase> index_cases();
std::vector<MalformedCase> caravan_cases();

void read_safetensors(const std::string& input);
void read_torch(const std::string& input);

}  // namespace caravan::test
