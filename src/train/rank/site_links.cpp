#include "train/rank/site_links.h"

#include <algorithm>
#include <map>
#include <utility>

#include "chips/links.h"
#include "chips/vendor/vendor.h"

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
