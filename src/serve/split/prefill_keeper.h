// Keeps a prefill side at an engine's disposal: starts it, notices when it is lost, and starts it
// again, by the law that workers are restarted by. One thread does all of it, since children die
// with the thread that started them. An engine can do without: what falls again and again is put
// in quarantine, and the prompts are read by the engine meanwhile.
#pragma once

#include <atomic>
#include <condition_variable>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <stop_token>
#include <string>
#include <thread>

#include "serve/split/link_keeper.h"
#include "serve/workers/restart_pace.h"

namespace pelago::serve {

/// What reads prompts for an engine: a process, or what a test puts in its place. Ends with this
/// object.
class PrefillHost {
 public:
  PrefillHost() = default;
  PrefillHost(const PrefillHost&) = delete;
  PrefillHost& operator=(const PrefillHost&) = delete;
  virtual ~PrefillHost() = default;

  virtual int64_t pid() const = 0;
  /// The engine's end of a link to it, as soon as it has opened its model; null: stopped first.
  /// Throws Failure as it said it.
  virtual std::unique_ptr<chips::FrameLink> connect(const std::stop_token& stop) = 0;
  /// Waits until it has ended or hangs. Returns how, in one line; empty: stopped first.
  virtual std::string wait(const std::stop_token& stop) = 0;
  /// Ends it, gently where that takes no time. Returns how it ended: "ended with exit code 0".
  virtual std::string end() = 0;
};
/// Throws Failure. Called on one thread, which lives as long as what it starts.
using StartPrefill = std::function<std::unique_ptr<PrefillHost>()>;

/// Five losses in a row take 4 s of pauses and the times of opening the model.
inline constexpr RestartLaw kPrefillLaw = {.losses_max = 5};

class PrefillKeeper final : public LinkKeeper {
 public:
  /// Starts the first one; returns before it has opened its model.
  explicit PrefillKeeper(StartPrefill start, const RestartLaw& law = kPrefillLaw);
  ~PrefillKeeper() override;

  /// To be called once, first: the link to the first one. Throws what kept it from opening; then
  /// no other is started.
  std::unique_ptr<chips::FrameLink> first_link();

  void start(std::function<void()> wake) override;
  News news() override;
  void note_lost(uint64_t link_idx, const std::string& why) override;
  void close() override;
  uint64_t num_restarts() const override { return num_restarts_; }

 private:
  void run(const std::stop_token& stop);
  std::string serve_one(const std::stop_token& stop, double& served_s);
  void offer(std::unique_ptr<chips::FrameLink> link, const std::stop_source& in_use);
  void tell_lost(const std::string& why);
  void wake();

  const StartPrefill start_;
  const RestartLaw law_;
  std::atomic<uint64_t> num_restarts_{0};

  std::mutex wake_mutex_;  // guards wake_, which is called with it held
  std::function<void()> wake_;

  std::mutex mutex_;  // guards what follows; never held while wake_ is called
  std::condition_variable_any changed_;
  std::unique_ptr<chips::FrameLink> first_;
  News news_;
  uint64_t next_idx_ = 0;        // of links
  std::stop_source in_use_;      // of the link that was offered last: stopped when it is of no use,
  std::string useless_because_;  // which the reader found out
  std::exception_ptr opening_failure_;
  bool is_closing_ = false;

  std::jthread thread_;  // last: it uses everything above
};

}  // namespace pelago::serve
