// What can never be served is refused at the door, with one line that says what to change.
#include "serve/local/request_check.h"

#include "serve/local/batch_engine.h"

namespace pelago::serve {

namespace {

constexpr size_t kStopsMax = 64;        // each is looked for in every token's text
constexpr size_t kStopBytesMax = 1024;  // and as much of the text may be held back
constexpr int kLogprobsMax = 128;       // alternatives a token

template <typename... Args>
Error refused(fmt::format_string<Args...> format, Args&&... args) {
  return {ErrorCode::kRefused, fmt::format(format, std::forward<Args>(args)...)};
}

}  // namespace

Status check_request(const GenerateRequest& request, const RequestLimits& limits) {
  const auto num_prompt = static_cast<int64_t>(request.prompt.size());
  if (num_prompt < 1) return refused("the prompt has no tokens: give at least one");
  if (num_prompt >= limits.context_length) {
    return refused("the prompt has {} tokens, the context holds {}: shorten it by {} or more",
                   num_prompt,
                   limits.context_length,
                   num_prompt - limits.context_length + 1);
  }
  for (const int32_t token : request.prompt) {
    if (token < 0 || token >= limits.vocab_size) {
      return refused("token {} is not in the vocabulary of {}", token, limits.vocab_size);
    }
  }
  if (request.max_new_tokens < 1) {
    return refused("max_new_tokens is {}: it must be 1 or more", request.max_new_tokens);
  }
  if (request.num_choices < 1 || request.num_choices > limits.choices_max) {
    return refused(
        "num_choices is {}: it must be between 1 and {}", request.num_choices, limits.choices_max);
  }
  if (request.num_logprobs > kLogprobsMax) {
    return refused("num_logprobs is {}: it must be at most {}", request.num_logprobs, kLogprobsMax);
  }
  if (request.stop.size() > kStopsMax) {
    return refused("{} stop strings: at most {}", request.stop.size(), kStopsMax);
  }
  for (const std::string& stop : request.stop) {
    if (stop.empty() || stop.size() > kStopBytesMax) {
      return refused("a stop string of {} bytes: it must have 1 to {}", stop.size(), kStopBytesMax);
    }
  }
  try {
    validate(request.sampling, limits.vocab_size);
  } catch (const Failure& failure) {
    return Error{ErrorCode::kRefused, failure.what()};
  }
  return ok();
}

Status BatchEngine::check(const GenerateRequest& request) const {
  return check_request(request,
                       {.context_length = context_length_,
                        .vocab_size = runner_.vocab_size(),
                        .choices_max = options_.scheduler.rows_max()});
}

}  // namespace pelago::serve
