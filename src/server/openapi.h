#pragma once

#include <string>

#include "core/json.h"
#include "server/request_schema.h"

namespace caravan {

/// The description of the whole API, OpenAPI 3.1: the request schemas that bodies are checked
/// against, and schemas of the answers.
boost::json::object openapi_document(const ApiLimits& limits, const std::string& version);

}  // namespace caravan
