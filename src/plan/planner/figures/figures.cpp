#include "plan/planner/figures/figures.h"

#include <algorithm>
#include <limits>
#include <map>

#include "plan/across/joint.h"
#include "plan/cost/device/profile.h"
#include "plan/cost/plan_costs.h"
#include "plan/planner/search/shape.h"

namespace pelago::plan {

namespace {

/// Of one device, for its part of the model, at the best microbatch and width.
double least_block_s(const DeviceProfile& profile, double microbatch) {
  double least_s =
      (profile.block_forward.at(microbatch) + profile.block_backward.at(microbatch)) / microbatch;
  for (const CutProfile& cut : profile.cuts) {
    const double together_s = cut.block_forward.at(microbatch) + cut.block_backward.at(microbatch);
    least_s = std::min(least_s, static_cast<double>(cut.width) * together_s / microbatch);
  }
  return least_s;
}

/// Embedding, head and what each pipeline's stage does besides, in blocks of the same device.
double ends_in_blocks(const DeviceProfile& profile, double microbatch) {
  double ends_s = (profile.embedding.at(microbatch) + profile.head.at(microbatch)) / microbatch;
  for (const CutProfile& cut : profile.cuts) {
    const double together_s = cut.embedding.at(microbatch) + cut.head.at(microbatch);
    ends_s = std::min(ends_s, static_cast<double>(cut.width) * together_s / microbatch);
  }
  ends_s +=
      (profile.stage_forward.at(microbatch) + profile.stage_backward.at(microbatch)) / microbatch;
  return ends_s / least_block_s(profile, microbatch);
}

/// One sequence through the model and back: nothing of it is done twice at once, but a block may be
/// cut over devices of one kind in one node. Each part where it is fastest, messages for nothing.
double least_way_s(const std::vector<std::vector<SiteDevice>>& sites, const JobConfig& job) {
  const ModelSizes sizes = sizes_of(job, job.data.sequence_length);
  const int64_t widest = std::max<int64_t>(8, job.train.tensor_parallel);  // that is ever tried
  constexpr double kNever = std::numeric_limits<double>::infinity();
  double block_s = kNever, embedding_s = kNever, head_s = kNever;
  for (const std::vector<SiteDevice>& site : sites) {
    std::map<std::pair<std::string, std::string>, int64_t> in_node;
    for (const SiteDevice& device : site) ++in_node[{kind_of_device(device.device), device.node}];
    const SiteDevice* before = nullptr;
    for (const SiteDevice& device : site) {
      const DeviceProfile& profile = device.profile;
      // Devices stand beside their like, of which one is enough.
      const bool is_like = before != nullptr && before->node == device.node &&
                           before->profile.block_forward.at(1) == profile.block_forward.at(1) &&
                           before->profile.block_backward.at(1) == profile.block_backward.at(1) &&
                           before->profile.head.at(1) == profile.head.at(1);
      before = &device;
      if (is_like) continue;
      const int64_t most =
          std::min(widest, in_node.at({kind_of_device(device.device), device.node}));
      for (int64_t width = 1; width <= most; width *= 2) {
        if (!profile.allows(width) || (width > 1 && !can_be_cut(sizes, width))) continue;
        const BlockCosts block = block_costs(sizes, profile, width);
        block_s = std::min(block_s, block.forward.at(1) + block.backward.at(1));
        embedding_s = std::min(embedding_s, embedding_cost(profile, width).at(1));
        head_s = std::min(head_s, head_cost(profile, width).at(1));
      }
    }
  }
  return static_cast<double>(sizes.num_blocks) * block_s + embedding_s + head_s;
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
    profile.update_block_s *= ratio;  // matrix products; the rest of the update is traffic
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

DeviceBound bound_of_device(const DeviceProfile& profile, const JobConfig& job) {
  const auto microbatch = static_cast<double>(job.train.microbatch_sequences);
  return {.blocks_s = 1 / least_block_s(profile, microbatch),
          .ends = ends_in_blocks(profile, microbatch)};
}

double bound_sequences_s(const std::vector<std::vector<SiteDevice>>& sites,
                         const JobConfig& job,
                         int64_t batch) {
  double blocks_s = 0;  // blocks of a sequence that all devices do in a second
  double ends = std::numeric_limits<double>::infinity();
  double update_s = std::numeric_limits<double>::infinity();
  for (const std::vector<SiteDevice>& site : sites) {
    for (const SiteDevice& device : site) {
      const DeviceBound bound = bound_of_device(device.profile, job);
      blocks_s += bound.blocks_s;
      ends = std::min(ends, bound.ends);
      update_s = std::min(update_s, device.profile.update_s);
    }
  }
  const double blocks = static_cast<double>(job.model.num_hidden_layers) + ends;
  const auto sequences = static_cast<double>(batch);
  const double way_s = least_way_s(sites, job);
  return sequences / (std::max(sequences * blocks / blocks_s, way_s) + update_s);
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
