// Host memory that a site's supervisor and its workers all see, f32 vectors of the model's size:
// what a site gives to the others and takes from them, and two whole snapshots of its state, of
// which one is good while the other is written; the board says which. Pages that nobody touched
// take no memory. It has no name in the file system, so nothing is left behind whoever dies. Who
// may write when is told by messages: the worker writes a fragment of local() and then says so; the
// supervisor writes merged() and then says so.
#pragma once

#include <cstdint>
#include <span>

#include "train/process/board.h"
#include "train/process/host_state.h"

namespace pelago::train {

class SharedWeights {
 public:
  /// Fresh memory for a model of num_values parameters, zero. Throws Failure if there is not
  /// enough.
  static SharedWeights create(int64_t num_values);
  /// The memory behind a descriptor that create() made elsewhere; takes the descriptor over.
  static SharedWeights attach(int descriptor, int64_t num_values);
  SharedWeights(SharedWeights&& other) noexcept;
  SharedWeights& operator=(SharedWeights&&) = delete;
  ~SharedWeights();

  int descriptor() const { return descriptor_; }
  std::span<float> local() const { return vector(0); }   // [N]
  std::span<float> merged() const { return vector(1); }  // [N]
  HostState snapshot(size_t slot_idx) const {
    const size_t first = 2 + 3 * slot_idx;
    return {vector(first), vector(first + 1), vector(first + 2)};
  }
  SiteBoard& board() const { return *board_; }

 private:
  static constexpr size_t kVectors = 2 + 3 * SiteBoard::kSlots;
  std::span<float> vector(size_t vector_idx) const {
    return {values_ + vector_idx * num_values_, num_values_};
  }
  SharedWeights(int descriptor, SiteBoard* board, float* values, size_t num_values)
      : descriptor_(descriptor), board_(board), values_(values), num_values_(num_values) {}
  int descriptor_;
  SiteBoard* board_;  // where the mapping begins
  float* values_;
  size_t num_values_;
};

}  // namespace pelago::train
