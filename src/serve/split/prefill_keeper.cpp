#include "serve/split/prefill_keeper.h"

#include <utility>

#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"

namespace pelago::serve {

PrefillKeeper::PrefillKeeper(StartPrefill start, const RestartLaw& law)
    : start_(std::move(start)),
      law_(law),
      thread_([this](const std::stop_token& stop) { run(stop); }) {}

PrefillKeeper::~PrefillKeeper() = default;

std::unique_ptr<chips::FrameLink> PrefillKeeper::first_link() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return first_ != nullptr || opening_failure_ != nullptr; });
  if (opening_failure_ != nullptr) std::rethrow_exception(opening_failure_);
  return std::move(first_);
}

void PrefillKeeper::start(std::function<void()> wake) {
  {
    const std::lock_guard lock(wake_mutex_);
    wake_ = std::move(wake);
  }
  this->wake();  // for what happened before
}

void PrefillKeeper::wake() {
  const std::lock_guard lock(wake_mutex_);
  if (wake_) wake_();
}

LinkKeeper::News PrefillKeeper::news() {
  const std::lock_guard lock(mutex_);
  return std::exchange(news_, {});
}

void PrefillKeeper::note_lost(uint64_t link_idx, const std::string& why) {
  const std::lock_guard lock(mutex_);
  if (link_idx + 1 != next_idx_) return;
  useless_because_ = why;
  in_use_.request_stop();
}

void PrefillKeeper::close() {
  {
    const std::lock_guard lock(mutex_);
    is_closing_ = true;
    changed_.notify_all();
  }
  const std::lock_guard lock(wake_mutex_);
  wake_ = nullptr;
}

// ---- the thread ----

void PrefillKeeper::run(const std::stop_token& stop) {
  RestartPace pace;
  while (true) {
    double served_s = 0;
    const std::string why = serve_one(stop, served_s);
    const double pause_s = pace.note_loss(law_, served_s);
    std::unique_lock lock(mutex_);
    const auto is_over = [&] { return stop.stop_requested() || is_closing_ || opening_failure_; };
    if (is_over()) return;
    if (pace.is_quarantined(law_)) {
      log_error(
          "prefill side quarantined losses={} next_start_s={} why=\"{}\": mend it, SIGHUP starts "
          "it now",
          pace.num_losses(),
          pause_s,
          why);
    } else if (served_s == 0) {
      log_error("prefill side not started pause_s={} why=\"{}\"", pause_s, why);
    }
    changed_.wait_for(lock, stop, std::chrono::duration<double>(pause_s), is_over);
    if (is_over()) return;
    lock.unlock();
    ++num_restarts_;
    wake();
  }
}

/// Returns why it is no more.
std::string PrefillKeeper::serve_one(const std::stop_token& stop, double& served_s) {
  try {
    const std::unique_ptr<PrefillHost> host = start_();
    auto link = host->connect(stop);
    if (link == nullptr) return "";
    const double begin_s = steady_now_s();
    std::stop_source in_use;
    const std::stop_callback both(stop, [in_use]() mutable { in_use.request_stop(); });
    offer(std::move(link), in_use);
    std::string why = host->wait(in_use.get_token());
    served_s = steady_now_s() - begin_s;
    if (!why.empty()) tell_lost(why);  // before it is ended, which may take a moment
    {
      const std::lock_guard lock(mutex_);
      if (why.empty()) why = std::exchange(useless_because_, {});
      if (is_closing_ || why.empty()) return "";
    }
    const int64_t pid = host->pid();
    log_warn("prefill side ended pid={} served_s={:.1f} how=\"{}\"", pid, served_s, host->end());
    return why;
  } catch (const std::exception& error) {
    const std::lock_guard lock(mutex_);
    if (next_idx_ == 0) opening_failure_ = std::current_exception();
    changed_.notify_all();
    const std::string words = error.what();
    return words.substr(0, words.find('\n'));
  }
}

void PrefillKeeper::offer(std::unique_ptr<chips::FrameLink> link, const std::stop_source& in_use) {
  {
    const std::lock_guard lock(mutex_);
    in_use_ = in_use;
    useless_because_.clear();
    if (next_idx_ == 0) {
      first_ = std::move(link);
    } else {
      news_.link = std::move(link);
      news_.link_idx = next_idx_;
    }
    ++next_idx_;
    changed_.notify_all();
  }
  wake();
}

void PrefillKeeper::tell_lost(const std::string& why) {
  std::unique_ptr<chips::FrameLink> untaken;  // closed without the mutex: that may take a moment
  {
    const std::lock_guard lock(mutex_);
    news_.lost = why;
    untaken = std::move(news_.link);
  }
  wake();
}

}  // namespace pelago::serve
