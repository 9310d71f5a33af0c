// Ranks as threads of the test, each with a session of its own.
#pragma once

#include <doctest/doctest.h>
#include <unistd.h>

#include <filesystem>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "chips/collective.h"

namespace pelago::chips {

/// A folder that is empty at the start and gone at the end.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "pelago-XXXXXX").string();
    PELAGO_ASSERT(::mkdtemp(pattern.data()) != nullptr, "the test may write temporary files");
    path_ = pattern;
  }
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

/// Runs body once a rank, each on a thread of its own, and returns what each threw ("" if nothing).
inline std::vector<std::string> run_ranks(int num_ranks,
                                          const std::function<void(const CollectiveOptions&)>& body,
                                          double timeout_s) {
  const TemporaryFolder folder;
  std::vector<std::string> failures(static_cast<size_t>(num_ranks));
  {
    std::vector<std::jthread> threads;
    for (int rank = 0; rank < num_ranks; ++rank) {
      threads.emplace_back([&, rank] {
        try {
          body({.rank = rank,
                .num_ranks = num_ranks,
                .rendezvous_dir = folder.path(),
                .timeout_s = timeout_s});
        } catch (const Failure& failure) {
          failures[static_cast<size_t>(rank)] = failure.what();
        }
      });
    }
  }
  return failures;
}

inline std::vector<std::string> run_ranks(int num_ranks,
                                          const std::function<void(Collective&)>& body,
                                          double timeout_s = 60) {
  const auto open = [&](const CollectiveOptions& options) { body(*open_collective(options)); };
  return run_ranks(num_ranks, std::function<void(const CollectiveOptions&)>(open), timeout_s);
}

inline void check_no_failure(const std::vector<std::string>& failures) {
  for (const std::string& failure : failures) CHECK(failure == "");
}

}  // namespace pelago::chips
