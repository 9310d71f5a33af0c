// Some ranks of a session, counted anew, whose messages nobody else's can be taken for: several
// groups share one session and its connections, and each has a number of its own in the tags.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "chips/ucx/session.h"

namespace pelago::chips {

/// What a message is.
enum class MessageKind : uint64_t {
  kPart = 1,
  kSum = 2,
  kGather = 3,
  kBroadcast = 4,
  kDirect = 5,
  kGroup = 6,
};

/// What tells messages of one group apart.
struct MessageTag {
  MessageKind kind;
  uint64_t number;  // of the call, counted alike on every rank, or the caller's own; 32 bits count
};

class RankGroup {
 public:
  static constexpr uint32_t kGroupIdxMax = 0xfff;

  /// session_ranks: who stands at which place; this rank is one of them. The session outlives me.
  RankGroup(UcxSession& session, std::vector<int> session_ranks, uint32_t group_idx);

  int rank() const { return rank_; }
  int num_ranks() const { return static_cast<int>(session_ranks_.size()); }
  int session_rank(int rank) const { return session_ranks_[static_cast<size_t>(rank)]; }

  /// Ranks make the same calls in the same order, so a number tells calls apart.
  MessageTag begin_call(MessageKind kind) { return {kind, num_calls_++}; }

  PendingMessage post_send(std::span<const std::byte> bytes, int to_rank, MessageTag tag);
  PendingMessage post_receive(std::span<std::byte> bytes, int from_rank, MessageTag tag);
  void wait(PendingMessage& message) { session_.wait(message); }
  void wait_all(std::span<PendingMessage> messages) { session_.wait_all(messages); }

  /// Posts bytes in messages of a few MiB, each of which resets the silence clock; no bytes are one
  /// empty message.
  void post_sends(std::vector<PendingMessage>& pending,
                  std::span<const std::byte> bytes,
                  int to_rank,
                  MessageTag tag);
  void post_receives(std::vector<PendingMessage>& pending,
                     std::span<std::byte> bytes,
                     int from_rank,
                     MessageTag tag);

  /// Every rank gives as many bytes; the result has them in rank order.
  std::vector<std::byte> all_gather(std::span<const std::byte> bytes);

 private:
  uint64_t session_tag(MessageTag tag) const;

  UcxSession& session_;  // outlives me
  const std::vector<int> session_ranks_;
  const uint32_t group_idx_;
  int rank_ = 0;
  uint64_t num_calls_ = 0;
};

}  // namespace pelago::chips
