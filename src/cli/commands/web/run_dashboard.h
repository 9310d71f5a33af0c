// The dashboard of `train --web`: a process of its own, so that nothing that happens to it, a crash
// or a thousand readers, can reach the run. It ends with the command that started it.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

namespace pelago {
class ChildProcess;
}

namespace pelago::cli {

class RunDashboard {
 public:
  /// Starts it and waits until it listens. port 0: any free one. Never throws: a run does not
  /// depend on being watched.
  RunDashboard(const std::filesystem::path& run_dir, int port);
  ~RunDashboard();

  /// "dashboard: http://127.0.0.1:8765/", or why there is none.
  const std::string& words() const { return words_; }

 private:
  std::unique_ptr<ChildProcess> child_;
  std::string words_;
};

}  // namespace pelago::cli
