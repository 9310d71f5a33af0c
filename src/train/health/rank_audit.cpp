#include <algorithm>

#include "plan/across/joint.h"
#include "train/health/audit.h"
#include "train/rank/rank_run.h"

namespace pelago::train {

/// Every rank knows all sums, so every rank comes to the same judgement.
void RankRun::audit() {
  const AuditBounds bounds = audit_bounds(trainer_->has_16_bits());
  const std::vector<AuditSums> first = trainer_->audit(state_.step);
  if (first.size() > 1 && all_agree(first, bounds)) return;
  const std::vector<AuditSums> second = trainer_->audit(state_.step);
  const std::vector<size_t> wrong = wrong_pipelines(first, second, bounds);
  if (wrong.empty() && all_agree(first, bounds)) return;
  opened_.health->examine();  // throws on the rank whose device is wrong
  const plan::SitePlan site = plan::joint_site(plan_, static_cast<size_t>(options_.site_idx));
  const size_t own = plan::place_of(site, collective_->rank()).pipeline_idx;
  const bool is_wrong = std::find(wrong.begin(), wrong.end(), own) != wrong.end();
  const auto& stages = site.pipelines[own].stages;
  if (is_wrong && stages.size() == 1 && stages.front().ranks.size() == 1) {
    throw DeviceFault(
        fmt::format("{} computes wrong: an audit found its gradients {:.1f} times as "
                    "far off as rounding may explain",
                    device_->name(),
                    std::max(disagreement(first[own], second[own], bounds),
                             disagreement(first[own], first.front(), bounds))));
  }
  if (is_first_rank()) {
    control_->warn(
        fmt::format("audit at step {}: pipelines disagree by {:.1f} times what rounding may "
                    "explain, and no chip fails its known answers; watch the loss",
                    state_.step,
                    disagreement(first.front(), first.back(), bounds)));
  }
}

}  // namespace pelago::train
