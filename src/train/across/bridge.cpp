#include "train/across/bridge.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "base/clock.h"
#include "base/error.h"

namespace pelago::train {

Bridge::Bridge(BridgeSocket socket, int rank, double timeout_s)
    : socket_(std::move(socket)),
      rank_(rank),
      timeout_s_(timeout_s),
      writer_([this](const std::stop_token& stop) { write(stop); }),
      reader_([this] { read(); }) {}

Bridge::~Bridge() {
  // What was given still leaves: another site may wait for it.
  writer_.request_stop();
  writer_.join();
  socket_.shut_down();
}

void Bridge::send(const BridgeKey& to, std::span<const std::byte> bytes) {
  auto copy = std::make_shared<std::vector<std::byte>>(bytes.begin(), bytes.end());
  const std::span<const std::byte> kept(*copy);
  send(to, kept, std::move(copy));
}

void Bridge::send(const BridgeKey& to,
                  std::span<const std::byte> bytes,
                  std::shared_ptr<const void> owner) {
  PELAGO_ASSERT(!bytes.empty() && to.rank != rank_, "a message has bytes and another receiver");
  Outgoing outgoing;
  outgoing.header = {.from_rank = rank_, .to_rank = to.rank, .channel = to.channel, .tag = to.tag};
  outgoing.bytes = bytes;
  outgoing.owner = std::move(owner);
  const std::lock_guard lock(outgoing_mutex_);
  outgoing_[static_cast<size_t>(to.channel)].push_back(std::move(outgoing));
  given_.notify_one();
}

void Bridge::write(const std::stop_token& stop) {
  std::unique_lock lock(outgoing_mutex_);
  const auto next = [&] {
    return std::find_if(
        outgoing_.begin(), outgoing_.end(), [](const auto& queue) { return !queue.empty(); });
  };
  while (true) {
    given_.wait(lock, stop, [&] { return next() != outgoing_.end(); });
    const auto queue = next();
    if (queue == outgoing_.end()) return;
    Outgoing& outgoing = queue->front();
    const size_t num_bytes = std::min(outgoing.bytes.size(), kBridgePartBytes);
    outgoing.header.num_bytes = num_bytes;
    const BridgeHeader header = outgoing.header;
    const std::span<const std::byte> part = outgoing.bytes.first(num_bytes);
    const std::shared_ptr<const void> owner = outgoing.owner;  // while it is being written
    outgoing.bytes = outgoing.bytes.subspan(num_bytes);
    if (outgoing.bytes.empty()) queue->pop_front();
    lock.unlock();
    if (!socket_.write(header, part)) return;  // the reader finds out, too
    lock.lock();
  }
}

void Bridge::read() {
  BridgeHeader header;
  std::string part;
  std::string failure;
  while (failure.empty() && socket_.read(header, part)) {
    const std::lock_guard lock(parts_mutex_);
    if (header.channel == BridgeChannel::kFailure) {
      failure = part;
      break;
    }
    parts_[{header.channel, header.from_rank, header.tag}].push_back(
        {std::move(part), steady_now_s()});
    part.clear();
    arrived_.notify_all();
  }
  const std::lock_guard lock(parts_mutex_);
  failure_ =
      failure.empty() ? "the site's agent is gone, and with it the line to other sites" : failure;
  arrived_.notify_all();
}

double Bridge::receive(const BridgeKey& from, std::span<std::byte> bytes) {
  std::unique_lock lock(parts_mutex_);
  std::deque<Part>& parts = parts_[from];
  double arrived_s = 0;
  while (!bytes.empty()) {
    const bool has_come = arrived_.wait_for(lock, std::chrono::duration<double>(timeout_s_), [&] {
      return !parts.empty() || !failure_.empty();
    });
    if (parts.empty() && !failure_.empty()) throw Failure(failure_);
    if (!has_come) fail("rank {} of all sites was silent for {} s", from.rank, timeout_s_);
    Part part = std::move(parts.front());
    parts.pop_front();
    if (part.bytes.size() > bytes.size()) {
      fail("rank {} of all sites sent {} bytes, {} were expected: the sites disagree on the plan",
           from.rank,
           part.bytes.size(),
           bytes.size());
    }
    lock.unlock();
    std::memcpy(bytes.data(), part.bytes.data(), part.bytes.size());
    lock.lock();
    bytes = bytes.subspan(part.bytes.size());
    arrived_s = part.arrived_s;
  }
  return arrived_s;
}

}  // namespace pelago::train
