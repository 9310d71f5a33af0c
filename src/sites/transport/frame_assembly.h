// Puts the chunks of one peer together, from whichever of its streams they come, and hands whole
// frames out in order. This is the door for everything that comes from another site: nothing is
// believed, and no memory is taken, before it was checked. Chunks that came before, of this session
// or an older one, are dropped and counted: a replay changes nothing.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "sites/transport/transport.h"

namespace pelago::sites {

/// All chunks but the last of a frame have this many payload bytes: 50 ms of a 20 Mbit/s line.
inline constexpr uint64_t kChunkBytes = 128 << 10;
/// Frames of a session that may be in flight beyond the oldest that is not whole, and their bytes.
inline constexpr uint64_t kFramesAheadMax = 64;
inline constexpr int64_t kBytesAheadMax = 16 << 20;

/// A session's number begins with the number of its sender's start. Each start has an assembly of
/// its own: of two processes under one name, a coordinator and the one that has taken over from it,
/// neither makes what the other sends look like a replay.
inline constexpr unsigned kStartShift = 32;

/// A part of a frame. kind and head count only at offset 0.
struct FrameChunk {
  uint64_t session = 0;
  uint64_t frame = 0;
  uint32_t kind = 0;
  std::string_view head = {};
  uint64_t frame_payload_bytes = 0;
  uint64_t offset = 0;
  std::string_view payload = {};
  uint64_t oldest = 0;  // frames before it have arrived: where a new receiver begins
  uint64_t checksum = 0;
};

/// Over everything in the chunk but the checksum, so that no part can stand in another's place.
uint64_t checksum_of(const FrameChunk& chunk);

class FrameAssembly {
 public:
  /// frame_bytes_max: larger frames are refused before memory is taken.
  FrameAssembly(std::string peer, int64_t frame_bytes_max)
      : peer_(std::move(peer)), frame_bytes_max_(frame_bytes_max) {}

  /// The frames that are whole with this chunk, in order; or why its stream must be refused.
  Result<std::vector<Frame>> add(const FrameChunk& chunk);
  /// Chunks that had come before.
  int64_t num_repeated() const { return num_repeated_; }

 private:
  struct Partial {
    Frame frame;
    std::vector<bool> has_chunk;
    size_t num_missing = 0;
  };

  std::optional<Error> refuse(const FrameChunk& chunk) const;
  bool is_known_session(const FrameChunk& chunk);
  Partial& partial_of(const FrameChunk& chunk);

  std::string peer_;
  int64_t frame_bytes_max_;
  std::deque<uint64_t> sessions_;  // newest last; the last one counts
  uint64_t next_frame_ = 0;        // the oldest that was not handed out
  std::map<uint64_t, Partial> partials_;
  int64_t partial_bytes_ = 0;
  int64_t num_repeated_ = 0;
};

}  // namespace pelago::sites
