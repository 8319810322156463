#pragma once

#include <stdexcept>
#include <string>
#include <utility>

namespace caravan {

/// Why a request gets no answer, as its client is told: the HTTP status and the members of OpenAI's
/// error object. The message is one line.
class ApiError : public std::runtime_error {
 public:
  ApiError(int status, std::string type, const std::string& message, std::string param = "",
           std::string code = "")
      : std::runtime_error(message),
        status_(status),
        type_(std::move(type)),
        param_(std::move(param)),
        code_(std::move(code)) {}

  int status() const { return status_; }
  const std::string& type() const { return type_; }
  const std::string& param() const { return param_; }
  const std::string& code() const { return code_; }

 private:
  int status_;
  std::string type_;
  std::string param_;
  std::string code_;
};

/// 400 "invalid_request_error" about the field `param`.
[[noreturn]] inline void throw_bad_request(const std::string& param, const std::string& message,
                                           const std::string& code = "") {
  throw ApiError(400, "invalid_request_error", message, param, code);
}

}  // namespace caravan
