#include "server/http.h"

#include "core/json.h"
#include "core/json_text.h"

namespace caravan {

std::string_view HttpRequest::header(std::string_view name) const {
  for (const auto& [key, value] : headers) {
    if (key == name) return value;
  }
  return {};
}

HttpResponse error_response(int status, std::string_view message, std::string_view type,
                            std::string_view param, std::string_view code) {
  const auto text_or_null = [](std::string_view text) {
    return text.empty() ? boost::json::value(nullptr) : boost::json::value(text);
  };
  const boost::json::object error{{"message", message},
                                  {"type", type},
                                  {"param", text_or_null(param)},
                                  {"code", text_or_null(code)}};
  return {.status = status,
          .content_type = "application/json",
          .body = to_json_text(boost::json::object{{"error", error}}),
          .headers = {}};
}

HttpResponse overloaded_response(std::string_view message) {
  HttpResponse response = error_response(503, message, "overloaded_error");
  response.headers.emplace_back("retry-after", "1");
  return response;
}

}  // namespace caravan
