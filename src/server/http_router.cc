#include "server/http_router.h"

#include <string_view>

namespace caravan {

namespace {

bool path_matches(std::string_view pattern, std::string_view path) {
  constexpr std::string_view kRest = "/*";
  if (pattern.size() < kRest.size() || pattern.substr(pattern.size() - kRest.size()) != kRest) {
    return pattern == path;
  }
  const std::string_view prefix = pattern.substr(0, pattern.size() - 1);
  return path.size() > prefix.size() && path.substr(0, prefix.size()) == prefix;
}

}  // namespace

HttpRouteMatch match_route(const std::vector<HttpRoute>& routes, const std::string& method,
                           const std::string& path) {
  HttpRouteMatch match;
  bool is_known = false;
  for (const HttpRoute& route : routes) {
    if (!path_matches(route.path, path)) continue;
    is_known = true;
    const bool is_method = route.method == method || (method == "HEAD" && route.method == "GET");
    if (is_method && match.route == nullptr) match.route = &route;
    if (match.allowed_methods.find(route.method) == std::string::npos) {
      match.allowed_methods += route.method == "GET" ? "GET, HEAD, " : route.method + ", ";
    }
  }
  if (is_known) match.allowed_methods += "OPTIONS";
  return match;
}

std::string normal_path(std::string_view path) {
  std::string normal;
  for (const char c : path) {
    if (c != '/' || !normal.ends_with('/')) normal += c;
  }
  if (normal.size() > 1 && normal.ends_with('/')) normal.pop_back();
  return normal;
}

}  // namespace caravan
