#include "chips/packed/core_team.h"

#include <unistd.h>

#include <algorithm>

#include "base/error.h"
#include "base/threads.h"

namespace pelago::chips::packed {

namespace {

// A pause takes 10 to 40 ns. Within a pass the others come soon; between passes the caller draws
// tokens and answers clients, who want the cores too.
constexpr int kPausesWithin = 8000;
constexpr int kPausesBetween = 2000;

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

/// Waits until value is no longer seen. ahead: fetched meanwhile, from its begin on; less the part
/// that was.
void wait_past(const std::atomic<int32_t>& value,
               int32_t seen,
               int num_pauses,
               std::span<const std::byte>& ahead) {
  constexpr size_t kLine = 64, kLinesAtOnce = 4;
  while (!ahead.empty()) {
    if (value.load(std::memory_order_acquire) != seen) return;
    const size_t num_bytes = std::min(ahead.size(), kLinesAtOnce * kLine);
    for (size_t at = 0; at < num_bytes; at += kLine) __builtin_prefetch(ahead.data() + at, 0, 2);
    ahead = ahead.subspan(num_bytes);
  }
  for (int i = 0; i < num_pauses; ++i) {
    if (value.load(std::memory_order_acquire) != seen) return;
    pause();
  }
  value.wait(seen, std::memory_order_acquire);
}

}  // namespace

CoreTeam::CoreTeam(int num_threads, std::vector<int> cores)
    : num_threads_(num_threads),
      cores_(std::move(cores)),
      rooms_(static_cast<size_t>(std::max(num_threads, 0))) {
  PELAGO_ASSERT(num_threads >= 1, "a team has its caller");
  PELAGO_ASSERT(cores_.empty() || cores_.size() >= static_cast<size_t>(num_threads),
                "every thread has a core");
  for (int thread_idx = 1; thread_idx < num_threads; ++thread_idx) {
    threads_.emplace_back([this, thread_idx](const std::stop_token& stop) {
      if (!cores_.empty()) bind_to_cores({cores_[static_cast<size_t>(thread_idx)]});
      serve(thread_idx, stop);
    });
  }
}

CoreTeam::~CoreTeam() {
  release_caller();
  for (std::jthread& thread : threads_) thread.request_stop();
  run_idx_.fetch_add(1, std::memory_order_release);
  run_idx_.notify_all();
  threads_.clear();
}

void CoreTeam::serve(int thread_idx, const std::stop_token& stop) {
  int32_t seen = 0;
  std::span<const std::byte> nothing;
  while (true) {
    wait_past(run_idx_, seen, kPausesBetween, nothing);
    if (stop.stop_requested()) return;
    ++seen;  // runs are never skipped: each ends with a meeting of all
    Member member(*this, thread_idx);
    (*work_)(member);
    meet(member);
  }
}

void CoreTeam::run(const std::function<void(Member&)>& work) {
  if (!cores_.empty() && bound_caller_ != ::gettid()) {
    caller_cores_ = allowed_cores();
    bind_to_cores({cores_[0]});
    bound_caller_ = ::gettid();
  }
  work_ = &work;
  run_idx_.fetch_add(1, std::memory_order_release);
  if (num_threads_ > 1) run_idx_.notify_all();
  Member member(*this, 0);
  work(member);
  meet(member);
}

void CoreTeam::release_caller() {
  if (bound_caller_ != ::gettid()) return;
  bind_to_cores(caller_cores_);
  bound_caller_ = 0;
}

void CoreTeam::meet(Member& member) {
  const int32_t held = meeting_.load(std::memory_order_acquire);
  if (num_arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 < num_threads_) {
    wait_past(meeting_, held, kPausesWithin, member.ahead_);
    return;
  }
  // The last one to come: nobody is in this part any more.
  counters_[member.part_ % kCounters].next.store(0, std::memory_order_relaxed);
  num_arrived_.store(0, std::memory_order_relaxed);
  meeting_.fetch_add(1, std::memory_order_release);
  if (num_threads_ > 1) meeting_.notify_all();
}

size_t CoreTeam::Member::own_piece(size_t num_items, size_t grain) const {
  const size_t grains = num_items / (4 * static_cast<size_t>(team_->num_threads_)) / grain;
  return team_->num_threads_ == 1 ? 0 : grains * grain;
}

std::byte* CoreTeam::Member::room(size_t num_bytes) {
  constexpr size_t kLine = 64;
  std::vector<std::byte>& bytes = team_->rooms_[static_cast<size_t>(thread_idx_)];
  if (bytes.size() < num_bytes + kLine) bytes.resize(num_bytes + kLine);
  const auto begin = reinterpret_cast<uintptr_t>(bytes.data());
  return bytes.data() + (kLine - begin % kLine) % kLine;
}

size_t CoreTeam::Member::first_item(size_t num_items, size_t grain) const {
  return static_cast<size_t>(thread_idx_) * own_piece(num_items, grain);
}

void CoreTeam::Member::share(size_t num_items,
                             size_t grain,
                             const std::function<void(size_t, size_t)>& work) {
  std::atomic<size_t>& next = team_->counters_[part_ % kCounters].next;
  const auto num_threads = static_cast<size_t>(team_->num_threads_);
  const size_t own = own_piece(num_items, grain);
  if (own > 0) work(first_item(num_items, grain), first_item(num_items, grain) + own);
  // The counter counts what is left of that. A share shrinks with what is left: few hand-overs, and
  // all end at about the same time.
  const size_t taken = num_threads * own;
  const size_t num_left = num_items - taken;
  size_t begin = next.load(std::memory_order_relaxed);
  while (begin < num_left) {
    const size_t grains = num_threads == 1 ? num_left : (num_left - begin) / (2 * num_threads);
    const size_t end = std::min(num_left, begin + std::max(grain, grains / grain * grain));
    if (!next.compare_exchange_weak(begin, end, std::memory_order_relaxed)) continue;
    work(taken + begin, taken + end);
    begin = next.load(std::memory_order_relaxed);
  }
  team_->meet(*this);
  ++part_;
}

}  // namespace pelago::chips::packed
