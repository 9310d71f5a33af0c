// A model's packed weights in memory that several processes map: the first one packs, the others
// take what it packed. All of them ask for the same pieces in the same order, so that a piece is
// known by its place.
//
// The file lies in memory and is opened by a path such as /proc/PID/fd/N; it goes when nobody has
// it open or mapped. Whoever packs holds a lock, which the system takes from a process that dies:
// then the next one packs anew.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "chips/packed/packed_matrix.h"

namespace pelago::serve {

/// An empty file in memory, for as long as this lives and as others have it open.
class SharedWeightsFile {
 public:
  /// Throws Failure if the system has none.
  SharedWeightsFile();
  ~SharedWeightsFile();
  SharedWeightsFile(const SharedWeightsFile&) = delete;
  SharedWeightsFile& operator=(const SharedWeightsFile&) = delete;
  std::string path() const;  // for processes of this user, while this one lives

 private:
  int file_ = -1;
};

class SharedWeights {
 public:
  /// Waits while another process packs. key: of the weights and of how they are packed. Null if
  /// what lies there has another key. Throws Failure naming the path if it cannot be opened.
  static std::unique_ptr<SharedWeights> open(const std::string& path, uint64_t key);
  ~SharedWeights();
  SharedWeights(const SharedWeights&) = delete;
  SharedWeights& operator=(const SharedWeights&) = delete;

  /// Another process has packed: pieces are there, and cannot be written to.
  bool is_packed() const { return is_packed_; }
  /// The next piece; zeros, if nobody has packed.
  chips::packed::LargeMemory take(size_t num_bytes);
  /// All pieces are as they are to be: the others may take them.
  void finish();

 private:
  SharedWeights(int file, uint64_t key) : file_(file), key_(key) {}
  int file_;
  uint64_t key_;
  bool is_packed_ = false;
  size_t end_ = size_t{2} << 20;  // of the pieces so far; the first follows the head
};

}  // namespace pelago::serve
