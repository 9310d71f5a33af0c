// Puts the chunks of one stream together. This is the door for everything that comes from another
// site: nothing is believed, and no memory is taken, before it was checked.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"
#include "sites/transport/transport.h"

namespace pelago::sites {

/// A part of a frame. Only payload and last count in any but the first.
struct FrameChunk {
  std::string_view from;
  uint32_t kind = 0;
  std::string_view head = {};
  uint64_t frame_payload_bytes = 0;
  std::string_view payload = {};
  bool last = false;
};

class FrameAssembly {
 public:
  /// identities: the names in the peer's certificate.
  FrameAssembly(std::vector<std::string> identities, int64_t frame_bytes_max)
      : identities_(std::move(identities)), frame_bytes_max_(frame_bytes_max) {}

  /// A whole frame, nothing yet, or why the stream must be refused.
  Result<std::optional<Frame>> add(const FrameChunk& chunk) {
    if (!frame_) {
      if (const auto refusal = refuse_first(chunk)) return *refusal;
      frame_.emplace(Frame{.from = std::string(chunk.from),
                           .kind = chunk.kind,
                           .head = std::string(chunk.head),
                           .payload = {}});
      num_bytes_ = chunk.frame_payload_bytes;
      frame_->payload.reserve(num_bytes_);
    }
    const size_t here = frame_->payload.size() + chunk.payload.size();
    const bool fits = chunk.last ? here == num_bytes_ : here < num_bytes_ && !chunk.payload.empty();
    if (!fits) return Error{ErrorCode::kCorrupt, "a frame whose chunks do not add up"};
    frame_->payload += chunk.payload;
    if (!chunk.last) return std::optional<Frame>();
    return std::exchange(frame_, std::nullopt);
  }

 private:
  std::optional<Error> refuse_first(const FrameChunk& chunk) const {
    if (std::find(identities_.begin(), identities_.end(), chunk.from) == identities_.end()) {
      return Error{ErrorCode::kRefused,
                   fmt::format("a peer says it is {}, its certificate does not", chunk.from)};
    }
    if (chunk.frame_payload_bytes > static_cast<uint64_t>(frame_bytes_max_)) {
      return Error{ErrorCode::kRefused,
                   fmt::format("a frame of {} bytes, at most {} are taken",
                               chunk.frame_payload_bytes,
                               frame_bytes_max_)};
    }
    return std::nullopt;
  }

  std::vector<std::string> identities_;
  int64_t frame_bytes_max_;
  std::optional<Frame> frame_;
  size_t num_bytes_ = 0;
};

}  // namespace pelago::sites
