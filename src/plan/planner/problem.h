// What the search for a site's layout works with: its devices by kind, and the model.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "plan/cost/device/links.h"
#include "plan/cost/sizes.h"
#include "plan/plan.h"

namespace pelago::plan {

/// Devices of a site that are alike in pace and memory.
struct Kind {
  std::string device;  // of one of them, for messages
  DeviceProfile profile;
  double memory_bytes = 0;              // 0: not known, so anything fits
  std::vector<std::vector<int>> nodes;  // ranks, by node, both in order
  std::map<int, int> node_of;           // of each rank
  int64_t count = 0;
  bool is_on_this_machine = false;
  TransportCosts transport;  // to and from devices of other nodes and kinds
};

struct SiteProblem {
  ModelSizes sizes;
  TrainConfig train;
  std::vector<Kind> kinds;  // the one with most memory first: early stages keep more microbatches
  int64_t batch = 0;        // sequences that the site expects, a step
  int64_t num_devices() const {
    int64_t sum = 0;
    for (const Kind& kind : kinds) sum += kind.count;
    return sum;
  }
};

/// Every cut left to the planner, and one sequence at a time: if nothing fits so, nothing does.
TrainConfig freest(const TrainConfig& train);

/// Of one device of a site, as the planner needs it.
struct SiteDevice {
  std::string device, node;
  DeviceProfile profile;
  double memory_bytes = 0;
};
SiteProblem make_problem(const std::vector<SiteDevice>& devices,
                         const ModelSizes& sizes,
                         const TrainConfig& train,
                         int64_t batch);

/// Sets of `width` devices of this kind, each in one node; empty if some devices would be left
/// over.
std::vector<std::vector<int>> tensor_sets(const Kind& kind, int64_t width);

}  // namespace pelago::plan
