// The part of a RouterEngine that keeps its places filled: it starts workers, notices those that
// are lost or hang, and buries them. One thread does all of it, since children die with the thread
// that started them.
#include <unistd.h>

#include <algorithm>

#include "base/clock.h"
#include "base/log.h"
#include "serve/workers/router_worker.h"

namespace pelago::serve {

namespace {

constexpr double kLook_s = 0.1;  // how often, where nobody calls
constexpr double kAbsent_s = 1;  // since the last look: then this process itself stood still
constexpr double kEnd_s = 1;     // that a worker gets to end by itself

/// Closes the worker's end here once the worker has it.
struct LentSocket {
  const int socket;
  ~LentSocket() { ::close(socket); }
};

}  // namespace

void RouterEngine::supervise(const std::stop_token& stop) {
  double looked_s = steady_now_s();
  while (!stop.stop_requested()) {
    const double now_s = steady_now_s();
    std::optional<size_t> to_fill;
    {
      const std::lock_guard lock(mutex_);
      // A router that was stopped or starved has heard nobody; that is not their fault.
      if (now_s - looked_s > kAbsent_s) {
        for (const auto& worker : workers_) worker->heard_s = now_s;
      }
      looked_s = now_s;
    }
    look_after(now_s);
    {
      std::unique_lock lock(mutex_);
      to_fill = place_to_fill(now_s);
      if (!to_fill) {
        changed_.wait_for(lock, stop, std::chrono::duration<double>(kLook_s), [&] {
          return std::ranges::any_of(
              workers_, [](const auto& worker) { return worker->state == Worker::State::kLost; });
        });
      }
    }
    if (to_fill) start_worker(*to_fill);
  }
  end_all();
}

// A place needs a worker of the version that is wanted. Where an older one serves, one start at a
// time, so that the others go on computing.
std::optional<size_t> RouterEngine::place_to_fill(double now_s) const {
  const bool is_any_starting = std::ranges::any_of(
      workers_, [](const auto& worker) { return worker->state == Worker::State::kStarting; });
  if (opening_failure_) return std::nullopt;
  for (size_t idx = 0; idx < places_.size(); ++idx) {
    if (now_s < places_[idx].not_before_s) continue;
    bool has_new = false, has_old = false;
    for (const auto& worker : workers_) {
      if (worker->worker_idx != idx) continue;
      const bool serves = worker->state == Worker::State::kReady;
      has_old = has_old || serves;
      has_new = has_new || ((serves || worker->state == Worker::State::kStarting) &&
                            worker->version >= version_wanted_);
    }
    if (!has_new && !(has_old && is_any_starting)) return idx;
  }
  return std::nullopt;
}

void RouterEngine::start_worker(size_t worker_idx) {
  std::unique_ptr<Worker> worker;
  OpenMessage opening{.folder = options_.folder, .engine = options_.engine};
  if (!options_.devices.empty())
    opening.engine.device = options_.devices[worker_idx % options_.devices.size()];
  if (!options_.prefill.empty()) {
    const RouterOptions::Prefill& prefill = options_.prefill[worker_idx % options_.prefill.size()];
    opening.engine.prefill_device = prefill.device;
    opening.engine.prefill_local_share = prefill.local_share;
  }
  uint64_t version = 0;
  {
    const std::lock_guard lock(mutex_);
    version = version_wanted_;
  }
  try {
    if (options_.shares_weights) {
      if (weights_version_ != version) weights_ = std::make_unique<SharedWeightsFile>();
      weights_version_ = version;
      opening.engine.shared_weights = weights_->path();
    }
    const auto [ours, theirs] = make_link_sockets();
    worker = std::make_unique<Worker>(worker_idx, version, ours, steady_now_s());
    const LentSocket lent{theirs};
    worker->host = start_(worker_idx, theirs);
  } catch (const Failure& failure) {
    log_error("worker not started worker={} why=\"{}\"", worker_idx, failure.what());
    const std::lock_guard lock(mutex_);
    places_[worker_idx].not_before_s = steady_now_s() + options_.restarts.pause_max_s;
    if (is_opening_) opening_failure_ = {failure.what(), failure.exit_code()};
    changed_.notify_all();
    return;
  }
  worker->link->send(std::move(opening));
  Worker& started = *worker;
  const std::lock_guard lock(mutex_);
  workers_.push_back(std::move(worker));
  started.reader = std::jthread([this, &started] { read(started); });
}

void RouterEngine::note_ready(Worker& worker, const ReadyMessage& ready) {
  worker.stats = ready.stats;
  for (const auto& other : workers_) {
    if (other->worker_idx == worker.worker_idx && other->state == Worker::State::kReady)
      other->state = Worker::State::kRetiring;
  }
  worker.state = Worker::State::kReady;
  worker.ready_s = steady_now_s();
  if (is_opening_) limits_.context_length = ready.context_length;
  policy_.forget(worker.worker_idx, static_cast<size_t>(ready.stats.num_pages));
  log_info("worker ready worker={} after_s={:.2f}",
           worker.worker_idx,
           steady_now_s() - worker.started_s);
  changed_.notify_all();
}

// Before its requests are broken off.
void RouterEngine::note_loss(const Worker& worker) {
  if (is_closing_ || worker.state == Worker::State::kLost) return;
  Place& place = places_[worker.worker_idx];
  if (is_opening_) {
    if (!opening_failure_) opening_failure_ = {worker.lost_because, worker.exit_code};
    return;
  }
  const double now_s = steady_now_s();
  if (worker.state == Worker::State::kRetiring && worker.is_idle()) return;  // was told to end
  log_error("worker lost worker={} answers_cut={} why=\"{}\"",
            worker.worker_idx,
            worker.sent.size(),
            worker.lost_because);
  if (worker.state == Worker::State::kRetiring) return;
  ++place.num_lost;
  if (worker.state == Worker::State::kStarting && ready_worker(worker.worker_idx) != nullptr) {
    log_error("model not reloaded, the old one goes on why=\"{}\"", worker.lost_because);
    version_wanted_ = ready_worker(worker.worker_idx)->version;
    return;
  }
  // Opening is no service: a large model that falls as soon as it is open would never be paused.
  const double served_s = worker.ready_s > 0 ? now_s - worker.ready_s : 0;
  place.not_before_s = now_s + place.pace.note_loss(options_.restarts, served_s);
}

void RouterEngine::look_after(double now_s) {
  std::vector<std::unique_ptr<Worker>> to_bury;
  {
    const std::lock_guard lock(mutex_);
    for (auto& worker : workers_) {
      const double silence_max_s =
          worker->has_spoken ? options_.silence_max_s : options_.start_max_s;
      if (worker->state == Worker::State::kLost) {
        add_counters(ended_, worker->stats);
        to_bury.push_back(std::move(worker));
      } else if (worker->state == Worker::State::kRetiring && worker->is_idle()) {
        worker->link->shut();  // its reader ends it
      } else if (now_s - worker->heard_s > silence_max_s && worker->lost_because.empty()) {
        worker->lost_because = fmt::format("it said nothing for {} s", silence_max_s);
        worker->host->kill();
        worker->link->shut();
      }
    }
    std::erase(workers_, nullptr);
  }
  for (auto& worker : to_bury) end(std::move(worker));
}

void RouterEngine::end(std::unique_ptr<Worker> worker) {
  worker->link->shut();
  worker->reader.join();
  const int64_t pid = worker->host->pid();
  const std::string how = worker->host->end(kEnd_s);
  log_info("worker ended worker={} pid={} how=\"{}\"", worker->worker_idx, pid, how);
}

void RouterEngine::end_all() {
  std::vector<std::unique_ptr<Worker>> all;
  {
    const std::lock_guard lock(mutex_);
    is_closing_ = true;
    all.swap(workers_);
  }
  for (const auto& worker : all) worker->link->shut();
  for (auto& worker : all) end(std::move(worker));
}

}  // namespace pelago::serve
