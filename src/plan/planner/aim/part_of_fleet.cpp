#include "plan/planner/aim/part_of_fleet.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <optional>

#include "base/error.h"
#include "plan/cost/device/profile.h"

namespace pelago::plan {

namespace {

/// The device of each rank as an index into the fleet's site, rank after rank; none if that order
/// or a device is not there. The ranks' own processors and memory are compared where is_exact.
std::vector<size_t> match_devices(const SitePlan& site,
                                  const FleetSite& fleet_site,
                                  const FleetConfig& fleet,
                                  const chips::Catalogue& catalogue,
                                  bool is_exact) {
  std::vector<size_t> matched;
  size_t next = 0;
  for (const DevicePlan& device : site.devices) {
    const auto is_it = [&](const FleetDevice& one) {
      if (one.device != device.device || one.node != device.node) return false;
      return !is_exact || (one.cores == device.cores &&
                           device_memory_bytes(one, fleet, catalogue) == device.memory_bytes);
    };
    while (next < fleet_site.devices.size() && !is_it(fleet_site.devices[next])) ++next;
    if (next == fleet_site.devices.size()) break;
    matched.push_back(next++);
  }
  return matched;
}

/// Why the fleet has no device for the first rank without one.
[[noreturn]] void refuse_device(const SitePlan& site,
                                const FleetSite& fleet_site,
                                size_t rank,
                                const std::string& where) {
  const DevicePlan& device = site.devices[rank];
  int64_t num_in_plan = 0, num_in_node = 0;
  for (const DevicePlan& other : site.devices) {
    num_in_plan += other.device == device.device && other.node == device.node ? 1 : 0;
  }
  std::optional<std::string> other_node;
  int64_t num_in_fleet = 0;
  for (const FleetDevice& other : fleet_site.devices) {
    if (other.device != device.device) continue;
    num_in_fleet += 1;
    num_in_node += other.node == device.node ? 1 : 0;
    if (other.node != device.node) other_node = other.node;
  }
  if (num_in_fleet == 0) {
    fail_usage("{}: devices[{}] = {}: the fleet has none of them in this site",
               where,
               rank,
               device.device);
  }
  if (num_in_node == 0) {
    fail_usage("{}: devices[{}]: node = \"{}\", but the fleet has {} in node \"{}\"",
               where,
               rank,
               device.node,
               device.device,
               *other_node);
  }
  if (num_in_plan > num_in_node) {
    fail_usage(
        "{}: devices[{}] = {}: the plan has {} of them in node \"{}\", the fleet has only {}",
        where,
        rank,
        device.device,
        num_in_plan,
        device.node,
        num_in_node);
  }
  fail_usage("{}: devices[{}] = {} stands in another order in the fleet: keep the fleet's order",
             where,
             rank,
             device.device);
}

}  // namespace

FleetConfig part_of_fleet(const Plan& plan,
                          const FleetConfig& fleet,
                          const chips::Catalogue& catalogue,
                          const std::string& name) {
  FleetConfig part = fleet;
  part.sites.clear();
  auto next = fleet.sites.begin();
  for (size_t i = 0; i < plan.sites.size(); ++i) {
    const SitePlan& site = plan.sites[i];
    const std::string where = fmt::format("{}: sites[{}]", name, i);
    const auto found = std::ranges::find(fleet.sites, site.name, &FleetSite::name);
    if (found == fleet.sites.end()) {
      std::vector<std::string> names;
      for (const FleetSite& one : fleet.sites) names.push_back(one.name);
      fail_usage("{}: name = \"{}\": the fleet has no such site; it has {}",
                 where,
                 site.name,
                 fmt::join(names, ", "));
    }
    if (found < next) {
      fail_usage("{}: \"{}\" stands in another order in the fleet: keep the fleet's order",
                 where,
                 site.name);
    }
    next = found + 1;
    std::vector<size_t> matched = match_devices(site, *found, fleet, catalogue, /*is_exact=*/true);
    if (matched.size() < site.devices.size()) {
      matched = match_devices(site, *found, fleet, catalogue, /*is_exact=*/false);
    }
    if (matched.size() < site.devices.size()) refuse_device(site, *found, matched.size(), where);
    FleetSite& used = part.sites.emplace_back(*found);
    used.devices.clear();
    for (const size_t idx : matched) used.devices.push_back(found->devices[idx]);
  }
  std::erase_if(part.links, [&](const FleetLink& link) {
    const auto is_used = [&](const std::string& site) {
      return std::ranges::find(part.sites, site, &FleetSite::name) != part.sites.end();
    };
    return !is_used(link.from) || !is_used(link.to);
  });
  return part;
}

std::string left_free(const FleetConfig& fleet,
                      const FleetConfig& part,
                      const chips::Catalogue& catalogue) {
  struct Count {
    std::string name;
    int64_t has = 0, uses = 0;
  };
  const auto name_of = [&](const FleetDevice& device) {
    const chips::Chip* chip = find_chip(device, catalogue);
    return chip == nullptr ? kind_of_device(device.device) : chip->name;
  };
  std::string text;
  for (const FleetSite& site : fleet.sites) {
    std::vector<Count> counts;  // in the order of the fleet
    const auto count_of = [&](const FleetDevice& device) -> Count& {
      const std::string name = name_of(device);
      const auto found = std::ranges::find(counts, name, &Count::name);
      return found != counts.end() ? *found : counts.emplace_back(Count{.name = name});
    };
    for (const FleetDevice& device : site.devices) count_of(device).has += 1;
    const auto used = std::ranges::find(part.sites, site.name, &FleetSite::name);
    if (used != part.sites.end()) {
      for (const FleetDevice& device : used->devices) count_of(device).uses += 1;
    }
    for (const Count& count : counts) {
      if (count.uses == count.has) continue;
      text += fmt::format("{}{} of {} {} in site {}",
                          text.empty() ? "" : ", ",
                          count.has - count.uses,
                          count.has,
                          count.name,
                          site.name);
    }
  }
  return text;
}

}  // namespace pelago::plan
