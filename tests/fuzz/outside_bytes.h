// What every fuzzer shares: bytes that a parser believes to be a file, and the one way in which a
// parser may refuse them.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

#include "base/error.h"

namespace pelago::fuzz {

/// The bytes as a file that needs no disk.
class MemoryFile {
 public:
  explicit MemoryFile(std::string_view bytes) : descriptor_(::memfd_create("fuzz", MFD_CLOEXEC)) {
    const auto put = ::write(descriptor_, bytes.data(), bytes.size());
    PELAGO_ASSERT(put == static_cast<ssize_t>(bytes.size()), "memory takes every byte");
  }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;
  ~MemoryFile() { ::close(descriptor_); }
  std::filesystem::path path() const { return "/proc/self/fd/" + std::to_string(descriptor_); }

 private:
  int descriptor_;
};

inline std::string_view text_of(const uint8_t* data, size_t num_bytes) {
  return {reinterpret_cast<const char*>(data), num_bytes};
}

/// Runs a parser. A Failure of one line is an answer; any other end is a bug.
template <typename Parse>
void expect_answer(const Parse& parse) {
  try {
    parse();
  } catch (const Failure& failure) {
    PELAGO_ASSERT(!std::string_view(failure.what()).empty(), "a refusal says why");
  }
}

}  // namespace pelago::fuzz

/// libFuzzer's door; replay_main.cpp calls it too.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t num_bytes);
