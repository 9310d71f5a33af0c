// The collective over UCX: calls become messages of a group of ranks; sums are in sums/. Tensors of
// a device pass through host memory: they are copied out when their own work is done, and later
// work waits for the copies in, while the device goes on with the rest.
#include "chips/ucx/ucx_collective.h"

#include <algorithm>
#include <array>
#include <deque>
#include <numeric>

#include "base/clock.h"
#include "base/error.h"
#include "chips/collectives/alone.h"
#include "chips/torch.h"
#include "chips/ucx/group.h"
#include "chips/ucx/sums/sliced_sum.h"

namespace pelago::chips {
namespace {

// A long tensor goes in pieces, so that one is copied out while another is summed and a third is
// copied in. At 25 GB/s a piece takes 170 us, far above what starting a copy costs.
constexpr int64_t kPieceBytes = 4 << 20;
constexpr size_t kCopiesAhead = 3;  // bounds the host memory of a sum

/// What all groups of a session share; owned by the collective that opened the session.
struct Shared {
  explicit Shared(const CollectiveOptions& options) : session(options), device(options.device) {}

  UcxSession session;
  Device* device;                  // outlives me; null: tensors are the CPU's
  std::vector<std::byte> scratch;  // of sums
  uint32_t next_group_idx = 1;     // no group of this rank has it or a higher one
};

/// Tells the device, on leaving, that the host waited for other ranks.
class HostWait {
 public:
  explicit HostWait(Device* device) : device_(device), begin_s_(steady_now_s()) {}
  HostWait(const HostWait&) = delete;
  HostWait& operator=(const HostWait&) = delete;
  ~HostWait() {
    if (device_ != nullptr) device_->note_host_wait(begin_s_, steady_now_s());
  }

 private:
  Device* device_;
  double begin_s_;
};

std::span<std::byte> bytes_of(const Tensor& tensor) {
  return {static_cast<std::byte*>(tensor.data_ptr()), static_cast<size_t>(tensor.nbytes())};
}

HostValues values_of(const Tensor& host) {
  return {.data = host.data_ptr(), .dtype = host.scalar_type(), .num_values = host.numel()};
}

/// A view [N] of a contiguous tensor's values, outside autograd.
Tensor flat_view(const Tensor& tensor) {
  PELAGO_ASSERT(tensor.is_contiguous(), "ranks exchange tensors as they lie in memory");
  return tensor.detach().view({-1});
}

class UcxCollective final : public Collective {
 public:
  explicit UcxCollective(const CollectiveOptions& options)
      : own_shared_(std::make_unique<Shared>(options)),
        shared_(*own_shared_),
        group_(shared_.session, all_ranks(options.num_ranks), /*group_idx=*/0) {
    barrier();
  }
  UcxCollective(Shared& shared, std::vector<int> session_ranks, uint32_t group_idx)
      : shared_(shared), group_(shared.session, std::move(session_ranks), group_idx) {}

  int rank() const override { return group_.rank(); }
  int num_ranks() const override { return group_.num_ranks(); }
  void all_reduce_sum(std::span<float> values) override;
  void all_reduce_sum(std::span<double> values) override;
  void all_reduce_max(std::span<double> values) override;
  void broadcast(std::span<std::byte> bytes, int from_rank) override;
  std::vector<std::byte> all_gather(std::span<const std::byte> bytes) override;
  void send(std::span<const std::byte> bytes, int to_rank, uint32_t tag) override;
  void receive(std::span<std::byte> bytes, int from_rank, uint32_t tag) override;
  void barrier() override { all_gather(std::array<std::byte, 1>{}); }

  std::unique_ptr<Collective> group(const std::vector<int>& ranks) override;
  void all_reduce_sum(Tensor& tensor, const WorkMark& after) override;
  void reduce_scatter_sum(Tensor& tensor, const WorkMark& after) override;
  void all_gather_slices(Tensor& tensor, const WorkMark& after) override;
  void broadcast(Tensor& tensor, int from_rank) override;

 private:
  static std::vector<int> all_ranks(int num_ranks) {
    std::vector<int> ranks(static_cast<size_t>(num_ranks));
    std::iota(ranks.begin(), ranks.end(), 0);
    return ranks;
  }
  uint32_t agree_on_group_idx(const std::vector<int>& ranks);
  void gather_slices(const Tensor& host);
  std::unique_ptr<HostCopy> start_copy(const Tensor& tensor, const WorkMark& after);
  void sum(const HostValues& values, SumPlace place) {
    sum_over_ranks(group_, shared_.scratch, values, place);
  }
  HostWait host_wait() const { return HostWait(shared_.device); }
  Device& device() const {
    PELAGO_ASSERT(shared_.device != nullptr, "CollectiveOptions name the device of the tensors");
    return *shared_.device;
  }

  std::unique_ptr<Shared> own_shared_;  // null in a group: the collective it came from has it
  Shared& shared_;
  RankGroup group_;
};

void UcxCollective::all_reduce_sum(std::span<float> values) {
  const HostWait wait = host_wait();
  sum({values.data(), at::kFloat, static_cast<int64_t>(values.size())}, SumPlace::kEverywhere);
}

void UcxCollective::all_reduce_sum(std::span<double> values) {
  const HostWait wait = host_wait();
  sum({values.data(), at::kDouble, static_cast<int64_t>(values.size())}, SumPlace::kEverywhere);
}

void UcxCollective::all_reduce_max(std::span<double> values) {
  const std::vector<std::byte> gathered = all_gather(std::as_bytes(values));
  const auto* all = reinterpret_cast<const double*>(gathered.data());  // [R,N]
  for (size_t i = 0; i < values.size(); ++i) {
    for (size_t r = 0; r < static_cast<size_t>(num_ranks()); ++r) {
      values[i] = std::max(values[i], all[r * values.size() + i]);
    }
  }
}

void UcxCollective::broadcast(std::span<std::byte> bytes, int from_rank) {
  const HostWait wait = host_wait();
  const MessageTag tag = group_.begin_call(MessageKind::kBroadcast);
  std::vector<PendingMessage> pending;
  if (rank() == from_rank) {
    for (int peer = 0; peer < num_ranks(); ++peer) {
      if (peer != rank()) group_.post_sends(pending, bytes, peer, tag);
    }
  } else {
    group_.post_receives(pending, bytes, from_rank, tag);
  }
  group_.wait_all(pending);
}

std::vector<std::byte> UcxCollective::all_gather(std::span<const std::byte> bytes) {
  const HostWait wait = host_wait();
  return group_.all_gather(bytes);
}

void UcxCollective::send(std::span<const std::byte> bytes, int to_rank, uint32_t tag) {
  const HostWait wait = host_wait();
  std::vector<PendingMessage> pending;
  group_.post_sends(pending, bytes, to_rank, {MessageKind::kDirect, tag});
  group_.wait_all(pending);
}

void UcxCollective::receive(std::span<std::byte> bytes, int from_rank, uint32_t tag) {
  const HostWait wait = host_wait();
  std::vector<PendingMessage> pending;
  group_.post_receives(pending, bytes, from_rank, {MessageKind::kDirect, tag});
  group_.wait_all(pending);
}

std::unique_ptr<Collective> UcxCollective::group(const std::vector<int>& ranks) {
  std::vector<int> session_ranks;
  for (const int rank_of_group : ranks) {
    PELAGO_ASSERT(rank_of_group >= 0 && rank_of_group < num_ranks(), "groups are of our ranks");
    const int session_rank = group_.session_rank(rank_of_group);
    PELAGO_ASSERT(std::ranges::find(session_ranks, session_rank) == session_ranks.end(),
                  "no rank is twice in a group");
    session_ranks.push_back(session_rank);
  }
  PELAGO_ASSERT(std::ranges::find(ranks, rank()) != ranks.end(), "only its ranks open a group");
  if (ranks.size() == 1) return open_alone_collective();
  const uint32_t group_idx = agree_on_group_idx(session_ranks);
  shared_.next_group_idx = group_idx + 1;
  return std::make_unique<UcxCollective>(shared_, std::move(session_ranks), group_idx);
}

/// The lowest number that no rank of the new group has used: two groups may have the same one only
/// if no two ranks are in both. The first rank asks the others and tells them.
uint32_t UcxCollective::agree_on_group_idx(const std::vector<int>& ranks) {
  const HostWait wait = host_wait();
  RankGroup members(shared_.session, ranks, /*group_idx=*/0);
  const MessageTag tag{MessageKind::kGroup, 0};
  uint32_t group_idx = shared_.next_group_idx;
  std::vector<PendingMessage> pending;
  const auto bytes = [](uint32_t& value) { return std::as_writable_bytes(std::span(&value, 1)); };
  if (members.rank() == 0) {
    std::vector<uint32_t> wanted(ranks.size(), group_idx);
    for (int peer = 1; peer < members.num_ranks(); ++peer) {
      members.post_receives(pending, bytes(wanted[static_cast<size_t>(peer)]), peer, tag);
    }
    members.wait_all(pending);
    group_idx = *std::ranges::max_element(wanted);
    pending.clear();
    for (int peer = 1; peer < members.num_ranks(); ++peer) {
      members.post_sends(pending, bytes(group_idx), peer, tag);
    }
  } else {
    uint32_t wanted = group_idx;
    members.post_sends(pending, bytes(wanted), 0, tag);
    members.wait_all(pending);
    pending.clear();
    members.post_receives(pending, bytes(group_idx), 0, tag);
  }
  members.wait_all(pending);
  if (group_idx > RankGroup::kGroupIdxMax) {
    fail("a site has at most {} groups of ranks; open fewer", RankGroup::kGroupIdxMax);
  }
  return group_idx;
}

std::unique_ptr<HostCopy> UcxCollective::start_copy(const Tensor& tensor, const WorkMark& after) {
  return device().start_copy_to_host(tensor, after);
}

void UcxCollective::all_reduce_sum(Tensor& tensor, const WorkMark& after) {
  const HostWait wait = host_wait();
  const Tensor flat = flat_view(tensor);  // [N]
  if (flat.is_cpu()) return sum(values_of(flat), SumPlace::kEverywhere);
  const WorkMark mark = after ? after : device().mark();
  const int64_t piece_values = kPieceBytes / static_cast<int64_t>(flat.element_size());
  struct Piece {
    Tensor on_device;
    std::unique_ptr<HostCopy> copy;
  };
  std::deque<Piece> copying;
  const auto finish_first = [&] {
    Piece piece = std::move(copying.front());
    copying.pop_front();
    const Tensor host = piece.copy->wait();
    sum(values_of(host), SumPlace::kEverywhere);
    device().copy_into(piece.on_device, host, steady_now_s());
  };
  for (int64_t begin = 0; begin < flat.numel(); begin += piece_values) {
    const Tensor piece = flat.narrow(0, begin, std::min(piece_values, flat.numel() - begin));
    copying.push_back({piece, start_copy(piece, mark)});
    if (copying.size() == kCopiesAhead) finish_first();
  }
  while (!copying.empty()) finish_first();
}

void UcxCollective::reduce_scatter_sum(Tensor& tensor, const WorkMark& after) {
  const HostWait wait = host_wait();
  const Tensor flat = flat_view(tensor);  // [N]
  if (flat.is_cpu()) return sum(values_of(flat), SumPlace::kOwnSlice);
  const auto copy = start_copy(flat, after ? after : device().mark());
  const Tensor host = copy->wait();  // [N]
  sum(values_of(host), SumPlace::kOwnSlice);
  const Slice own = own_slice(flat.numel());
  Tensor own_values = flat.narrow(0, own.begin, own.end - own.begin);
  device().copy_into(own_values, host.narrow(0, own.begin, own.end - own.begin), steady_now_s());
}

/// host: [N] on the host, of which own_slice(N) is filled.
void UcxCollective::gather_slices(const Tensor& host) {
  const MessageTag tag = group_.begin_call(MessageKind::kGather);
  const size_t value_bytes = host.element_size();
  const auto bytes_of_slice = [&](int owner) {
    const Slice slice = slice_of(host.numel(), num_ranks(), owner);
    return bytes_of(host).subspan(static_cast<size_t>(slice.begin) * value_bytes,
                                  static_cast<size_t>(slice.end - slice.begin) * value_bytes);
  };
  std::vector<PendingMessage> pending;
  for (int peer = 0; peer < num_ranks(); ++peer) {
    if (peer != rank()) group_.post_receives(pending, bytes_of_slice(peer), peer, tag);
  }
  for (int peer = 0; peer < num_ranks(); ++peer) {
    if (peer != rank()) group_.post_sends(pending, bytes_of_slice(rank()), peer, tag);
  }
  group_.wait_all(pending);
}

void UcxCollective::all_gather_slices(Tensor& tensor, const WorkMark& after) {
  const HostWait wait = host_wait();
  const Tensor flat = flat_view(tensor);  // [N]
  if (flat.is_cpu()) return gather_slices(flat);
  const Slice own = own_slice(flat.numel());
  const auto copy =
      start_copy(flat.narrow(0, own.begin, own.end - own.begin), after ? after : device().mark());
  const Tensor host = device().make_host_tensor(flat.sizes(), flat.scalar_type());  // [N]
  host.narrow(0, own.begin, own.end - own.begin).copy_(copy->wait());
  gather_slices(host);
  const double arrived_s = steady_now_s();
  for (const Slice other : {Slice{0, own.begin}, Slice{own.end, flat.numel()}}) {
    if (other.begin == other.end) continue;
    Tensor place = flat.narrow(0, other.begin, other.end - other.begin);
    device().copy_into(place, host.narrow(0, other.begin, other.end - other.begin), arrived_s);
  }
}

void UcxCollective::broadcast(Tensor& tensor, int from_rank) {
  Tensor flat = flat_view(tensor);  // [N]
  if (flat.is_cpu()) return broadcast(bytes_of(flat), from_rank);
  if (rank() == from_rank) {
    broadcast(bytes_of(start_copy(flat, device().mark())->wait()), from_rank);
    return;
  }
  const Tensor host = device().make_host_tensor(flat.sizes(), flat.scalar_type());  // [N]
  broadcast(bytes_of(host), from_rank);
  device().copy_into(flat, host, steady_now_s());
}

}  // namespace

std::unique_ptr<Collective> open_ucx_collective(const CollectiveOptions& options) {
  return std::make_unique<UcxCollective>(options);
}

}  // namespace pelago::chips
