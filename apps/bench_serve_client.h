#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace caravan {

/// One request to a server and when it goes out.
struct LoadRequest {
  double start_s = 0;  // after the first; with a limit of concurrency: not before
  std::string body;    // JSON
};

/// What came of it. Times are seconds since the request was sent.
struct LoadResult {
  bool is_done = false;
  std::string error;         // empty: it succeeded
  double sent_s = 0;         // since the run began
  double first_token_s = 0;  // first event with text; without any, the one that ends the answer
  double end_s = 0;
  std::vector<double> gaps_s;      // between events with text
  int64_t num_prompt_tokens = -1;  // as the server counts them; -1: it does not say
  int64_t num_output_tokens = 0;   // the same, or events with text
  std::string text;
};

struct LoadOptions {
  std::string base_url =
      "http://127.0.0.1:8000";  // http://host:port, with a prefix of the path or without
  std::string endpoint = "/v1/completions";
  std::string api_key;
  int64_t max_concurrency = 0;  // 0: no limit
  double timeout_s = 600;       // of one request
};

/// The parts of http://host:port/prefix. Errors: kInvalidArgument for another scheme or form.
struct ServerAddress {
  std::string authority;  // host:port as given
  std::string host;
  std::string port;
  std::string prefix;  // "" or "/..."
};
ServerAddress parse_server_url(const std::string& url);

/// Sends all requests to an OpenAI-compatible server, each as its time comes, and reads the
/// streams. Results are in the order of the requests; what fails is in its result. One thread.
/// on_done is called after each. Errors: kInvalidArgument (the address).
std::vector<LoadResult> send_load(const LoadOptions& options,
                                  const std::vector<LoadRequest>& requests,
                                  const std::function<void()>& on_done = nullptr);

}  // namespace caravan
