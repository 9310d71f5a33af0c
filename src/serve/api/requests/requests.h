// From the JSON of OpenAI's API to what the engine takes. Everything a stranger can send is checked
// here, once.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "serve/api/served_model.h"
#include "serve/engine.h"
#include "serve/template/value.h"

namespace pelago::serve {

struct ApiLimits {
  int num_choices_max = 128;     // n, times prompts: OpenAI's bound of n
  size_t num_prompts_max = 128;  // of one completion request
  size_t num_stops_max = 16;     // OpenAI takes 4
  size_t stop_bytes_max = 1000;
  size_t num_bias_max = 1024;  // entries of logit_bias; OpenAI takes 300 or so
  size_t num_messages_max = 10'000;
  size_t num_tools_max = 128;  // OpenAI's bound
  size_t prompt_bytes_max = 16 << 20;
  int num_logprobs_max = 20;  // OpenAI's bound for chats
};

/// What the answer is to look like, beside what the engine is to make.
struct ApiRequest {
  bool is_chat = false;
  bool is_stream = false;
  bool includes_usage = false;  // in a stream; whole answers always have it
  bool has_tools = false;       // the answer may be a call of one of tool_names
  bool echoes = false;          // a completion begins with its prompt
  std::string forced_tool;      // the answer is the arguments of this one
  std::vector<std::string> tool_names;
  std::vector<std::string> prompt_texts;  // for echo, one a prompt
  std::vector<GenerateRequest> prompts;   // of a chat there is one
};

/// Throws ApiError 400 or 404. now_s: seconds since 1970, for templates that tell the date.
ApiRequest read_chat_request(const Value& body,
                             const ServedModel& model,
                             const ApiLimits& limits,
                             int64_t now_s);
ApiRequest read_completion_request(const Value& body,
                                   const ServedModel& model,
                                   const ApiLimits& limits);

/// The tokens of each input of /v1/embeddings.
struct EmbeddingRequest {
  std::vector<std::vector<int32_t>> inputs;
  bool as_base64 = false;
};
EmbeddingRequest read_embedding_request(const Value& body,
                                        const ServedModel& model,
                                        const ApiLimits& limits);

/// The tokens of /tokenize: of "prompt" (or "content"), or of "messages" as a chat.
std::vector<int32_t> read_tokenize_request(const Value& body,
                                           const ServedModel& model,
                                           const ApiLimits& limits,
                                           int64_t now_s);

}  // namespace pelago::serve
