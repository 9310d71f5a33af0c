// What --prefill and --decode may say together.
#pragma once

#include <string>
#include <vector>

#include "serve/server/model_server.h"

namespace pelago::serve {

/// "cuda:0,cuda:1": by commas; an empty text is one device without a name.
std::vector<std::string> devices_of(const std::string& list);

/// Throws Failure (exit 2) naming option and remedy.
void validate_split(const ServeOptions& options);

}  // namespace pelago::serve
