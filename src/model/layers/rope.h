#pragma once

#include <vector>

#include "chips/tensor.h"
#include "chips/torch.h"
#include "model/config.h"

namespace pelago::model {

/// The rotation of every position, made when it is first needed. f32, on one device.
class RopeTable {
 public:
  RopeTable(const ModelConfig& config, c10::Device device);
  struct Rows {
    Tensor cos, sin;  // [T,E/2] f32
  };
  /// Rows of positions [begin, begin + num_positions).
  Rows rows(int64_t begin, int64_t num_positions);

 private:
  std::vector<double> frequencies_;  // [E/2], radians a position
  c10::Device device_;
  Tensor cos_, sin_;  // [T_max,E/2] f32
};

}  // namespace pelago::model
