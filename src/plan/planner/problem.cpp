#include "plan/planner/problem.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <tuple>

namespace pelago::plan {

namespace {

// Devices of one kind that differ by less than a probe's noise are alike.
constexpr double kSamePace = 0.02;

bool is_near(double a, double b) { return std::abs(a - b) <= kSamePace * std::max(a, b); }

bool is_of_kind(const SiteDevice& device, const Kind& kind) {
  const DeviceProfile& one = device.profile;
  const DeviceProfile& other = kind.profile;
  return kind_of_device(device.device) == kind_of_device(kind.device) && one.dtype == other.dtype &&
         device.memory_bytes == kind.memory_bytes &&
         is_near(one.block_forward.sequence_s, other.block_forward.sequence_s) &&
         is_near(one.block_backward.sequence_s, other.block_backward.sequence_s) &&
         is_near(one.block_backward.fixed_s, other.block_backward.fixed_s) &&
         is_near(one.update_s, other.update_s);
}

Kind kind_of(const SiteDevice& device) {
  Kind kind;
  kind.device = device.device;
  kind.profile = device.profile;
  kind.memory_bytes = device.memory_bytes;
  kind.is_on_this_machine = runs_on_host(device.device);
  kind.transport = transport_costs(kind.is_on_this_machine);
  if (!kind.is_on_this_machine && device.profile.network_byte_s > 0) {
    kind.transport = {.byte_s = device.profile.network_byte_s,
                      .message_s = device.profile.network_message_s};
  }
  return kind;
}

}  // namespace

TrainConfig freest(const TrainConfig& train) {
  TrainConfig free{.microbatch_sequences = 1};
  if (!train.has_muon()) return free;
  free.optimizer = train.optimizer;
  free.slice_optimizer = train.slice_optimizer;
  free.tensor_parallel = train.tensor_parallel;
  return free;
}

SiteProblem make_problem(const std::vector<SiteDevice>& devices,
                         const ModelSizes& sizes,
                         const TrainConfig& train,
                         int64_t batch) {
  SiteProblem problem{.sizes = sizes, .train = train, .kinds = {}, .batch = batch};
  std::map<std::pair<size_t, std::string>, size_t> nodes;  // by kind and name
  size_t kind_idx = 0;
  for (size_t rank = 0; rank < devices.size(); ++rank) {
    // A site may have 100,000 devices, and most are like the one before.
    std::vector<Kind>& kinds = problem.kinds;
    if (kinds.empty() || !is_of_kind(devices[rank], kinds[kind_idx])) {
      const auto found = std::find_if(kinds.begin(), kinds.end(), [&](const Kind& kind) {
        return is_of_kind(devices[rank], kind);
      });
      kind_idx = static_cast<size_t>(found - kinds.begin());
      if (found == kinds.end()) kinds.push_back(kind_of(devices[rank]));
    }
    Kind& kind = kinds[kind_idx];
    const auto [node, is_new] =
        nodes.try_emplace({kind_idx, devices[rank].node}, kind.nodes.size());
    if (is_new) kind.nodes.emplace_back();
    kind.nodes[node->second].push_back(static_cast<int>(rank));
    kind.node_of[static_cast<int>(rank)] = static_cast<int>(node->second);
    kind.count += 1;
  }
  // Of equal memory the faster first, so that the order does not hang on that of the fleet's file.
  std::stable_sort(problem.kinds.begin(), problem.kinds.end(), [](const Kind& a, const Kind& b) {
    if (a.memory_bytes != b.memory_bytes) return a.memory_bytes > b.memory_bytes;
    return a.profile.block_backward.sequence_s < b.profile.block_backward.sequence_s;
  });
  return problem;
}

std::vector<std::vector<int>> tensor_sets(const Kind& kind, int64_t width) {
  std::vector<std::vector<int>> sets;
  const auto step = static_cast<std::ptrdiff_t>(width);
  for (const std::vector<int>& node : kind.nodes) {
    if (static_cast<int64_t>(node.size()) % width != 0) return {};
    for (auto first = node.begin(); first != node.end(); first += step) {
      sets.emplace_back(first, first + step);
    }
  }
  std::sort(sets.begin(), sets.end());
  return sets;
}

}  // namespace pelago::plan
