#include "plan/planner/across/joint_plan.h"

#include <algorithm>

#include "base/error.h"
#include "plan/planner/planner.h"

namespace pelago::plan {

namespace {

/// Sequences a second of all sites, each by itself; 0 if one of them cannot hold the model.
double rate_apart(const std::vector<std::vector<SiteDevice>>& devices, const JobConfig& job) {
  const ModelSizes sizes = sizes_of(job, job.data.sequence_length);
  const auto num_sites = static_cast<int64_t>(devices.size());
  const int64_t share = std::max<int64_t>(1, job.train.batch_sequences / num_sites);
  double rate = 0;
  for (const auto& site : devices) {
    SiteProblem problem = make_problem(site, sizes, job.train, share);
    auto alone = find_layout(problem);
    if (!alone) {  // a batch that is too small is another matter
      problem.batch = 64 * problem.num_devices();
      alone = find_layout(problem);
    }
    if (!alone) return 0;
    rate += alone->sequences_a_second;
  }
  return rate;
}

}  // namespace

std::optional<JointLayout> choose_joint(const std::vector<std::vector<SiteDevice>>& devices,
                                        const FleetConfig& fleet,
                                        const JobConfig& job) {
  const std::string& across = job.sites.across;
  if (devices.size() < 2 || across == "rounds") return std::nullopt;
  constexpr size_t kDevicesMany = 256;  // sites of so many hold whatever is trained on them
  size_t num_devices = 0;
  for (const auto& site : devices) num_devices += site.size();
  if (across == "auto" && num_devices > kDevicesMany) return std::nullopt;
  const double apart_rate = rate_apart(devices, job);
  std::optional<JointLayout> joint = find_joint_layout(devices, fleet, job);
  if (across == "pipeline" && !joint) {
    fail_usage(
        "sites.across = \"pipeline\": no cut of {} blocks over the devices of all sites fits their "
        "memory (train.stages = {}, tensor_parallel = {}); take a smaller model or more devices",
        job.model.num_hidden_layers,
        job.train.stages,
        job.train.tensor_parallel);
  }
  // A site that goes by itself waits for nobody: a pipeline over lines must be worth it.
  constexpr double kWorthIt = 1.2;
  const bool is_chosen =
      across == "pipeline" || (joint && joint->layout.sequences_a_second > kWorthIt * apart_rate);
  if (!is_chosen) return std::nullopt;
  joint->apart_sequences_s = apart_rate;
  return joint;
}

void warn_of_rounds_settings(const JobConfig& job, Plan& plan) {
  const SitesConfig usual;
  const SitesConfig& given = job.sites;
  std::string unused;
  const auto look = [&](const char* name, bool is_usual) {
    if (!is_usual) unused += fmt::format("{}sites.{}", unused.empty() ? "" : ", ", name);
  };
  look("inner_steps", given.inner_steps == usual.inner_steps);
  look("fragments", given.fragments == usual.fragments);
  look("overlap_steps", given.overlap_steps == usual.overlap_steps);
  look("delta_bits", given.delta_bits == usual.delta_bits);
  look("merge_alpha", given.merge_alpha == usual.merge_alpha);
  look("outer_lr", given.outer_lr == usual.outer_lr);
  look("outer_momentum", given.outer_momentum == usual.outer_momentum);
  look("combine", given.combine == usual.combine);
  look("error_decay", given.error_decay == usual.error_decay);
  look("grace_s", given.grace_s == usual.grace_s);
  look("behind_s", given.behind_s == usual.behind_s);
  if (unused.empty()) return;
  plan.warnings.push_back(
      fmt::format("sites in step exchange no deltas: without meaning here: {}", unused));
}

void fill_joint(const JointLayout& joint,
                const JobConfig& job,
                const FleetConfig& fleet,
                const chips::Catalogue& catalogue,
                Plan& plan) {
  SitePlan all;
  for (const FleetSite& from : fleet.sites) {
    SitePlan site;
    site.name = from.name;
    site.listen = from.listen;
    for (const FleetDevice& device : from.devices) {
      site.devices.push_back(device_plan(site.name, device, fleet, catalogue, plan));
    }
    all.devices.insert(all.devices.end(), site.devices.begin(), site.devices.end());
    plan.sites.push_back(std::move(site));
  }
  const SiteTime time =
      fill_site(joint.problem, joint.layout, joint.shares, job.data.sequence_length, all);
  plan.pipelines = all.pipelines;
  plan.batch_sequences = all.batch_sequences;
  plan.exchange.fragments = 0;
  plan.predicted_line_mbit_s = joint.busiest_line_mbit_s;
  plan.predicted_rounds_tokens_s =
      joint.apart_sequences_s * static_cast<double>(plan.sequence_length);
  // More under way than a pipeline within a site has may cover more than the lines.
  plan.predicted_line_share = std::max(0.0, 1 - joint.near_step_s / joint.step_s);
  plan.predicted_tokens_s =
      static_cast<double>(plan.batch_sequences * plan.sequence_length) / joint.step_s;
  SlowestStage slowest = find_slowest(all, time);
  size_t first_rank = 0;
  for (size_t i = 0; i < plan.sites.size(); ++i) {
    SitePlan& site = plan.sites[i];
    const auto own = all.devices.begin() + static_cast<std::ptrdiff_t>(first_rank);
    std::copy_n(own, site.devices.size(), site.devices.begin());
    site.predicted_step_s = joint.step_s;
    const bool is_here =
        slowest.rank >= first_rank && slowest.rank < first_rank + site.devices.size();
    SlowestStage here = slowest;
    here.rank -= is_here ? first_rank : slowest.rank;
    site.bound_by = is_here || !slowest.instead.empty()
                        ? name_bound_of(here, fleet.sites[i], job, catalogue)
                        : "waits for another site's stage";
    first_rank += site.devices.size();
  }
}

}  // namespace pelago::plan
