// The courier of ranks in several sites: to ranks of the own site it is that site's courier, to
// others the bridge. What crosses a line may be cut to 8 bits: values by blocks of 64 with a f32
// scale each, 8.5 bits a value in all, rounded on the host while the device computes.
#pragma once

#include <memory>

#include "chips/courier.h"
#include "train/across/bridge.h"

namespace pelago::train {

struct JointCourierOptions {
  int first_local_rank = 0;
  int num_local_ranks = 1;
  bool is_8_bit = false;  // of what crosses a line
};

/// local: null if the site has one rank. local, bridge and device outlive the courier. Ranks count
/// through all sites.
std::unique_ptr<chips::Courier> open_joint_courier(chips::Courier* local,
                                                   Bridge& bridge,
                                                   chips::Device& device,
                                                   const JointCourierOptions& options);

/// Values of any float dtype to 8 bits by block and back; a value that is not finite comes back as
/// NaN, and so do all. encoded: encoded_bytes() of them.
size_t encoded_bytes(int64_t num_values);
std::vector<std::byte> encode_activations(const Tensor& values);
/// out: contiguous, on the host.
void decode_activations(std::span<const std::byte> encoded, Tensor& out);

}  // namespace pelago::train
