// The prefill side as a process of its own (`pelago serve-prefill`), started and ended by the
// engine that it reads for. It is told what to open over a socket, as a worker is, and says over it
// that it has, or why it could not, and that it lives; the pages come over a link of their own.
#pragma once

#include <condition_variable>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "base/error.h"
#include "base/process/child.h"
#include "chips/ucx/frames/frame_link.h"
#include "serve/local/local_engine.h"
#include "serve/split/prefill_keeper.h"
#include "serve/workers/link/link.h"

namespace pelago::serve {

class PrefillProcess final : public PrefillHost {
 public:
  /// Starts it; returns before it has opened the model. It dies with the calling thread.
  /// options.prefill_device is what it computes on, cores where if that is the host's. Throws
  /// Failure.
  PrefillProcess(const std::filesystem::path& folder,
                 EngineOptions options,
                 const std::vector<int>& cores);
  ~PrefillProcess() override;

  int64_t pid() const override { return child_->pid(); }
  std::unique_ptr<chips::FrameLink> connect(const std::stop_token& stop) override;
  std::string wait(const std::stop_token& stop) override;
  std::string end() override;

 private:
  bool wait_for(const std::stop_token& stop, const std::function<bool()>& is_there);
  std::string how_it_ended();

  std::filesystem::path scratch_;  // a folder that goes with me: where the two meet
  std::mutex mutex_;               // guards what follows
  std::condition_variable_any changed_;
  bool is_open_ = false, has_ended_ = false, has_spoken_ = false;
  double heard_s_ = 0;  // when it last said something
  std::optional<LostMessage> lost_;

  std::unique_ptr<Link> link_;
  std::unique_ptr<ChildProcess> child_;
  std::jthread reader_;  // last: it uses everything above
};

/// The process's side. socket: its end, taken over. Returns the process's exit code.
int run_prefill_process(int socket);

}  // namespace pelago::serve
