// Sums over ranks, as reduce-scatter and all-gather in one pipeline.
//
// Rank r owns slice r of the vector. Every other rank sends it that slice in chunks; r adds chunk c
// of all ranks in the order 0, 1, 2..., and sends the sum straight on to everybody. So each chunk
// is added once, in one place, in one order: the result has the same bits everywhere. Bytes a rank
// sends: 2(R-1)/R of the vector, the least there is.
//
// Flow control needs no messages of its own: when chunk c of the sum comes back from its owner, the
// owner has used our part of chunk c, and chunk c + kWindowChunks may be sent. So at most
// kWindowChunks a peer wait in the scratch memory, whatever the vector's length.
//
// Short vectors are gathered whole and every rank adds them itself, in rank order again: one way
// instead of two.
#include "chips/ucx/ucx_collective.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "base/error.h"
#include "chips/ucx/session.h"

namespace pelago::chips {
namespace {

constexpr size_t kChunkBytes = 256 << 10;       // fits the second-level cache with its partner
constexpr size_t kWindowChunks = 4;             // two under way, one being added, one to spare
constexpr size_t kLagChunks = 2;                // how far the returning sums may trail the adding
constexpr size_t kGatherWholeBytes = 16 << 10;  // below it, latency costs more than bytes
constexpr size_t kMessageBytes = 4 << 20;       // of plain bytes: each one resets the silence clock

/// What a message is; stands above the number of the call in its tag.
enum class Kind : uint64_t { kPart = 1, kSum = 2, kGather = 3, kBroadcast = 4, kDirect = 5 };

constexpr int kKindShift = 44;
constexpr uint64_t kCallMask = (uint64_t{1} << kKindShift) - 1;

uint64_t tag_of(Kind kind, uint64_t call) {
  return (static_cast<uint64_t>(kind) << kKindShift) | (call & kCallMask);
}

/// out[i] = parts[0][i] + parts[1][i] + ...; out may be one of the parts.
template <typename T>
void sum_in_rank_order(std::span<const T* const> parts, T* out, size_t num_values) {
  constexpr size_t kBlock = 1024;  // a block of partial sums stays in the first-level cache
  std::array<T, kBlock> sums;
  size_t start = 0;
  for (; start + kBlock <= num_values; start += kBlock) {
    std::memcpy(sums.data(), parts[0] + start, kBlock * sizeof(T));
    for (const T* part : parts.subspan(1)) {
      for (size_t i = 0; i < kBlock; ++i) sums[i] += part[start + i];
    }
    std::memcpy(out + start, sums.data(), kBlock * sizeof(T));
  }
  for (; start < num_values; ++start) {
    T sum = parts[0][start];
    for (const T* part : parts.subspan(1)) sum += part[start];
    out[start] = sum;
  }
}

/// The values [first, first + count) of a vector.
struct Range {
  size_t first = 0;
  size_t count = 0;
};

/// Slice slice_idx of num_values cut into num_slices whose lengths differ by at most one.
Range slice_of(size_t num_values, size_t num_slices, size_t slice_idx) {
  const size_t shortest = num_values / num_slices;
  const size_t num_longer = num_values % num_slices;
  return {.first = slice_idx * shortest + std::min(slice_idx, num_longer),
          .count = shortest + (slice_idx < num_longer ? 1 : 0)};
}

/// One all_reduce_sum under way: the pipeline that the head of this file tells of.
template <typename T>
class SlicedSum {
 public:
  SlicedSum(UcxSession& session,
            std::vector<std::byte>& scratch,
            std::span<T> values,
            uint64_t call)
      : session_(session),
        scratch_(scratch),
        values_(values),
        call_(call),
        rank_(static_cast<size_t>(session.rank())),
        num_ranks_(static_cast<size_t>(session.num_ranks())) {
    for (size_t r = 0; r < num_ranks_; ++r)
      slices_.push_back(slice_of(values.size(), num_ranks_, r));
    num_chunks_ = (slices_[0].count + kChunkValues - 1) / kChunkValues;  // the first is the longest
    if (scratch_.size() < num_ranks_ * kWindowChunks * kChunkBytes) {
      scratch_.resize(num_ranks_ * kWindowChunks * kChunkBytes);
    }
    parts_to_come_.resize(num_ranks_ * kWindowChunks);
    sums_to_come_.resize(num_ranks_ * kWindowChunks);
  }

  void run() {
    for (size_t c = 0; c < std::min(kWindowChunks, num_chunks_); ++c) {
      expect_parts(c);
      exchange(c);
    }
    for (size_t c = 0; c < num_chunks_; ++c) {
      add_and_send(c);
      if (c >= kLagChunks) take_sums(c - kLagChunks);
    }
    for (size_t c = num_chunks_ - std::min(kLagChunks, num_chunks_); c < num_chunks_; ++c) {
      take_sums(c);
    }
    session_.wait_all(sends_);
  }

 private:
  static constexpr size_t kChunkValues = kChunkBytes / sizeof(T);

  /// Chunk c of a rank's slice; empty past its end.
  std::span<T> chunk(size_t owner, size_t c) const {
    const Range slice = slices_[owner];
    const size_t first = std::min(c * kChunkValues, slice.count);
    return values_.subspan(slice.first + first, std::min(kChunkValues, slice.count - first));
  }
  T* scratch_for(size_t peer, size_t c) const {
    return reinterpret_cast<T*>(scratch_.data() +
                                (peer * kWindowChunks + c % kWindowChunks) * kChunkBytes);
  }
  static size_t slot(size_t peer, size_t c) { return peer * kWindowChunks + c % kWindowChunks; }

  /// Makes room for everybody's part of chunk c of our own slice.
  void expect_parts(size_t c) {
    const size_t count = chunk(rank_, c).size();
    if (count == 0) return;
    for_each_peer([&](size_t peer) {
      const std::span<T> place(scratch_for(peer, c), count);
      parts_to_come_[slot(peer, c)] = session_.post_receive(
          std::as_writable_bytes(place), static_cast<int>(peer), tag_of(Kind::kPart, call_));
    });
  }

  /// Sends every owner our part of its chunk c, and makes room there for the sum that comes back.
  void exchange(size_t c) {
    for_each_peer([&](size_t peer) {
      const std::span<T> part = chunk(peer, c);
      if (part.empty()) return;
      sums_to_come_[slot(peer, c)] = session_.post_receive(
          std::as_writable_bytes(part), static_cast<int>(peer), tag_of(Kind::kSum, call_));
      sends_.push_back(session_.post_send(
          std::as_bytes(part), static_cast<int>(peer), tag_of(Kind::kPart, call_)));
    });
  }

  void add_and_send(size_t c) {
    const std::span<T> own = chunk(rank_, c);
    if (own.empty()) return;
    std::vector<const T*> parts(num_ranks_, own.data());
    for_each_peer([&](size_t peer) {
      session_.wait(parts_to_come_[slot(peer, c)]);
      parts[peer] = scratch_for(peer, c);
    });
    sum_in_rank_order<T>(parts, own.data(), own.size());
    for_each_peer([&](size_t peer) {
      sends_.push_back(session_.post_send(
          std::as_bytes(own), static_cast<int>(peer), tag_of(Kind::kSum, call_)));
    });
    if (c + kWindowChunks < num_chunks_) expect_parts(c + kWindowChunks);
  }

  void take_sums(size_t c) {
    for_each_peer([&](size_t peer) {
      if (!chunk(peer, c).empty()) session_.wait(sums_to_come_[slot(peer, c)]);
    });
    if (c + kWindowChunks < num_chunks_) exchange(c + kWindowChunks);
  }

  template <typename Visit>
  void for_each_peer(Visit visit) const {
    for (size_t peer = 0; peer < num_ranks_; ++peer) {
      if (peer != rank_) visit(peer);
    }
  }

  UcxSession& session_;              // outlives me
  std::vector<std::byte>& scratch_;  // outlives me; [R, kWindowChunks, kChunkBytes]
  std::span<T> values_;              // [N]
  const uint64_t call_;
  const size_t rank_, num_ranks_;
  size_t num_chunks_ = 0;                                     // of the longest slice
  std::vector<Range> slices_;                                 // by owner
  std::vector<PendingMessage> parts_to_come_, sums_to_come_;  // by slot()
  std::vector<PendingMessage> sends_;
};

class UcxCollective final : public Collective {
 public:
  explicit UcxCollective(const CollectiveOptions& options) : session_(options) { barrier(); }

  int rank() const override { return session_.rank(); }
  int num_ranks() const override { return session_.num_ranks(); }
  void all_reduce_sum(std::span<float> values) override { sum(values); }
  void all_reduce_sum(std::span<double> values) override { sum(values); }
  void all_reduce_max(std::span<double> values) override;
  void broadcast(std::span<std::byte> bytes, int from_rank) override;
  std::vector<std::byte> all_gather(std::span<const std::byte> bytes) override;
  void send(std::span<const std::byte> bytes, int to_rank, uint32_t tag) override;
  void receive(std::span<std::byte> bytes, int from_rank, uint32_t tag) override;
  void barrier() override { all_gather(std::array<std::byte, 1>{}); }

 private:
  template <typename T>
  void sum(std::span<T> values);
  /// Posts bytes in messages of kMessageBytes; no bytes are one empty message.
  void post_sends(std::vector<PendingMessage>& pending,
                  std::span<const std::byte> bytes,
                  int to_rank,
                  uint64_t tag);
  void post_receives(std::vector<PendingMessage>& pending,
                     std::span<std::byte> bytes,
                     int from_rank,
                     uint64_t tag);

  UcxSession session_;
  std::vector<std::byte> scratch_;
  uint64_t num_calls_ = 0;  // ranks make the same calls in the same order, so it tells calls apart
};

template <typename T>
void UcxCollective::sum(std::span<T> values) {
  if (values.empty()) return;
  if (values.size_bytes() > kGatherWholeBytes) {
    SlicedSum<T>(session_, scratch_, values, num_calls_++).run();
    return;
  }
  const std::vector<std::byte> gathered = all_gather(std::as_bytes(values));
  std::vector<const T*> parts;
  for (size_t r = 0; r < static_cast<size_t>(num_ranks()); ++r) {
    parts.push_back(reinterpret_cast<const T*>(gathered.data() + r * values.size_bytes()));
  }
  sum_in_rank_order<T>(parts, values.data(), values.size());
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
  const uint64_t tag = tag_of(Kind::kBroadcast, num_calls_++);
  std::vector<PendingMessage> pending;
  if (rank() == from_rank) {
    for (int peer = 0; peer < num_ranks(); ++peer) {
      if (peer != rank()) post_sends(pending, bytes, peer, tag);
    }
  } else {
    post_receives(pending, bytes, from_rank, tag);
  }
  session_.wait_all(pending);
}

std::vector<std::byte> UcxCollective::all_gather(std::span<const std::byte> bytes) {
  const uint64_t tag = tag_of(Kind::kGather, num_calls_++);
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
  session_.wait_all(pending);
  return gathered;
}

void UcxCollective::send(std::span<const std::byte> bytes, int to_rank, uint32_t tag) {
  std::vector<PendingMessage> pending;
  post_sends(pending, bytes, to_rank, tag_of(Kind::kDirect, tag));
  session_.wait_all(pending);
}

void UcxCollective::receive(std::span<std::byte> bytes, int from_rank, uint32_t tag) {
  std::vector<PendingMessage> pending;
  post_receives(pending, bytes, from_rank, tag_of(Kind::kDirect, tag));
  session_.wait_all(pending);
}

void UcxCollective::post_sends(std::vector<PendingMessage>& pending,
                               std::span<const std::byte> bytes,
                               int to_rank,
                               uint64_t tag) {
  do {
    const size_t num_bytes = std::min(bytes.size(), kMessageBytes);
    pending.push_back(session_.post_send(bytes.first(num_bytes), to_rank, tag));
    bytes = bytes.subspan(num_bytes);
  } while (!bytes.empty());
}

void UcxCollective::post_receives(std::vector<PendingMessage>& pending,
                                  std::span<std::byte> bytes,
                                  int from_rank,
                                  uint64_t tag) {
  do {
    const size_t num_bytes = std::min(bytes.size(), kMessageBytes);
    pending.push_back(session_.post_receive(bytes.first(num_bytes), from_rank, tag));
    bytes = bytes.subspan(num_bytes);
  } while (!bytes.empty());
}

}  // namespace

std::unique_ptr<Collective> open_ucx_collective(const CollectiveOptions& options) {
  return std::make_unique<UcxCollective>(options);
}

}  // namespace pelago::chips
