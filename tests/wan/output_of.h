// The output of a shell command, for tests and benchmarks that look at a line with the system's own
// tools.
#pragma once

#include <cstdio>
#include <string>

#include "base/error.h"

namespace pelago::wan {

/// What a command writes to its standard output. Throws Failure, with that, if the command fails.
inline std::string output_of(const std::string& command) {
  std::FILE* pipe = ::popen(command.c_str(), "r");
  if (pipe == nullptr) fail("cannot start {}", command);
  std::string out;
  char buffer[4096];
  while (const size_t got = std::fread(buffer, 1, sizeof buffer, pipe)) out.append(buffer, got);
  if (::pclose(pipe) != 0) fail("{}: {}", command, out);
  return out;
}

}  // namespace pelago::wan
