// What no engine of a model will ever serve, told without asking one.
#pragma once

#include <cstdint>

#include "serve/engine.h"

namespace pelago::serve {

struct RequestLimits {
  int64_t context_length = 0;  // tokens, prompt and answer together
  int64_t vocab_size = 0;
  int choices_max = 0;  // answers to one prompt
};

/// kRefused, with one line that says why, for a request that can never be served.
Status check_request(const GenerateRequest& request, const RequestLimits& limits);

}  // namespace pelago::serve
