#include "plan/planner/figures/figures.h"

#include <algorithm>
#include <limits>
#include <map>

#include "plan/across/joint.h"
#include "plan/cost/device/profile.h"
#include "plan/cost/plan_costs.h"

namespace pelago::plan {

namespace {

/// Of one device, for its part of the model, at the best microbatch.
double least_block_s(const DeviceProfile& profile, double microbatch) {
  return (profile.block_forward.at(microbatch) + profile.block_backward.at(microbatch)) /
         microbatch;
}

/// Embedding, head and what each pipeline's stage does besides, in blocks of the same device.
double ends_in_blocks(const DeviceProfile& profile, double microbatch) {
  const double ends_s =
      (profile.embedding.at(microbatch) + profile.head.at(microbatch) +
       profile.stage_forward.at(microbatch) + profile.stage_backward.at(microbatch)) /
      microbatch;
  return ends_s / least_block_s(profile, microbatch);
}

/// The plan's step if every device is at its least (or most) ratio.
double step_at(const Plan& plan, const JobConfig& job, bool is_best) {
  Plan scaled = plan;
  for (auto& [name, profile] : scaled.profiles) {
    const double ratio = is_best ? profile.least_ratio : profile.most_ratio;
    for (LinearCost* cost : {&profile.block_forward,
                             &profile.block_backward,
                             &profile.embedding,
                             &profile.head,
                             &profile.stage_forward,
                             &profile.stage_backward}) {
      *cost = cost->times(ratio);
    }
  }
  double step_s = 0;
  const size_t num_runs = is_joint(plan) ? 1 : plan.sites.size();
  for (size_t i = 0; i < num_runs; ++i) {
    step_s = std::max(step_s, simulate_site(run_of_plan(scaled, job, i)).step_s);
  }
  return step_s;
}

void fill_interval(const JobConfig& job, Plan& plan) {
  const bool is_exact = std::ranges::all_of(plan.profiles, [](const auto& profile) {
    return profile.second.least_ratio == 1 && profile.second.most_ratio == 1;
  });
  if (is_exact) return;
  double step_s = 0;
  const size_t num_runs = is_joint(plan) ? 1 : plan.sites.size();
  for (size_t i = 0; i < num_runs; ++i) {
    step_s = std::max(step_s, simulate_site(run_of_plan(plan, job, i)).step_s);
  }
  // Shares were chosen for the middle; at the ends the slowest site decides.
  plan.predicted_tokens_s_lo = plan.predicted_tokens_s * step_s / step_at(plan, job, false);
  plan.predicted_tokens_s_hi = plan.predicted_tokens_s * step_s / step_at(plan, job, true);
}

}  // namespace

double bound_sequences_s(const std::vector<std::vector<SiteDevice>>& sites,
                         const JobConfig& job,
                         int64_t batch) {
  const auto microbatch = static_cast<double>(job.train.microbatch_sequences);
  double blocks_s = 0;  // blocks of a sequence that all devices do in a second
  double ends = std::numeric_limits<double>::infinity();
  double update_s = std::numeric_limits<double>::infinity();
  for (const std::vector<SiteDevice>& site : sites) {
    for (const SiteDevice& device : site) {
      blocks_s += 1 / least_block_s(device.profile, microbatch);
      ends = std::min(ends, ends_in_blocks(device.profile, microbatch));
      update_s = std::min(update_s, device.profile.update_s);
    }
  }
  const double blocks = static_cast<double>(job.model.num_hidden_layers) + ends;
  const auto sequences = static_cast<double>(batch);
  return sequences / (sequences * blocks / blocks_s + update_s);
}

void fill_figures(const std::vector<std::vector<SiteDevice>>& sites,
                  const JobConfig& job,
                  const FleetConfig& fleet,
                  const chips::Catalogue& catalogue,
                  Plan& plan) {
  plan.bound_tokens_s = bound_sequences_s(sites, job, plan.batch_sequences) *
                        static_cast<double>(plan.sequence_length);
  fill_interval(job, plan);
  bool knows_power = true, knows_price = true;
  for (const FleetSite& site : fleet.sites) {
    for (const FleetDevice& device : site.devices) {
      const double power_w = device_power_w(device, catalogue);
      knows_power = knows_power && power_w > 0;
      knows_price = knows_price && device.price_hour > 0;
      plan.predicted_power_w += power_w;
      plan.predicted_price_hour += device.price_hour;
    }
  }
  if (!knows_power) plan.predicted_power_w = 0;
  if (!knows_price) plan.predicted_price_hour = 0;
}

}  // namespace pelago::plan
