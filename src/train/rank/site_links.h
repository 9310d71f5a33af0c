// How a rank reaches the other ranks of its site: which of them share a vendor's own collectives,
// which are reached over the hosts, and one session for each thread that speaks. Where sites train
// in step, the ranks of the others are reached through the bridge.
#pragma once

#include <filesystem>
#include <memory>

#include "chips/collective.h"
#include "chips/courier.h"
#include "chips/device.h"
#include "plan/plan.h"
#include "train/across/bridge.h"
#include "train/rank/trainer.h"

namespace pelago::train {

class SiteLinks {
 public:
  /// All ranks of the site open them together. device outlives the links. rendezvous_dir: a fresh
  /// folder, the same for all. Throws Failure if a rank does not come.
  SiteLinks(const plan::SitePlan& site,
            int rank,
            chips::Device& device,
            const std::filesystem::path& rendezvous_dir);
  /// The same of a joint plan: ranks of all sites. bridge outlives the links.
  SiteLinks(const plan::Plan& plan,
            size_t site_idx,
            Bridge& bridge,
            chips::Device& device,
            const std::filesystem::path& rendezvous_dir);
  SiteLinks(const SiteLinks&) = delete;
  SiteLinks& operator=(const SiteLinks&) = delete;

  chips::Collective& control() { return *control_; }  // of all ranks
  RankLinks rank_links() const { return {control_.get(), reduction_.get(), courier_.get()}; }

 private:
  // Of a joint plan: this site's own, in which the three below are rooted.
  std::unique_ptr<chips::Collective> local_control_, local_reduction_;
  std::unique_ptr<chips::Courier> local_courier_;
  std::unique_ptr<chips::Collective> control_;    // small things, and tensor parallelism
  std::unique_ptr<chips::Collective> reduction_;  // gradients, on the reducer's thread
  std::unique_ptr<chips::Courier> courier_;       // null if no pipeline has several stages
};

/// The collective library and groups of a site's ranks: devices of one kind in one node share their
/// vendor's library where it has one and there are at least two of them.
void choose_native(const plan::SitePlan& site,
                   int rank,
                   const chips::Device& device,
                   chips::CollectiveOptions& options);

}  // namespace pelago::train
