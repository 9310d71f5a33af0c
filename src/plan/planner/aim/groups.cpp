#include "plan/planner/aim/groups.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "plan/cost/device/profile.h"

namespace pelago::plan {

std::vector<Group> groups_of(const FleetConfig& fleet, const chips::Catalogue& catalogue) {
  std::vector<Group> groups;
  for (size_t site_idx = 0; site_idx < fleet.sites.size(); ++site_idx) {
    std::map<std::string, size_t> known;
    std::map<std::pair<size_t, std::string>, int64_t> in_node;
    const std::vector<FleetDevice>& devices = fleet.sites[site_idx].devices;
    for (size_t i = 0; i < devices.size(); ++i) {
      const FleetDevice& device = devices[i];
      const std::string kind = kind_of_device(device.device);
      const std::string key = fmt::format("{} {} {} {} {} {} {}",
                                          kind,
                                          device.chip,
                                          device.profile,
                                          device.memory_gib,
                                          device.power_w,
                                          device.price_hour,
                                          device.device == "cpu" ? device.cores.size() : 0);
      const auto [found, is_new] = known.try_emplace(key, groups.size());
      if (is_new) {
        const chips::Chip* chip = find_chip(device, catalogue);
        Group group;
        group.site_idx = site_idx;
        group.chip = !device.chip.empty()     ? device.chip
                     : device.profile.empty() ? kind
                                              : device.profile;
        group.name = chip == nullptr ? group.chip : chip->name;
        group.power_w = device_power_w(device, catalogue);
        group.price_hour = device.price_hour;
        groups.push_back(std::move(group));
      }
      Group& group = groups[found->second];
      group.devices.push_back(i);
      group.node_size = std::max(group.node_size, ++in_node[{found->second, device.node}]);
    }
  }
  for (Group& group : groups) {
    const std::vector<FleetDevice>& devices = fleet.sites[group.site_idx].devices;
    std::map<std::string, size_t> first_of_node;
    for (const size_t i : group.devices) first_of_node.try_emplace(devices[i].node, i);
    std::ranges::stable_sort(group.devices, [&](size_t a, size_t b) {
      return first_of_node.at(devices[a].node) < first_of_node.at(devices[b].node);
    });
  }
  return groups;
}

bool Worth::is_better_than(const Worth& other) const {
  constexpr double kSame = 1e-9;
  if (excess != other.excess) return excess < other.excess;
  if (std::abs(objective - other.objective) > kSame * std::max(objective, other.objective)) {
    return objective > other.objective;
  }
  return tokens_s > other.tokens_s * (1 + kSame);
}

}  // namespace pelago::plan
