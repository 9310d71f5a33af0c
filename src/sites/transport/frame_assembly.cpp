#include "sites/transport/frame_assembly.h"

#include <xxhash.h>

#include <algorithm>
#include <array>
#include <utility>

namespace pelago::sites {

namespace {

// A peer that started again so often within one connection's memory is not healthy anyway.
constexpr size_t kSessionsKept = 64;

uint64_t num_chunks(uint64_t payload_bytes) {
  return std::max<uint64_t>(1, (payload_bytes + kChunkBytes - 1) / kChunkBytes);
}

}  // namespace

uint64_t checksum_of(const FrameChunk& chunk) {
  const std::array<uint64_t, 6> place{chunk.session,
                                      chunk.frame,
                                      chunk.kind,
                                      chunk.frame_payload_bytes,
                                      chunk.offset,
                                      chunk.oldest};
  const uint64_t head =
      XXH3_64bits_withSeed(chunk.head.data(),
                           chunk.head.size(),
                           XXH3_64bits(place.data(), place.size() * sizeof(uint64_t)));
  return XXH3_64bits_withSeed(chunk.payload.data(), chunk.payload.size(), head);
}

Result<std::vector<Frame>> FrameAssembly::add(const FrameChunk& chunk) {
  if (chunk.checksum != checksum_of(chunk)) {
    return Error{ErrorCode::kCorrupt,
                 fmt::format("a chunk of frame {} with a wrong checksum", chunk.frame)};
  }
  if (is_known_session(chunk) && (chunk.session != sessions_.back() || chunk.frame < next_frame_)) {
    ++num_repeated_;
    return std::vector<Frame>();
  }
  if (const auto refusal = refuse(chunk)) return *refusal;
  Partial& partial = partial_of(chunk);
  const size_t chunk_idx = static_cast<size_t>(chunk.offset / kChunkBytes);
  if (partial.has_chunk[chunk_idx]) {
    ++num_repeated_;
    return std::vector<Frame>();
  }
  if (chunk.offset == 0) {
    partial.frame.kind = chunk.kind;
    partial.frame.head = std::string(chunk.head);
  }
  partial.has_chunk[chunk_idx] = true;
  --partial.num_missing;
  std::copy(chunk.payload.begin(),
            chunk.payload.end(),
            partial.frame.payload.begin() + static_cast<std::ptrdiff_t>(chunk.offset));
  std::vector<Frame> whole;
  for (auto next = partials_.begin();
       next != partials_.end() && next->first == next_frame_ && next->second.num_missing == 0;
       next = partials_.erase(next)) {
    partial_bytes_ -= static_cast<int64_t>(next->second.frame.payload.size());
    whole.push_back(std::move(next->second.frame));
    ++next_frame_;
  }
  return whole;
}

// A session that was never seen begins anew; what was half there of the last one will not come.
bool FrameAssembly::is_known_session(const FrameChunk& chunk) {
  if (std::find(sessions_.begin(), sessions_.end(), chunk.session) != sessions_.end()) return true;
  sessions_.push_back(chunk.session);
  if (sessions_.size() > kSessionsKept) sessions_.pop_front();
  partials_.clear();
  partial_bytes_ = 0;
  next_frame_ = chunk.oldest;
  return false;
}

std::optional<Error> FrameAssembly::refuse(const FrameChunk& chunk) const {
  if (chunk.frame_payload_bytes > static_cast<uint64_t>(frame_bytes_max_)) {
    return Error{ErrorCode::kRefused,
                 fmt::format("a frame of {} bytes, at most {} are taken",
                             chunk.frame_payload_bytes,
                             frame_bytes_max_)};
  }
  const bool fits =
      chunk.offset % kChunkBytes == 0 &&
      chunk.offset / kChunkBytes < num_chunks(chunk.frame_payload_bytes) &&
      chunk.payload.size() == std::min(kChunkBytes, chunk.frame_payload_bytes - chunk.offset);
  if (!fits) return Error{ErrorCode::kCorrupt, "a frame whose chunks do not add up"};
  const auto partial = partials_.find(chunk.frame);
  if (partial != partials_.end()) {
    if (partial->second.frame.payload.size() == chunk.frame_payload_bytes) return std::nullopt;
    return Error{ErrorCode::kCorrupt, "a frame whose chunks do not agree on its length"};
  }
  const int64_t held_bytes = partial_bytes_ + static_cast<int64_t>(chunk.frame_payload_bytes);
  if (chunk.frame < next_frame_ || chunk.frame - next_frame_ >= kFramesAheadMax ||
      held_bytes > frame_bytes_max_ + kBytesAheadMax) {
    return Error{ErrorCode::kRefused,
                 fmt::format("frame {} while {} is not whole: too far ahead, {} bytes are held",
                             chunk.frame,
                             next_frame_,
                             partial_bytes_)};
  }
  return std::nullopt;
}

FrameAssembly::Partial& FrameAssembly::partial_of(const FrameChunk& chunk) {
  const auto found = partials_.find(chunk.frame);
  if (found != partials_.end()) return found->second;
  Partial& partial = partials_[chunk.frame];
  partial.frame.from = peer_;
  partial.frame.payload.resize(static_cast<size_t>(chunk.frame_payload_bytes));
  partial.num_missing = static_cast<size_t>(num_chunks(chunk.frame_payload_bytes));
  partial.has_chunk.resize(partial.num_missing);
  partial_bytes_ += static_cast<int64_t>(chunk.frame_payload_bytes);
  return partial;
}

}  // namespace pelago::sites
