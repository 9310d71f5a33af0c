// Ranks as processes, where one has to die, and as plain threads where no session is needed.
#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <exception>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"

namespace pelago::chips {

/// A child process; wait() returns what its body threw ("" if nothing), as far as a pipe holds.
class Child {
 public:
  explicit Child(const std::function<void()>& body) {
    int ends[2];
    PELAGO_ASSERT(::pipe(ends) == 0, "the test may open a pipe");
    process_ = ::fork();
    if (process_ == 0) {
      std::string failure;
      try {
        body();
      } catch (const std::exception& error) {
        failure = error.what();
      }
      const ssize_t written = ::write(ends[1], failure.data(), failure.size());
      ::_exit(written == static_cast<ssize_t>(failure.size()) ? 0 : 1);
    }
    ::close(ends[1]);
    file_ = ends[0];
  }
  Child(Child&& other) noexcept : process_(other.process_), file_(other.file_) {
    other.process_ = 0;
    other.file_ = -1;
  }
  ~Child() {
    if (process_ != 0) wait();
  }

  std::string wait() {
    char text[4096];
    const ssize_t num_bytes = ::read(file_, text, sizeof text);
    ::close(file_);
    ::waitpid(process_, nullptr, 0);
    process_ = 0;
    return {text, static_cast<size_t>(num_bytes > 0 ? num_bytes : 0)};
  }

 private:
  pid_t process_ = 0;
  int file_ = -1;
};

/// Runs body once a rank, each on a thread of its own; returns what each threw ("" if nothing).
inline std::vector<std::string> run_threads(int num_ranks, const std::function<void(int)>& body) {
  std::vector<std::string> failures(static_cast<size_t>(num_ranks));
  {
    std::vector<std::jthread> threads;
    for (int rank = 0; rank < num_ranks; ++rank) {
      threads.emplace_back([&, rank] {
        try {
          body(rank);
        } catch (const std::exception& failure) {
          failures[static_cast<size_t>(rank)] = failure.what();
        }
      });
    }
  }
  return failures;
}

}  // namespace pelago::chips
