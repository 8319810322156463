#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

namespace caravan {

/// A text to evaluate on and where it came from, for messages: "FILE" or "FILE:LINE".
struct TextDocument {
  std::string text;
  std::string where;
};

/// --data, --format and --text-key.
struct TextDataFlags {
  std::string data;
  std::string format = "auto";
  std::string text_key = "text";

  void add_to(CLI::App& command, const std::string& description);
  /// A plain text file is one document, each line of a JSON Lines file another. At most 1 GiB of
  /// text. Errors: kNotFound, kIo; kCorrupt for an empty file, for text that is not UTF-8 (naming
  /// the offset) and for a line without the text.
  std::vector<TextDocument> read() const;
};

}  // namespace caravan
