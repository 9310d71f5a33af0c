// Host memory that a site's supervisor and its workers both see: two f32 vectors of the model's
// size. It has no name in the file system, so nothing is left behind whoever dies. Who may write
// when is told by messages: the worker writes a fragment of local() and then says so; the
// supervisor writes merged() and then says so.
#pragma once

#include <cstdint>
#include <span>

namespace pelago::train {

class SharedWeights {
 public:
  /// Fresh memory of 2 * num_values f32, zero. Throws Failure if there is not enough.
  static SharedWeights create(int64_t num_values);
  /// The memory behind a descriptor that create() made elsewhere; takes the descriptor over.
  static SharedWeights attach(int descriptor, int64_t num_values);
  SharedWeights(SharedWeights&& other) noexcept;
  SharedWeights& operator=(SharedWeights&&) = delete;
  ~SharedWeights();

  int descriptor() const { return descriptor_; }
  std::span<float> local() const { return {values_, num_values_}; }                 // [N]
  std::span<float> merged() const { return {values_ + num_values_, num_values_}; }  // [N]

 private:
  SharedWeights(int descriptor, float* values, size_t num_values)
      : descriptor_(descriptor), values_(values), num_values_(num_values) {}
  int descriptor_;
  float* values_;
  size_t num_values_;
};

}  // namespace pelago::train
