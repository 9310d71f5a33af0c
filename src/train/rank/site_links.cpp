#include "train/rank/site_links.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <utility>

#include "chips/links.h"
#include "chips/vendor/vendor.h"
#include "plan/across/joint.h"
#include "train/across/joint_collective.h"
#include "train/across/joint_courier.h"

namespace pelago::train {

namespace {

bool has_stages(const plan::SitePlan& site) {
  return std::any_of(site.pipelines.begin(),
                     site.pipelines.end(),
                     [](const plan::PipelinePlan& pipeline) { return pipeline.stages.size() > 1; });
}

}  // namespace

void choose_native(const plan::SitePlan& site,
                   int rank,
                   const chips::Device& device,
                   chips::CollectiveOptions& options) {
  std::map<std::pair<std::string, std::string>, std::vector<int>> alike;  // by kind and node
  for (size_t i = 0; i < site.devices.size(); ++i) {
    const plan::DevicePlan& other = site.devices[i];
    alike[{plan::kind_of_device(other.device), other.node}].push_back(static_cast<int>(i));
  }
  options.vendor_groups.assign(site.devices.size(), -1);
  int num_groups = 0;
  bool any_group = false;
  for (const auto& [kind, ranks] : alike) {
    const bool is_group = ranks.size() > 1 && !chips::native_collective_of(kind.first).empty();
    any_group |= is_group;
    for (const int member : ranks) {
      options.vendor_groups[static_cast<size_t>(member)] = is_group ? num_groups : num_groups++;
    }
    if (is_group) ++num_groups;
    if (!is_group || std::find(ranks.begin(), ranks.end(), rank) == ranks.end()) continue;
    options.native_library = chips::native_collective_of(kind.first);
    if (device.chip() == nullptr || !plan::is_emulated(kind.first)) continue;
    const int num_cards = static_cast<int>(ranks.size());
    options.links.group_bytes_per_s =
        chips::group_bytes_per_s(*device.chip(), num_cards, num_cards);
    options.links.pair_bytes_per_s = chips::pair_bytes_per_s(*device.chip(), num_cards);
    options.links.is_mesh = chips::link_topology(*device.chip()) == chips::LinkTopology::kMesh;
  }
  if (!any_group) options.vendor_groups.clear();
}

SiteLinks::SiteLinks(const plan::Plan& plan,
                     size_t site_idx,
                     Bridge& bridge,
                     chips::Device& device,
                     const std::filesystem::path& rendezvous_dir) {
  const plan::SitePlan& site = plan.sites[site_idx];
  const int first_rank = plan::first_joint_rank(plan, site_idx);
  const int num_local = static_cast<int>(site.devices.size());
  chips::CollectiveOptions link;
  link.rank = bridge.rank() - first_rank;
  link.num_ranks = num_local;
  link.device = &device;
  choose_native(site, link.rank, device, link);
  link.rendezvous_dir = rendezvous_dir / "control";
  local_control_ = chips::open_collective(link);
  link.rendezvous_dir = rendezvous_dir / "reduction";
  local_reduction_ = chips::open_collective(link);
  link.rendezvous_dir = rendezvous_dir / "courier";
  if (num_local > 1) local_courier_ = chips::open_courier(link);

  JointMembers members{.ranks = {}, .first_local_rank = first_rank, .num_local_ranks = num_local};
  members.ranks.resize(plan::joint_site(plan, site_idx).devices.size());
  std::iota(members.ranks.begin(), members.ranks.end(), 0);
  control_ =
      open_joint_collective(*local_control_, bridge, BridgeChannel::kControl, device, members);
  reduction_ =
      open_joint_collective(*local_reduction_, bridge, BridgeChannel::kReduction, device, members);
  courier_ = open_joint_courier(local_courier_.get(),
                                bridge,
                                device,
                                {.first_local_rank = first_rank,
                                 .num_local_ranks = num_local,
                                 .is_8_bit = plan.exchange.activation_bits == 8});
}

SiteLinks::SiteLinks(const plan::SitePlan& site,
                     int rank,
                     chips::Device& device,
                     const std::filesystem::path& rendezvous_dir) {
  chips::CollectiveOptions link;
  link.rank = rank;
  link.num_ranks = static_cast<int>(site.devices.size());
  link.device = &device;
  choose_native(site, rank, device, link);
  link.rendezvous_dir = rendezvous_dir / "control";
  control_ = chips::open_collective(link);
  link.rendezvous_dir = rendezvous_dir / "reduction";
  reduction_ = chips::open_collective(link);
  if (!has_stages(site)) return;
  link.rendezvous_dir = rendezvous_dir / "courier";
  courier_ = chips::open_courier(link);
}

}  // namespace pelago::train
