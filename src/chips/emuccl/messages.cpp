// Messages between two ranks. A group posts all it sends, takes all it receives, and then waits
// until what it sent was taken, so that ranks may swap without a deadlock.
#include <algorithm>

#include "chips/emuccl/communicator.h"

namespace pelago::emuccl {

void Communicator::exchange(const std::vector<Message>& messages) {
  seat_.check_open();
  std::vector<uint32_t> num_posted;  // on the channel, once message i was posted
  for (const Message& message : messages) {
    if (message.is_send) post(message);
    num_posted.push_back(seat_.channel(seat_.rank(), message.peer).num_posted.load());
  }
  for (const Message& message : messages) {
    if (!message.is_send) take(message);
  }
  for (size_t i = 0; i < messages.size(); ++i) {
    if (messages[i].is_send) await_taken(messages[i], num_posted[i]);
  }
}

void Communicator::post(const Message& message) {
  Channel& channel = seat_.channel(seat_.rank(), message.peer);
  const uint32_t num_posted = channel.num_posted.load(std::memory_order_relaxed);
  if (num_posted - channel.num_taken.load(std::memory_order_acquire) >= Channel::kMessagesMax) {
    seat_.give_up(emucclInvalidUsage,
                  "a group sends more than " + std::to_string(Channel::kMessagesMax) +
                      " messages to rank " + std::to_string(message.peer));
  }
  channel.messages[num_posted % Channel::kMessagesMax] = {
      .address = reinterpret_cast<uint64_t>(message.send),
      .num_bytes = message.num_bytes,
      .begin_s = clock_.begin_s(message.time_s)};
  channel.num_posted.store(num_posted + 1, std::memory_order_release);
  Seat::wake(channel.num_posted);
}

void Communicator::take(const Message& message) {
  Channel& channel = seat_.channel(message.peer, seat_.rank());
  const uint32_t num_taken = channel.num_taken.load(std::memory_order_relaxed);
  seat_.wait_for(channel.num_posted, num_taken + 1, message.peer);
  Posted& posted = channel.messages[num_taken % Channel::kMessagesMax];
  if (posted.num_bytes != message.num_bytes) {
    seat_.give_up(emucclInvalidUsage,
                  "rank " + std::to_string(message.peer) + " sent " +
                      std::to_string(posted.num_bytes) + " bytes where " +
                      std::to_string(message.num_bytes) + " were expected");
  }
  seat_.read(message.peer, posted.address, message.receive, message.num_bytes);
  posted.begin_s = std::max(posted.begin_s, clock_.begin_s(message.time_s));
  clock_.charge(
      posted.begin_s, message_s(static_cast<double>(message.num_bytes), config_), message.time_s);
  channel.num_taken.store(num_taken + 1, std::memory_order_release);
  Seat::wake(channel.num_taken);
}

void Communicator::await_taken(const Message& message, uint32_t num_posted) {
  Channel& channel = seat_.channel(seat_.rank(), message.peer);
  seat_.wait_for(channel.num_taken, num_posted, message.peer);
  const Posted& posted = channel.messages[(num_posted - 1) % Channel::kMessagesMax];
  clock_.charge(
      posted.begin_s, message_s(static_cast<double>(message.num_bytes), config_), message.time_s);
}

}  // namespace pelago::emuccl
