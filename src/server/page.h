#pragma once

#include <string_view>

namespace caravan {

/// The web page: one HTML file in UTF-8 that loads nothing else. It talks to v1/models,
/// v1/completions, v1/chat/completions and metrics, relative to where it was loaded from.
std::string_view page_html();

/// The value of the Content-Security-Policy header that belongs to page_html(): its own script and
/// style by their SHA-256, requests to its own server, nothing else. Source: W3C CSP Level 3.
std::string_view page_csp();

}  // namespace caravan
