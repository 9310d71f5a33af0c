// Times the pieces of which every plan is made, on one device: one block forward and backward, the
// embedding, the head, the optimizer; each with a whole microbatch and a quarter of one, which
// gives what a microbatch costs whatever its size and what a sequence adds. One block is enough, so
// a model too large for the device can be measured too.
//
// What counts for an emulated chip is its own clock: a host that other work slows down then
// measures the same, and nothing sleeps. Real devices are timed by the wall.
#pragma once

#include <string>

#include "chips/device.h"
#include "plan/job.h"
#include "plan/plan.h"

namespace pelago::train {

/// job.model.vocab_size is set. name: the device's string. Throws c10::Error if the device has no
/// room for one block and one microbatch.
plan::DeviceProfile measure_device(const plan::JobConfig& job,
                                   const std::string& name,
                                   chips::Device& device);

}  // namespace pelago::train
