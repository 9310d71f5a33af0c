// Under which name a plan or a probe keeps what was measured of a device. A device string alone
// ("cuda:0", "emulated:nvidia-a100-80g-sxm") says enough where all of that name are alike, and
// files of one site need no more. Sites have hosts and cards of their own, so SITE/DEVICE says what
// differs there, and SITE/NODE/DEVICE what differs in one node of a site: the most particular
// counts.
#pragma once

#include <cstddef>
#include <map>
#include <string>

#include "plan/cost/device_profile.h"
#include "plan/plan.h"

namespace pelago::plan {

using Profiles = std::map<std::string, DeviceProfile>;

/// name: of a device in a probe, profile_name() in a plan. Null if there is none.
const DeviceProfile* find_profile(const Profiles& profiles,
                                  const std::string& site,
                                  const std::string& node,
                                  const std::string& name);

/// Of a plan's device, in its own site's terms.
const DeviceProfile* find_profile(const Plan& plan,
                                  const std::string& site,
                                  const DevicePlan& device);

/// Adds profiles device by device, a site's after those of the sites before it, each under the
/// shortest name that finds it and changes nothing of what was added before.
class ProfileBook {
 public:
  explicit ProfileBook(Profiles& profiles) : profiles_(profiles) {}
  void add(const std::string& site,
           const std::string& node,
           const std::string& name,
           const DeviceProfile& profile);

 private:
  Profiles& profiles_;                              // outlives this
  std::string site_;                                // the last one
  std::map<std::string, std::string> key_in_site_;  // by name, of the site's first of that name
};

}  // namespace pelago::plan
