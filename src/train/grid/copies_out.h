// A snapshot's way to the host, beside the step that the chip computes meanwhile.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>

#include "chips/device.h"
#include "chips/tensor.h"

namespace pelago::train {

/// Copies on their way to the host together, so that all lie in the chip's queue before the step
/// that it computes meanwhile asks for its sums: behind those they would wait for the step's end.
class CopiesOut {
 public:
  /// device outlives this. after: what the tensors wait for.
  CopiesOut(chips::Device& device, chips::WorkMark after);
  /// take is called with the values once they are on the host: now, or by finish().
  void add(const Tensor& values, std::function<void(const Tensor& host)> take);
  void finish();

 private:
  struct Copy {
    Tensor from;
    std::unique_ptr<chips::HostCopy> on_its_way;
    std::function<void(const Tensor& host)> take;
    int64_t num_bytes = 0;
  };
  void take_first();

  chips::Device* device_;
  chips::WorkMark after_;
  std::deque<Copy> copies_;
  int64_t num_bytes_ = 0;
};

}  // namespace pelago::train
