// libFuzzer target of what a client sends: heads, chunked bodies, request schemas. The first byte
// says which.

#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "core/log.h"
#include "server/api_error.h"
#include "server/http_access.h"
#include "server/http_body.h"
#include "server/http_head.h"
#include "server/openai_request.h"
#include "tests/fuzz/cpu_budget.h"

namespace caravan {
namespace {

void require(bool is_true) {
  if (!is_true) std::abort();
}

bool is_one_line(std::string_view text) {
  return !text.empty() && text.find_first_of("\r\n\0") == std::string_view::npos;
}

void check_problem(const HttpProblem& problem) {
  require(problem.status >= 400 && problem.status < 500 && is_one_line(problem.message));
}

/// How many bytes the scanner looked at before it decided does not depend on how they came.
void fuzz_head(std::string_view bytes, size_t step) {
  HttpHeadScanner whole;
  HttpHeadScanner pieces;
  const auto problem = whole.scan(bytes);
  std::optional<HttpProblem> same;
  for (size_t size = step; !same && !pieces.is_complete(); size += step) {
    same = pieces.scan(bytes.substr(0, std::min(size, bytes.size())));
    if (size >= bytes.size()) break;
  }
  require(problem.has_value() == same.has_value());
  require(whole.is_complete() == pieces.is_complete() && whole.end() == pieces.end());
  if (problem) return check_problem(*problem);
  if (!whole.is_complete()) return;

  const std::string_view block = bytes.substr(whole.begin(), whole.end() - whole.begin());
  HttpHead head;
  if (const auto refused = parse_http_head(block, head)) return check_problem(*refused);
  const HttpRequest& request = head.request;
  require(request.path == "*" || request.path[0] == '/');
  require(request.path.find('\0') == std::string::npos);
  require(request.path.find("/../") == std::string::npos);
  require(!(head.is_chunked && head.content_length >= 0));
  require(request.headers.size() <= HttpHeadLimits::kHeaders);
  for (const auto& [name, value] : request.headers) {
    require(ascii_lower(name) == name && value.find_first_of("\r\n\0") == std::string::npos);
  }
  static const HttpAccess access({.bind_host = "127.0.0.1",
                                  .api_keys = {"a-key-that-no-input-has"},
                                  .allowed_hosts = {},
                                  .cors_origins = {"https://a.example"}});
  require(access.refusal(head, false).has_value());
  access.cors_headers(request);

  const std::string_view rest = bytes.substr(whole.end());
  constexpr int64_t kMaxBytes = 1 << 16;
  HttpBodyReader body(head, kMaxBytes, 100);
  require(body.put(rest) <= rest.size());
  if (body.problem()) return check_problem(*body.problem());
  if (!head.is_chunked && body.is_done()) {
    require(body.take_body().size() ==
            static_cast<size_t>(std::max<int64_t>(head.content_length, 0)));
  }
}

/// The same body, however its bytes come.
void fuzz_chunks(std::string_view bytes, size_t step) {
  HttpHead head;
  head.is_chunked = true;
  HttpBodyReader whole(head, 1000, 50);
  const size_t num_taken = whole.put(bytes);
  HttpBodyReader pieces(head, 1000, 50);
  std::string waiting;
  size_t total = 0;
  for (size_t i = 0; i < bytes.size() && !pieces.is_done() && !pieces.problem(); i += step) {
    waiting += bytes.substr(i, step);
    const size_t taken = pieces.put(waiting);
    require(taken <= waiting.size());
    waiting.erase(0, taken);
    total += taken;
  }
  if (whole.problem()) check_problem(*whole.problem());
  require(whole.is_done() == pieces.is_done());
  if (!whole.is_done()) return;
  require(total == num_taken);
  const std::string body = whole.take_body();
  require(body.size() <= 1000 && body == pieces.take_body());
}

template <typename Parse>
void fuzz_schema(const Parse& parse) {
  try {
    parse();
  } catch (const ApiError& error) {
    require(error.status() >= 400 && error.status() < 500 && is_one_line(error.what()));
  }
}

void fuzz_request(std::string_view body, int kind) {
  static const RequestParser parser(ApiLimits{}, SamplingDefaults{});
  fuzz_schema([&] {
    if (kind == 0) {
      const GenerateRequest request = parser.completion(body);
      require(request.n >= 1 && request.n <= request.best_of && !request.prompts.empty());
    } else if (kind == 1) {
      require(!parser.chat(body).messages.empty());
    } else if (kind == 2) {
      parser.tokenize(body);
    } else {
      parser.detokenize(body);
    }
  });
}

}  // namespace
}  // namespace caravan

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace caravan;
  const CpuBudget budget(size);
  set_log_level(LogLevel::kOff);
  if (size < 2) return 0;
  const std::string_view rest(reinterpret_cast<const char*>(data) + 2, size - 2);
  const size_t step = size_t{1} + data[1];
  switch (data[0] % 6) {
    case 0:
      fuzz_head(rest, step);
      break;
    case 1:
      fuzz_chunks(rest, step);
      break;
    default:
      fuzz_request(rest, data[0] % 6 - 2);
  }
  return 0;
}
