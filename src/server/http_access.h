#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "server/http_head.h"
#include "server/http_router.h"
#include "server/sha256.h"

namespace caravan {

struct HttpAccessOptions {
  std::string bind_host = "127.0.0.1";     // what the server listens on; or a socket's path
  std::vector<std::string> api_keys;       // none: no key is asked for
  std::vector<std::string> allowed_hosts;  // names beside the server's own; "*": any
  std::vector<std::string> cors_origins;   // "https://a.example"; "*": any; none: no CORS headers
};

/// Whether the host that a server listens at is a Unix socket's path: it ends in ".sock".
bool is_unix_socket_path(std::string_view host);

/// Whether only this machine reaches a server that listens there: "localhost", an address of
/// 127.0.0.0/8, ::1, or a Unix socket. A name such as 127.example.org is none.
bool is_local_host(std::string_view host);

/// Why this is no API key, or "": it is empty, holds what is not visible ASCII, or begins with '-'
/// (a flag that slipped into the key's place) or '#' (a comment).
std::string api_key_problem(std::string_view key);

/// Who may ask what: API keys, names of the server, origins of web pages. Immutable.
class HttpAccess {
 public:
  /// Errors: kInvalidArgument for what is no key, or an origin without a scheme.
  explicit HttpAccess(const HttpAccessOptions& options);

  /// The answer to a request that is refused; nothing when it may go on. In this order:
  /// - 403 for a Host that is not the server's: another site's name made to point here would let
  ///   that site's pages read the answers (DNS rebinding). An address is the server's when it is
  ///   the one bound, a loopback one of a server bound to loopback, or the server is bound to all.
  ///   "localhost" always is: no other site can own it.
  /// - 403 for a request of a page of another origin that could change something.
  /// - 401 without a key, except where `is_public`.
  std::optional<HttpResponse> refusal(const HttpHead& head, bool is_public) const;

  /// What a browser needs to hand an answer to a page of this request's origin; empty when it must
  /// not.
  HttpHeaders cors_headers(const HttpRequest& request) const;

  /// Whether "Bearer KEY" names one of the keys. Time depends on neither the keys' contents nor how
  /// much of one is right: digests are compared, all of them, every byte.
  bool has_key(std::string_view authorization) const;

 private:
  bool is_own_host(const std::string& host) const;
  bool is_allowed_origin(std::string_view origin) const;

  HttpAccessOptions options_;
  std::vector<Sha256Digest> keys_;
  bool is_bound_to_all_ = false;
  bool is_bound_to_loopback_ = false;
};

/// All that can be said about a request before its body is read: access.refusal(), then 404, 405
/// with Allow, 413 for a body where none belongs or one that is too long, 411 for a POST without a
/// length, 415 for a body that is not plain JSON (a form of another site cannot send JSON unasked).
std::optional<HttpResponse> refuse_request(const HttpAccess& access, const HttpRouteMatch& match,
                                           const HttpHead& head, int64_t max_body_bytes);

}  // namespace caravan
