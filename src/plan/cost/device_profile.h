// How long a device takes for its part of a model: measured by a probe, taken from a profile layer
// by layer, or worked out from the catalogue. Everything that predicts time starts from here.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "plan/fleet.h"
#include "plan/job.h"

namespace pelago::plan {

/// Seconds that n sequences take at once: fixed_s + n * sequence_s.
struct LinearCost {
  double fixed_s = 0;  // starting operators, reading weights, whatever n is
  double sequence_s = 0;
  double at(double sequences) const { return fixed_s + sequences * sequence_s; }
  LinearCost& operator+=(const LinearCost& other) {
    fixed_s += other.fixed_s;
    sequence_s += other.sequence_s;
    return *this;
  }
  LinearCost times(double factor) const { return {factor * fixed_s, factor * sequence_s}; }
  bool operator==(const LinearCost&) const = default;
};

/// Measured times of a model whose blocks are cut over `width` devices (tensor parallelism), what
/// these send one another included.
struct CutProfile {
  int64_t width = 1;
  LinearCost block_forward, block_backward;
  LinearCost embedding, head;     // both ways
  double update_parameter_s = 0;  // of each parameter that one of the devices holds
  bool operator==(const CutProfile&) const = default;
};

/// What one kind of device needs for one job, whichever part of the model it gets. Seconds as they
/// pass here: an emulated chip's are stretched by the slowdown.
struct DeviceProfile {
  std::string device;                        // "emulated:nvidia-h20"
  std::string dtype;                         // in which it trains: "bf16", "fp16" or "f32"
  LinearCost block_forward, block_backward;  // of one block, its gradients added up
  LinearCost embedding;                      // both ways
  LinearCost head;  // final norm, logits, loss and their gradients, both ways
  // What a stage does besides its blocks: it joins what they hand on, and looks for large values.
  LinearCost stage_forward, stage_backward;
  double update_s = 0;            // once a step, whatever it holds
  double update_run_s = 0;        // once for each run of parameters that decay, or do not
  double update_parameter_s = 0;  // clipping and optimizer, a parameter held
  double update_block_s = 0;      // more for each block, whose matrices take Muon; 0: they do not
  // What moves without the device computing, seconds a byte. 0: taken from the catalogue.
  double host_copy_s = 0;     // of one copy, however short; this one in seconds
  double host_byte_s = 0;     // between its memory and its host's
  double group_call_s = 0;    // of one collective of two of its kind, however short; in seconds
  double reduce_place_s = 0;  // more if it sums gradients: operators bring them into place
  double group_hop_s = 0;     // more for each further member: 0 where all reach all at once
  double group_byte_s = 0;    // to all others of its kind in its node together
  double pair_byte_s = 0;     // to one other, where each pair has a link of its own; 0: as to all
  double network_byte_s = 0;  // to a device in another node
  double network_message_s = 0;  // of one message to there, however short; in seconds
  double host_busy_ratio = 0;    // emulated: processors of the host it keeps busy (0..1); real: 0
  bool measured = false;         // from a probe, else from the catalogue
  double least_ratio = 1, most_ratio = 1;  // its seconds may be so many times these: facts differ
  /// The widths that were measured: a plan takes no other. Empty: any, at what the fields above
  /// and the devices' links make of it.
  std::vector<CutProfile> cuts;

  /// Of a collective among so many of its kind in its node, however short.
  double call_s(double members) const { return group_call_s + (members - 2) * group_hop_s; }
  /// Of each byte that it sends to all others of them together. In a mesh a small group has few of
  /// a device's links.
  double byte_s(double members) const {
    return pair_byte_s > 0 && members > 1 ? std::max(group_byte_s, pair_byte_s / (members - 1))
                                          : group_byte_s;
  }

  const CutProfile* cut_of(int64_t width) const {
    for (const CutProfile& cut : cuts) {
      if (cut.width == width) return &cut;
    }
    return nullptr;
  }
  bool operator==(const DeviceProfile&) const = default;
  bool allows(int64_t width) const { return cuts.empty() || cut_of(width) != nullptr; }
};

/// Profiles by device string, or SITE/DEVICE where the sites differ (device/profile_key.h).
/// probe.json, version 2.
struct Probe {
  std::string job_hash;  // of model, sequence length, microbatch, dtype, slowdown and optimizer: a
                         // probe of another job is refused
  std::map<std::string, DeviceProfile> devices;
};
std::string to_json(const Probe& probe);
/// Throws Failure (exit 2) naming the file and the field.
Probe probe_from_json(std::string_view json, const std::string& name);
/// What Probe::job_hash must be for this job and fleet.
std::string probe_hash(const JobConfig& job, const FleetConfig& fleet);

}  // namespace pelago::plan
