// The body of a request to the API, read as each kind of request in turn; what begins with '/' is
// read as a request's target, and then as a header's value.
#include "../serve/api/scripted_engine.h"
#include "outside_bytes.h"
#include "serve/api/api_error.h"
#include "serve/api/requests/requests.h"
#include "serve/http/messages.h"

namespace {

void read_target(std::string_view text) {
  namespace serve = pelago::serve;
  serve::HttpRequest request;
  if (serve::split_target(text, request)) {
    const bool had_lines = text.find_first_of("\r\n") != std::string_view::npos;
    PELAGO_ASSERT(had_lines || request.path.find_first_of("\r\n") == std::string::npos,
                  "no escape smuggles a line in");
    serve::query_field(request.query, "run");
  }
  const std::string head = serve::format_head({.headers = {{"Allow", std::string(text)}}}, {});
  PELAGO_ASSERT(head.find("\r\n\r\n") == head.size() - 4, "a value ends no header");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t num_bytes) {
  namespace serve = pelago::serve;
  if (num_bytes > 0 && data[0] == '/') read_target(pelago::fuzz::text_of(data, num_bytes));
  static const serve::ServedModel model{
      .id = "m",
      .text = serve::ChatText(serve::scripted_tokenizer(), "{}", ""),
      .engine = std::make_unique<serve::ScriptedEngine>(serve::ScriptedEngine::Script{})};
  serve::Value body;
  try {
    body = serve::value_of_json(pelago::fuzz::text_of(data, num_bytes));
  } catch (const serve::TemplateError&) {
    return 0;
  }
  const auto expect_answer = [](const auto& read) {
    try {
      read();
    } catch (const serve::ApiError& error) {
      PELAGO_ASSERT(error.status >= 400 && error.status < 500,
                    "what a client sends is its own fault");
    }
  };
  const serve::ApiLimits limits;
  expect_answer([&] { serve::read_chat_request(body, model, limits, 0); });
  expect_answer([&] { serve::read_completion_request(body, model, limits); });
  expect_answer([&] { serve::read_embedding_request(body, model, limits); });
  expect_answer([&] { serve::read_tokenize_request(body, model, limits, 0); });
  return 0;
}
