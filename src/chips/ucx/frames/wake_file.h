#pragma once

#include <sys/eventfd.h>
#include <unistd.h>

#include <cstdint>

#include "base/error.h"

namespace pelago::chips {

/// An event file that a thread sleeps on and another makes readable.
class WakeFile {
 public:
  WakeFile() : fd_(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {
    if (fd_ < 0) fail("no event file can be opened; raise the limit on open files (ulimit -n)");
  }
  WakeFile(const WakeFile&) = delete;
  WakeFile& operator=(const WakeFile&) = delete;
  ~WakeFile() { ::close(fd_); }
  int fd() const { return fd_; }
  void wake() const {
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t written = ::write(fd_, &one, sizeof one);  // full: readable too
  }
  void clear() const {
    uint64_t count = 0;
    [[maybe_unused]] const ssize_t got = ::read(fd_, &count, sizeof count);
  }

 private:
  int fd_;
};

}  // namespace pelago::chips
