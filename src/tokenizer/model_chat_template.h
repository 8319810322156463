#pragma once

#include <optional>
#include <string>

namespace caravan {

/// The file of a model directory that holds a chat template of the model's own, or nothing:
/// "chat_template.jinja", "chat_template.json" or "tokenizer_config.json". Such a template is Jinja
/// and is not read, only found: a prompt made another way is not what the model was trained on. A
/// file that is no JSON holds none; whoever needs it says what is wrong with it.
std::optional<std::string> model_chat_template(const std::string& directory);

}  // namespace caravan
