#include "plan/cost/device/profile_key.h"

namespace pelago::plan {

const DeviceProfile* find_profile(const Profiles& profiles,
                                  const std::string& site,
                                  const std::string& node,
                                  const std::string& name) {
  for (const std::string& key : {site + "/" + node + "/" + name, site + "/" + name, name}) {
    const auto found = profiles.find(key);
    if (found != profiles.end()) return &found->second;
  }
  return nullptr;
}

const DeviceProfile* find_profile(const Plan& plan,
                                  const std::string& site,
                                  const DevicePlan& device) {
  const std::string name = profile_name(device.device, device.cores.size());
  return find_profile(plan.profiles, site, device.node, name);
}

void ProfileBook::add(const std::string& site,
                      const std::string& node,
                      const std::string& name,
                      const DeviceProfile& profile) {
  if (site != site_) {
    site_ = site;
    key_in_site_.clear();
  }
  const auto [known, is_first] = key_in_site_.try_emplace(name, name);
  if (!is_first) {
    if (profiles_.at(known->second) == profile) return;
    profiles_.try_emplace(site + "/" + node + "/" + name, profile);
    return;
  }
  const auto [found, is_new] = profiles_.try_emplace(name, profile);
  if (is_new || found->second == profile) return;
  known->second = site + "/" + name;
  profiles_.try_emplace(known->second, profile);
}

}  // namespace pelago::plan
