// How a site in step that lost its disk comes to the checkpoint that the others go on from, as a
// pure state machine: it asks whoever has it for the manifest, then for the files that the manifest
// names, piece by piece, several pieces under way at once. What does not come is asked for again,
// of the next who has it. Nothing is believed before its hash was checked: the manifest's is in the
// coordinator's word, a file's in the manifest.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "sites/protocol/messages.h"

namespace pelago::sites {

inline constexpr const char* kCheckpointManifest = "manifest.json";
inline constexpr int64_t kCheckpointPieceBytes = 1 << 20;  // 8 ms of a line of 1 Gbit/s

/// Whether it is a name that a file of a checkpoint may have, and no way out of its folder.
bool is_checkpoint_file(const std::string& name);

/// Where the pieces go.
class CheckpointSink {
 public:
  virtual ~CheckpointSink() = default;
  /// Throws Failure if there is no room.
  virtual void write(const std::string& file, int64_t offset, const std::string& bytes) = 0;
  /// All of it is there. Returns what is wrong with it, or nothing: then it counts from now on.
  virtual std::string finish() = 0;
};

class CheckpointFetcher {
 public:
  struct Options {
    int64_t step = 0;
    std::string hash;                 // of the manifest
    std::vector<std::string> donors;  // at least one
    double patience_s = 2;            // without any piece: then the next donor is asked
  };
  using Requests = std::vector<std::pair<std::string, FetchPiece>>;  // by whom to ask

  /// sink outlives the fetcher.
  CheckpointFetcher(Options options, CheckpointSink& sink);

  /// Several times a second.
  Requests on_tick(double now_s);
  Requests on_piece(const std::string& from, const CheckpointPiece& piece, double now_s);
  bool is_done() const { return is_done_; }
  int64_t num_bytes() const { return num_bytes_; }  // that came
  /// Why no donor can give it; empty: it goes on.
  const std::string& failure() const { return failure_; }

 private:
  using Place = std::pair<std::string, int64_t>;  // file, offset
  struct Want {
    int64_t num_bytes = 0;  // 0: not known, it is the manifest
    bool is_asked = false;
  };
  const std::string& donor() const { return options_.donors[donor_idx_]; }
  void begin();
  void ask_next(const std::string& why);
  void take_manifest(const std::string& text);
  Requests ask();

  Options options_;
  CheckpointSink* sink_;
  size_t donor_idx_ = 0, num_asked_ = 0;  // donors in turn; tries with any of them
  std::map<Place, Want> wanted_;
  double heard_s_ = -1;  // when something last came, or was first asked of this donor
  int64_t num_bytes_ = 0;
  bool is_done_ = false;
  std::string failure_;
};

}  // namespace pelago::sites
