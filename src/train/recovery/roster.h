// Which of a site's devices take part, and the plan that they follow: the run's own plan while all
// are there and as fast as it says, else a plan made from it for what is left. When a device comes
// back the run's own plan comes back with it, to the bit.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "plan/job.h"
#include "plan/plan.h"

namespace pelago::train {

class Roster {
 public:
  Roster(plan::Plan own, plan::JobConfig job, size_t site_idx);

  /// In use.
  const plan::Plan& plan() const { return plan_; }
  const plan::SitePlan& site() const { return plan_.sites[site_idx_]; }
  /// The run's own.
  const plan::SitePlan& own_site() const { return own_.sites[site_idx_]; }
  /// The place in the run's own plan of a rank of the plan in use.
  size_t place_of(size_t rank) const { return places_[rank]; }
  /// Places that are not taken.
  std::vector<size_t> lost() const;

  /// Ranks of the plan in use. Throws Failure if the model does not fit what is left; nothing has
  /// changed then.
  void lose(std::span<const size_t> ranks);
  /// A lost place is taken again, by a device that was mended.
  void take_back(size_t place);
  /// How many times longer each rank of the plan in use takes than its profile says.
  void set_pace(std::span<const double> factors);
  /// Of the batch, by site; the stages stay.
  void set_shares(std::span<const int64_t> sequences);
  double pace(size_t rank) const { return factors_[places_[rank]]; }

 private:
  void plan_anew(const std::vector<bool>& is_lost, const std::vector<double>& factors);

  plan::Plan own_;
  plan::JobConfig job_;
  size_t site_idx_;
  std::vector<bool> is_lost_;    // by place
  std::vector<double> factors_;  // by place
  plan::Plan plan_;
  std::vector<size_t> places_;  // by rank
};

}  // namespace pelago::train
