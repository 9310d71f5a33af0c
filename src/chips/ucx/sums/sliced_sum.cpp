// Sums over ranks, as reduce-scatter and all-gather in one pipeline.
//
// Rank r owns slice r of the vector. Every other rank sends it that slice in chunks; r adds chunk c
// of all ranks in the order 0, 1, 2..., and sends the sum straight on to everybody. So each chunk
// is added once, in one place, in one order: the result has the same bits everywhere. Bytes a rank
// sends: 2(R-1)/R of the vector, the least there is. Where every rank wants its own slice only, an
// empty message goes back instead of the sum.
//
// Flow control needs no messages of its own: when the answer to chunk c comes back from its owner,
// the owner has used our part of chunk c, and chunk c + kWindowChunks may be sent. So at most
// kWindowChunks a peer wait in the scratch memory, whatever the vector's length.
//
// Short vectors are gathered whole and every rank adds them itself, in rank order again: one way
// instead of two.
#include "chips/ucx/sums/sliced_sum.h"

#include <algorithm>

#include "base/error.h"
#include "chips/collective.h"
#include "chips/ucx/sums/rank_order.h"

namespace pelago::chips {
namespace {

constexpr size_t kChunkBytes = 256 << 10;       // fits the second-level cache with its partner
constexpr size_t kWindowChunks = 4;             // two under way, one being added, one to spare
constexpr size_t kLagChunks = 2;                // how far the answers may trail the adding
constexpr size_t kGatherWholeBytes = 16 << 10;  // below it, latency costs more than bytes

/// One sum under way: the pipeline that the head of this file tells of.
template <typename T>
class SlicedSum {
 public:
  SlicedSum(RankGroup& group,
            std::vector<std::byte>& scratch,
            std::span<T> values,
            SumPlace sum_place)
      : group_(group),
        scratch_(scratch),
        values_(values),
        sum_place_(sum_place),
        part_tag_(group.begin_call(MessageKind::kPart)),
        sum_tag_{MessageKind::kSum, part_tag_.number},
        rank_(static_cast<size_t>(group.rank())),
        num_ranks_(static_cast<size_t>(group.num_ranks())) {
    const size_t longest = slice(0).size();
    num_chunks_ = (longest + kChunkValues - 1) / kChunkValues;
    scratch_.resize(std::max(scratch_.size(), num_ranks_ * kWindowChunks * kChunkBytes));
    parts_to_come_.resize(num_ranks_ * kWindowChunks);
    answers_to_come_.resize(num_ranks_ * kWindowChunks);
  }

  void run() {
    for (size_t c = 0; c < std::min(kWindowChunks, num_chunks_); ++c) {
      expect_parts(c);
      exchange(c);
    }
    for (size_t c = 0; c < num_chunks_; ++c) {
      add_and_answer(c);
      if (c >= kLagChunks) take_answers(c - kLagChunks);
    }
    for (size_t c = num_chunks_ - std::min(kLagChunks, num_chunks_); c < num_chunks_; ++c) {
      take_answers(c);
    }
    group_.wait_all(sends_);
  }

 private:
  static constexpr size_t kChunkValues = kChunkBytes / sizeof(T);

  std::span<T> slice(size_t owner) const {
    const Collective::Slice range = Collective::slice_of(static_cast<int64_t>(values_.size()),
                                                         static_cast<int>(num_ranks_),
                                                         static_cast<int>(owner));
    return values_.subspan(static_cast<size_t>(range.begin),
                           static_cast<size_t>(range.end - range.begin));
  }
  /// Chunk c of a rank's slice; empty past its end.
  std::span<T> chunk(size_t owner, size_t c) const {
    const std::span<T> all = slice(owner);
    const size_t first = std::min(c * kChunkValues, all.size());
    return all.subspan(first, std::min(kChunkValues, all.size() - first));
  }
  /// What comes back for a chunk: its sum, or nothing but the message.
  std::span<T> answer(std::span<T> summed) const {
    return sum_place_ == SumPlace::kEverywhere ? summed : summed.first(0);
  }
  T* scratch_for(size_t peer, size_t c) const {
    return reinterpret_cast<T*>(scratch_.data() + slot(peer, c) * kChunkBytes);
  }
  static size_t slot(size_t peer, size_t c) { return peer * kWindowChunks + c % kWindowChunks; }

  /// Makes room for everybody's part of chunk c of our own slice.
  void expect_parts(size_t c) {
    const size_t count = chunk(rank_, c).size();
    if (count == 0) return;
    for_each_peer([&](size_t peer) {
      const std::span<T> place(scratch_for(peer, c), count);
      parts_to_come_[slot(peer, c)] =
          group_.post_receive(std::as_writable_bytes(place), static_cast<int>(peer), part_tag_);
    });
  }

  /// Sends every owner our part of its chunk c, and makes room there for the answer.
  void exchange(size_t c) {
    for_each_peer([&](size_t peer) {
      const std::span<T> part = chunk(peer, c);
      if (part.empty()) return;
      answers_to_come_[slot(peer, c)] = group_.post_receive(
          std::as_writable_bytes(answer(part)), static_cast<int>(peer), sum_tag_);
      sends_.push_back(group_.post_send(std::as_bytes(part), static_cast<int>(peer), part_tag_));
    });
  }

  void add_and_answer(size_t c) {
    const std::span<T> own = chunk(rank_, c);
    if (own.empty()) return;
    std::vector<const T*> parts(num_ranks_, own.data());
    for_each_peer([&](size_t peer) {
      group_.wait(parts_to_come_[slot(peer, c)]);
      parts[peer] = scratch_for(peer, c);
    });
    sum_in_rank_order<T>(parts, own.data(), own.size());
    for_each_peer([&](size_t peer) {
      sends_.push_back(
          group_.post_send(std::as_bytes(answer(own)), static_cast<int>(peer), sum_tag_));
    });
    if (c + kWindowChunks < num_chunks_) expect_parts(c + kWindowChunks);
  }

  void take_answers(size_t c) {
    for_each_peer([&](size_t peer) {
      if (!chunk(peer, c).empty()) group_.wait(answers_to_come_[slot(peer, c)]);
    });
    if (c + kWindowChunks < num_chunks_) exchange(c + kWindowChunks);
  }

  template <typename Visit>
  void for_each_peer(Visit visit) const {
    for (size_t peer = 0; peer < num_ranks_; ++peer) {
      if (peer != rank_) visit(peer);
    }
  }

  RankGroup& group_;                 // outlives me
  std::vector<std::byte>& scratch_;  // outlives me; [R, kWindowChunks, kChunkBytes]
  std::span<T> values_;              // [N]
  const SumPlace sum_place_;
  const MessageTag part_tag_, sum_tag_;
  const size_t rank_, num_ranks_;
  size_t num_chunks_ = 0;                                        // of the longest slice
  std::vector<PendingMessage> parts_to_come_, answers_to_come_;  // by slot()
  std::vector<PendingMessage> sends_;
};

template <typename T>
void sum_typed(RankGroup& group,
               std::vector<std::byte>& scratch,
               std::span<T> values,
               SumPlace place) {
  if (values.empty()) return;
  if (values.size_bytes() > kGatherWholeBytes) {
    SlicedSum<T>(group, scratch, values, place).run();
    return;
  }
  const std::vector<std::byte> gathered = group.all_gather(std::as_bytes(values));
  const auto num_values = static_cast<int64_t>(values.size());
  const Collective::Slice wanted =
      place == SumPlace::kEverywhere
          ? Collective::Slice{.begin = 0, .end = num_values}
          : Collective::slice_of(num_values, group.num_ranks(), group.rank());
  std::vector<const T*> parts;
  for (size_t r = 0; r < static_cast<size_t>(group.num_ranks()); ++r) {
    parts.push_back(reinterpret_cast<const T*>(gathered.data() + r * values.size_bytes()) +
                    wanted.begin);
  }
  sum_in_rank_order<T>(
      parts, values.data() + wanted.begin, static_cast<size_t>(wanted.end - wanted.begin));
}

}  // namespace

void sum_over_ranks(RankGroup& group,
                    std::vector<std::byte>& scratch,
                    const HostValues& values,
                    SumPlace place) {
  const auto sum = [&]<typename T>(T* data) {
    sum_typed<T>(group, scratch, {data, static_cast<size_t>(values.num_values)}, place);
  };
  switch (values.dtype) {
    case c10::ScalarType::Float:
      return sum(static_cast<float*>(values.data));
    case c10::ScalarType::Double:
      return sum(static_cast<double*>(values.data));
    case c10::ScalarType::BFloat16:
      return sum(static_cast<c10::BFloat16*>(values.data));
    case c10::ScalarType::Half:
      return sum(static_cast<c10::Half*>(values.data));
    default:
      TORCH_CHECK(false, "ranks sum f32, f64, bf16 and fp16, not ", values.dtype);
  }
}

}  // namespace pelago::chips
