#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "server/http.h"

namespace caravan {

struct HttpRouteMatch {
  const HttpRoute* route = nullptr;  // nullptr: no route for this method, or for the path at all
  std::string allowed_methods;       // "GET, HEAD, OPTIONS"; empty when no route has the path
};

/// The first route of this method and path; GET routes answer HEAD too. A path that ends with "/*"
/// matches what begins with it and has at least one character more.
HttpRouteMatch match_route(const std::vector<HttpRoute>& routes, const std::string& method,
                           const std::string& path);

/// Without slashes at its end and between slashes: "//v1/models/" -> "/v1/models". Clients join
/// bases and paths that way.
std::string normal_path(std::string_view path);

}  // namespace caravan
