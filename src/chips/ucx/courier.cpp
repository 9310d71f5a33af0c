// The courier over UCX: a session and a thread of its own.
//
// The caller's thread hands over orders (send this, make room for that) and looks at what came. The
// courier's thread alone drives the session: it posts receives as soon as they are ordered, posts
// each send when its copy from the device is done, and notes when a message came. It sleeps on the
// session's event file and on one of its own, which an order makes readable; while a copy is under
// way it sleeps until the copy is due.
//
// Orders and messages cross between the threads under one mutex. The first failure ends the thread
// and stands for every later call.
#include "chips/courier.h"

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <optional>
#include <thread>

#include "base/clock.h"
#include "base/error.h"
#include "chips/torch.h"
#include "chips/ucx/frames/wake_file.h"
#include "chips/ucx/session.h"

namespace pelago::chips {
namespace {

constexpr double kLongestNapSeconds = 0.1;   // UCX looks for dead peers only while it is driven
constexpr double kPollSeconds = 40e-6;       // after the last event, to catch the next one awake
constexpr double kCopyPollSeconds = 100e-6;  // where the device did not tell when a copy is done

std::span<std::byte> bytes_of(const Tensor& tensor) {
  return {static_cast<std::byte*>(tensor.data_ptr()), static_cast<size_t>(tensor.nbytes())};
}

/// A message on its way out; the courier's thread owns it once it was taken over.
struct Outgoing {
  Tensor host;                     // what is sent; undefined until the copy is done
  std::unique_ptr<HostCopy> copy;  // null where the tensor lies on the host already
  int to_rank = 0;
  uint32_t tag = 0;
  PendingMessage message = {};
};

/// A message to come. Shared by the caller, who waits for it, and the thread, which receives it.
struct Incoming {
  Tensor host;
  int from_rank = 0;
  uint32_t tag = 0;
  PendingMessage message = {};  // the thread's
  double arrived_s = 0;         // 0 until it is there; under the courier's mutex
};

class UcxCourier final : public Courier {
 public:
  explicit UcxCourier(const CollectiveOptions& options)
      : device_(*options.device), timeout_s_(options.timeout_s), session_(options) {
    thread_ = std::jthread([this](const std::stop_token& stop) { run(stop); });
  }
  ~UcxCourier() override {
    thread_.request_stop();
    wake_.wake();
  }
  UcxCourier(const UcxCourier&) = delete;
  UcxCourier& operator=(const UcxCourier&) = delete;

  void send(const Tensor& tensor, int to_rank, uint32_t tag) override;
  void expect(at::IntArrayRef shape, c10::ScalarType dtype, int from_rank, uint32_t tag) override;
  Tensor take(int from_rank, uint32_t tag) override;
  void flush() override;
  double waited_s() override { return std::exchange(waited_s_, 0.0); }

 private:
  void throw_if_failed(const std::unique_lock<std::mutex>&) const;
  template <typename Condition>
  bool wait_until(std::unique_lock<std::mutex>& lock, double deadline_s, Condition condition);
  void wait_for(std::unique_lock<std::mutex>& lock, const Incoming& incoming);
  [[noreturn]] void give_up(std::unique_lock<std::mutex>& lock, int silent_rank);

  // The courier's thread:
  void run(const std::stop_token& stop);
  void work(const std::stop_token& stop);
  bool take_orders();
  bool post_copied();
  bool collect();
  double nap_s() const;

  Device& device_;  // outlives me
  const double timeout_s_;
  UcxSession session_;
  WakeFile wake_;

  // The caller's thread:
  std::map<std::pair<int, uint32_t>, std::deque<std::shared_ptr<Incoming>>> expected_;
  double waited_s_ = 0;

  // The courier's thread:
  std::deque<Outgoing> copying_, sending_;
  std::deque<std::shared_ptr<Incoming>> receiving_;

  std::mutex orders_mutex_;  // guards what follows, and Incoming::arrived_s
  std::condition_variable changed_;
  std::deque<Outgoing> ordered_sends_;
  std::deque<std::shared_ptr<Incoming>> ordered_receives_;
  int num_unsent_ = 0;
  int last_unsent_rank_ = 0;
  std::optional<int> silent_rank_;  // the caller's patience with it is over
  std::string failure_;             // empty while all is well

  std::jthread thread_;  // the last member: it ends before the others do
};

void UcxCourier::send(const Tensor& tensor, int to_rank, uint32_t tag) {
  PELAGO_ASSERT(tensor.is_contiguous(), "ranks exchange tensors as they lie in memory");
  Outgoing outgoing;
  outgoing.to_rank = to_rank;
  outgoing.tag = tag;
  const Tensor values = tensor.detach();
  if (values.is_cpu()) {
    outgoing.host = values;
  } else {
    outgoing.copy = device_.start_copy_to_host(values, device_.mark());
  }
  const std::unique_lock lock(orders_mutex_);
  throw_if_failed(lock);
  ordered_sends_.push_back(std::move(outgoing));
  ++num_unsent_;
  last_unsent_rank_ = to_rank;
  wake_.wake();
}

void UcxCourier::expect(at::IntArrayRef shape, c10::ScalarType dtype, int from_rank, uint32_t tag) {
  auto incoming = std::make_shared<Incoming>();
  incoming->host = device_.make_host_tensor(shape, dtype);
  incoming->from_rank = from_rank;
  incoming->tag = tag;
  const std::unique_lock lock(orders_mutex_);
  throw_if_failed(lock);
  expected_[{from_rank, tag}].push_back(incoming);
  ordered_receives_.push_back(std::move(incoming));
  wake_.wake();
}

Tensor UcxCourier::take(int from_rank, uint32_t tag) {
  std::deque<std::shared_ptr<Incoming>>& queue = expected_[{from_rank, tag}];
  PELAGO_ASSERT(!queue.empty(), "a message is expected before it is taken");
  const std::shared_ptr<Incoming> incoming = queue.front();
  {
    std::unique_lock lock(orders_mutex_);
    if (incoming->arrived_s == 0) wait_for(lock, *incoming);
  }
  queue.pop_front();
  return device_.copy_to_device(incoming->host, incoming->arrived_s);
}

void UcxCourier::wait_for(std::unique_lock<std::mutex>& lock, const Incoming& incoming) {
  const double begin_s = steady_now_s();
  if (!wait_until(lock, begin_s + timeout_s_, [&] { return incoming.arrived_s > 0; })) {
    give_up(lock, incoming.from_rank);
  }
  const double end_s = steady_now_s();
  waited_s_ += end_s - begin_s;
  device_.note_host_wait(begin_s, end_s);
}

void UcxCourier::flush() {
  std::unique_lock lock(orders_mutex_);
  if (!wait_until(lock, steady_now_s() + timeout_s_, [&] { return num_unsent_ == 0; })) {
    give_up(lock, last_unsent_rank_);
  }
}

void UcxCourier::throw_if_failed(const std::unique_lock<std::mutex>&) const {
  if (!failure_.empty()) throw Failure(failure_);
}

/// False if the deadline passed first.
template <typename Condition>
bool UcxCourier::wait_until(std::unique_lock<std::mutex>& lock,
                            double deadline_s,
                            Condition condition) {
  while (!condition()) {
    throw_if_failed(lock);
    const double left_s = deadline_s - steady_now_s();
    if (left_s <= 0) return false;
    changed_.wait_for(lock, std::chrono::duration<double>(left_s));
  }
  return true;
}

/// Lets the thread close the session, so that all ranks blame the same one.
void UcxCourier::give_up(std::unique_lock<std::mutex>& lock, int silent_rank) {
  silent_rank_ = silent_rank;
  wake_.wake();
  changed_.wait(lock, [&] { return !failure_.empty(); });
  throw Failure(failure_);
}

void UcxCourier::run(const std::stop_token& stop) {
  std::string failure = "the courier has ended";
  try {
    work(stop);
  } catch (const std::exception& error) {
    failure = error.what();
  }
  const std::lock_guard lock(orders_mutex_);
  failure_ = failure;
  changed_.notify_all();
}

void UcxCourier::work(const std::stop_token& stop) {
  double awake_until_s = 0;
  while (!stop.stop_requested()) {
    bool is_busy = take_orders();
    is_busy |= post_copied();
    is_busy |= session_.progress();
    is_busy |= collect();
    const double now_s = steady_now_s();
    if (is_busy) awake_until_s = now_s + kPollSeconds;
    if (now_s < awake_until_s) continue;
    const double longest_s = nap_s();
    if (longest_s > 0) session_.nap(longest_s, wake_.fd());
  }
}

bool UcxCourier::take_orders() {
  std::deque<Outgoing> sends;
  std::deque<std::shared_ptr<Incoming>> receives;
  std::optional<int> silent_rank;
  wake_.clear();
  {
    const std::lock_guard lock(orders_mutex_);
    sends.swap(ordered_sends_);
    receives.swap(ordered_receives_);
    silent_rank = silent_rank_;
  }
  if (silent_rank) {
    if (!copying_.empty()) {
      fail(
          "{} has not finished its work for {} s, so a message to rank {} could not leave; restart "
          "this worker",
          device_.name(),
          timeout_s_,
          copying_.front().to_rank);
    }
    session_.lose(*silent_rank, fmt::format("it was silent for {} s", timeout_s_));
  }
  for (std::shared_ptr<Incoming>& incoming : receives) {
    incoming->message =
        session_.post_receive(bytes_of(incoming->host), incoming->from_rank, incoming->tag);
    receiving_.push_back(std::move(incoming));
  }
  const bool is_busy = !sends.empty() || !receives.empty();
  std::ranges::move(sends, std::back_inserter(copying_));
  return is_busy;
}

/// Copies end in the order they began in, so messages leave in the order they were given.
bool UcxCourier::post_copied() {
  bool is_busy = false;
  for (; !copying_.empty(); copying_.pop_front()) {
    Outgoing& outgoing = copying_.front();
    if (outgoing.copy) {
      if (!outgoing.copy->is_done()) break;
      outgoing.host = outgoing.copy->wait();
    }
    outgoing.message = session_.post_send(bytes_of(outgoing.host), outgoing.to_rank, outgoing.tag);
    sending_.push_back(std::move(outgoing));
    is_busy = true;
  }
  return is_busy;
}

bool UcxCourier::collect() {
  const double now_s = steady_now_s();
  const size_t num_sent = std::erase_if(
      sending_, [&](Outgoing& outgoing) { return session_.is_done(outgoing.message); });
  std::vector<std::shared_ptr<Incoming>> arrived;
  std::erase_if(receiving_, [&](std::shared_ptr<Incoming>& incoming) {
    if (!session_.is_done(incoming->message)) return false;
    arrived.push_back(incoming);
    return true;
  });
  if (num_sent == 0 && arrived.empty()) return false;
  const std::lock_guard lock(orders_mutex_);
  for (const std::shared_ptr<Incoming>& incoming : arrived) incoming->arrived_s = now_s;
  num_unsent_ -= static_cast<int>(num_sent);
  changed_.notify_all();
  return true;
}

double UcxCourier::nap_s() const {
  if (copying_.empty()) return kLongestNapSeconds;
  const double left_s = copying_.front().copy->due_s() - steady_now_s();
  return left_s > 0 ? std::min(kLongestNapSeconds, left_s) : kCopyPollSeconds;
}

/// Of a single rank.
class AloneCourier final : public Courier {
 public:
  void send(const Tensor&, int, uint32_t) override { no_peer(); }
  void expect(at::IntArrayRef, c10::ScalarType, int, uint32_t) override { no_peer(); }
  Tensor take(int, uint32_t) override {
    no_peer();
    return {};
  }
  void flush() override {}
  double waited_s() override { return 0; }

 private:
  static void no_peer() { PELAGO_ASSERT(false, "a single rank has no peer to speak to"); }
};

}  // namespace

std::unique_ptr<Courier> open_courier(const CollectiveOptions& options) {
  PELAGO_ASSERT(options.device != nullptr, "a courier carries a device's tensors");
  if (options.num_ranks < 1 || options.rank < 0 || options.rank >= options.num_ranks) {
    fail_usage("rank {} of {} does not exist: ranks count from 0", options.rank, options.num_ranks);
  }
  if (options.num_ranks == 1) return std::make_unique<AloneCourier>();
  return std::make_unique<UcxCourier>(options);
}

}  // namespace pelago::chips
