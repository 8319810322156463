#pragma once

#include <string>
#include <string_view>

namespace caravan {

/// camel-5b's instruction prompts, byte for byte as published with the model (the form with an
/// input lacks the period of the other). An empty input chooses the form without one. Source:
/// Writer/camel-5b-hf model card.
std::string camel_prompt(std::string_view instruction, std::string_view input);

}  // namespace caravan
