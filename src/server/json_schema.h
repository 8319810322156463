#pragma once

#include <string>

#include "core/json.h"

namespace caravan {

/// Checks a value against a JSON Schema made of: type, enum, minimum, maximum, exclusiveMinimum,
/// minLength, maxLength, minItems, maxItems, maxProperties, items, properties, required,
/// additionalProperties (a schema) and anyOf; other keywords are descriptions. As in JSON Schema
/// 2020-12, 1.0 is an integer and lengths of strings are code points; beyond it, numbers must be
/// finite. `path` names the value in messages: "messages[0].content", "" for the whole body.
/// Errors: ApiError 400 with the path as `param`, what was found and what was expected.
void validate_json(const boost::json::value& value, const boost::json::object& schema,
                   const std::string& path);

/// Code points of valid UTF-8.
size_t num_code_points(std::string_view text);

}  // namespace caravan
