// The body of a request to the API, read as each kind of request in turn.
#include "../serve/api/scripted_engine.h"
#include "outside_bytes.h"
#include "serve/api/api_error.h"
#include "serve/api/requests/requests.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t num_bytes) {
  namespace serve = pelago::serve;
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
