#include "engine/prompt_template.h"

#include <fmt/core.h>

namespace caravan {

std::string camel_prompt(std::string_view instruction, std::string_view input) {
  if (input.empty()) {
    return fmt::format(
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\n{}\n\n### Response:",
        instruction);
  }
  return fmt::format(
      "Below is an instruction that describes a task, paired with an input that provides further "
      "context. Write a response that appropriately completes the request\n\n### Instruction:\n{}"
      "\n\n### Input:\n{}\n\n### Response:",
      instruction, input);
}

}  // namespace caravan
