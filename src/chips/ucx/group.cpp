#include "chips/ucx/group.h"

#include <algorithm>

#include "base/error.h"

namespace pelago::chips {
namespace {

constexpr size_t kMessageBytes = 4 << 20;

// A tag has 48 bits for us: 4 of the kind, 12 of the group, 32 of the number.
constexpr int kKindShift = 44;
constexpr int kGroupShift = 32;
constexpr uint64_t kNumberMask = (uint64_t{1} << kGroupShift) - 1;

}  // namespace

RankGroup::RankGroup(UcxSession& session, std::vector<int> session_ranks, uint32_t group_idx)
    : session_(session), session_ranks_(std::move(session_ranks)), group_idx_(group_idx) {
  const auto own = std::ranges::find(session_ranks_, session.rank());
  PELAGO_ASSERT(own != session_ranks_.end(), "a group is opened by its own ranks");
  PELAGO_ASSERT(group_idx <= kGroupIdxMax, "the number of a group has 12 bits");
  rank_ = static_cast<int>(own - session_ranks_.begin());
}

uint64_t RankGroup::session_tag(MessageTag tag) const {
  return (static_cast<uint64_t>(tag.kind) << kKindShift) |
         (static_cast<uint64_t>(group_idx_) << kGroupShift) | (tag.number & kNumberMask);
}

PendingMessage RankGroup::post_send(std::span<const std::byte> bytes, int to_rank, MessageTag tag) {
  return session_.post_send(bytes, session_rank(to_rank), session_tag(tag));
}

PendingMessage RankGroup::post_receive(std::span<std::byte> bytes, int from_rank, MessageTag tag) {
  return session_.post_receive(bytes, session_rank(from_rank), session_tag(tag));
}

void RankGroup::post_sends(std::vector<PendingMessage>& pending,
                           std::span<const std::byte> bytes,
                           int to_rank,
                           MessageTag tag) {
  do {
    const size_t num_bytes = std::min(bytes.size(), kMessageBytes);
    pending.push_back(post_send(bytes.first(num_bytes), to_rank, tag));
    bytes = bytes.subspan(num_bytes);
  } while (!bytes.empty());
}

void RankGroup::post_receives(std::vector<PendingMessage>& pending,
                              std::span<std::byte> bytes,
                              int from_rank,
                              MessageTag tag) {
  do {
    const size_t num_bytes = std::min(bytes.size(), kMessageBytes);
    pending.push_back(post_receive(bytes.first(num_bytes), from_rank, tag));
    bytes = bytes.subspan(num_bytes);
  } while (!bytes.empty());
}

std::vector<std::byte> RankGroup::all_gather(std::span<const std::byte> bytes) {
  const MessageTag tag = begin_call(MessageKind::kGather);
  std::vector<std::byte> gathered(bytes.size() * static_cast<size_t>(num_ranks()));
  std::vector<PendingMessage> pending;
  for (int peer = 0; peer < num_ranks(); ++peer) {
    const auto place =
        std::span(gathered).subspan(static_cast<size_t>(peer) * bytes.size(), bytes.size());
    if (peer == rank()) {
      std::copy(bytes.begin(), bytes.end(), place.begin());
    } else {
      post_receives(pending, place, peer, tag);
    }
  }
  for (int peer = 0; peer < num_ranks(); ++peer) {
    if (peer != rank()) post_sends(pending, bytes, peer, tag);
  }
  wait_all(pending);
  return gathered;
}

}  // namespace pelago::chips
