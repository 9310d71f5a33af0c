// The devices of a fleet by what a plan can tell apart, and what a part of the fleet is worth.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "chips/catalogue.h"
#include "plan/fleet.h"

namespace pelago::plan {

/// Devices of one site that are alike in all that a plan can tell apart.
struct Group {
  size_t site_idx = 0;
  std::string chip;                    // catalogue id, profile's name, or "cpu"
  std::string name;                    // for people
  std::vector<size_t> devices;         // whole nodes side by side
  int64_t node_size = 1;               // of the fullest
  double power_w = 0, price_hour = 0;  // of one
  int64_t count() const { return static_cast<int64_t>(devices.size()); }
};
std::vector<Group> groups_of(const FleetConfig& fleet, const chips::Catalogue& catalogue);

/// A part of a fleet: so many devices of each group.
using Counts = std::vector<int64_t>;

/// What one fleet is worth: no limit broken first, then the objective.
struct Worth {
  double excess = 0;     // by how much limits are broken, relatively; 0: kept
  double objective = 0;  // in the aim's unit
  double tokens_s = 0;
  bool is_better_than(const Worth& other) const;
};

}  // namespace pelago::plan
