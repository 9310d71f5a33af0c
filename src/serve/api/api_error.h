// What the API answers when it does not answer: OpenAI's error body, which its clients turn into
// exceptions of their own.
#pragma once

#include <stdexcept>
#include <string>

#include "serve/http/messages.h"
#include "serve/template/value.h"

namespace pelago::serve {

/// A request that gets no answer. Caught where a route begins.
struct ApiError : std::runtime_error {
  explicit ApiError(int the_status,
                    const std::string& message,
                    std::string the_param = "",
                    std::string the_code = "")
      : std::runtime_error(message),
        status(the_status),
        param(std::move(the_param)),
        code(std::move(the_code)) {}
  int status;
  std::string param;         // the field at fault; empty: none
  std::string code;          // "model_not_found"; empty: none
  double retry_after_s = 0;  // > 0: when to try again
};

inline std::string error_type(int status) {
  if (status == 401) return "authentication_error";
  if (status == 403) return "permission_error";
  if (status == 429) return "rate_limit_error";
  return status >= 500 ? "server_error" : "invalid_request_error";
}

inline std::string error_body(int status,
                              const std::string& message,
                              const std::string& param = "",
                              const std::string& code = "") {
  const auto or_null = [](const std::string& text) {
    return text.empty() ? "null" : json_quoted(text);
  };
  return "{\"error\":{\"message\":" + json_quoted(message) + ",\"type\":\"" + error_type(status) +
         "\",\"param\":" + or_null(param) + ",\"code\":" + or_null(code) + "}}";
}

inline HttpResponse error_response(const ApiError& error) {
  HttpResponse response = {.status = error.status,
                           .body = error_body(error.status, error.what(), error.param, error.code)};
  if (error.retry_after_s > 0) {
    response.headers.emplace_back("Retry-After",
                                  std::to_string(static_cast<int>(error.retry_after_s) + 1));
  }
  if (error.status == 401) response.headers.emplace_back("WWW-Authenticate", "Bearer");
  return response;
}

}  // namespace pelago::serve
