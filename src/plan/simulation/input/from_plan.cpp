#include "plan/simulation/input/from_plan.h"

#include <algorithm>
#include <map>

#include "base/error.h"
#include "plan/across/joint.h"
#include "plan/planner/site_run.h"

namespace pelago::plan {

namespace {

SiteProblem problem_of(const Plan& plan, const SitePlan& site, const JobConfig& job) {
  std::vector<SiteDevice> devices;
  for (const DevicePlan& device : site.devices) {
    const auto found = plan.profiles.find(profile_name(device.device, device.cores.size()));
    if (found == plan.profiles.end()) {
      fail("the plan has no profile of {}: make the plan again", device.device);
    }
    devices.push_back({device.device, device.node, found->second, device.memory_bytes});
  }
  return make_problem(
      devices, sizes_of(job.model, plan.sequence_length), job.train, site.batch_sequences);
}

/// The device of a stage without the number that tells it from its like: "emulated:nvidia-h20".
std::string stage_name(const SitePlan& site, size_t pipeline_idx, size_t stage_idx) {
  const StagePlan& stage = site.pipelines[pipeline_idx].stages[stage_idx];
  std::string device =
      kind_of_device(site.devices[static_cast<size_t>(stage.ranks.front())].device);
  if (device.starts_with("emulated:")) device.erase(0, 9);
  const std::string width =
      stage.ranks.size() > 1 ? fmt::format(" x{}", stage.ranks.size()) : std::string();
  return fmt::format("p{} s{} {}{}", pipeline_idx, stage_idx, device, width);
}

PlannedStep step_of(const Plan& plan, const SitePlan& site, const JobConfig& job) {
  PlannedStep step;
  step.site = site.name;
  const SiteProblem problem = problem_of(plan, site, job);
  const std::optional<SiteLayout> layout = keep_layout(problem, site);
  if (!layout) {
    fail("site \"{}\": the plan's stages do not fit its devices any more: make the plan again",
         site.name);
  }
  std::vector<int64_t> shares;
  for (size_t p = 0; p < site.pipelines.size(); ++p) {
    shares.push_back(site.pipelines[p].sequences);
    for (size_t s = 0; s < site.pipelines[p].stages.size(); ++s) {
      step.stage_names.push_back(stage_name(site, p, s));
      step.chips_of_stage.push_back(static_cast<int64_t>(site.pipelines[p].stages[s].ranks.size()));
    }
  }
  step.run = site_run(problem, *layout, shares);
  for (size_t p = 0; p < site.pipelines.size(); ++p) {
    const PipelinePlan& pipeline = site.pipelines[p];
    step.run.pipelines[p].sequences = cut_microbatches(pipeline.sequences, pipeline.microbatch);
  }
  step.tokens = static_cast<double>(site.batch_sequences * plan.sequence_length);
  return step;
}

/// Stages in front of a line between sites: what a message takes of it.
void add_lines(const Plan& plan, const SitePlan& all, const JobConfig& job, PlannedStep& step) {
  const double hidden_bytes = static_cast<double>(plan.sequence_length * job.model.hidden_size) *
                              plan.exchange.activation_bits / 8;
  double end_s = 0;
  for (size_t p = 0; p < all.pipelines.size(); ++p) {
    const std::vector<StagePlan>& stages = all.pipelines[p].stages;
    std::vector<int>& line_of = step.line_of.emplace_back(stages.size(), -1);
    for (size_t s = 0; s + 1 < stages.size(); ++s) {
      const size_t here = site_of_joint_rank(plan, stages[s].ranks.front());
      const size_t there = site_of_joint_rank(plan, stages[s + 1].ranks.front());
      if (here == there) continue;
      for (size_t i = 0; i < plan.links.size(); ++i) {
        const FleetLink& link = plan.links[i];
        const std::string &a = plan.sites[here].name, &b = plan.sites[there].name;
        if (!((link.from == a && link.to == b) || (link.from == b && link.to == a))) continue;
        line_of[s] = static_cast<int>(i);
        StageCosts& costs = step.run.pipelines[p].stages[s];
        costs.message = {link.rtt_ms / 2e3, 0};
        costs.line = {0, 8 * hidden_bytes / (link.bandwidth_mbit_s * 1e6)};
        if (!job.model.tie_word_embeddings) continue;
        // Both ends of the model hold a tied embedding: its gradients cross, and then the sums of
        // the norm, before the first stage can go on.
        const auto table = static_cast<double>(job.model.vocab_size * job.model.hidden_size);
        end_s = std::max(end_s, 32 * table / (link.bandwidth_mbit_s * 1e6) + link.rtt_ms / 1e3);
      }
    }
  }
  step.run.agree_s += end_s;
}

/// Fragments of equal size, staggered; taken after a step and merged before one.
ExchangeModel exchange_of(const Plan& plan) {
  const SitesConfig& config = plan.exchange;
  ExchangeModel exchange;
  exchange.pattern =
      config.delta_bits == 2 ? ExchangePattern::kAllGather : ExchangePattern::kAllToAll;
  exchange.state_bytes = 8 * static_cast<double>(plan.num_parameters);
  exchange.grace_s = config.grace_s;
  const int64_t interval = config.inner_steps / config.fragments;
  const double bytes = delta_bytes(static_cast<double>(plan.num_parameters), config.delta_bits) /
                       static_cast<double>(config.fragments);
  for (int64_t p = 0; p < config.fragments; ++p) {
    exchange.schedule.push_back(
        {(p + 1) * interval - 1, config.inner_steps, config.overlap_steps, {{0, bytes}}});
  }
  return exchange;
}

std::vector<SimulatedLine> lines_of(const Plan& plan) {
  std::map<std::string, size_t> idx;
  for (size_t i = 0; i < plan.sites.size(); ++i) idx[plan.sites[i].name] = i;
  std::vector<SimulatedLine> lines;
  for (const FleetLink& link : plan.links) {
    for (const auto& [from, to] : {std::pair{link.from, link.to}, {link.to, link.from}}) {
      SimulatedLine line;
      line.from = idx.at(from);
      line.to = idx.at(to);
      line.bytes_s = link.bandwidth_mbit_s * 1e6 / 8;
      line.delay_s = link.rtt_ms / 2e3;
      lines.push_back(line);
    }
  }
  return lines;
}

}  // namespace

PlannedRun run_of_plan(const Plan& plan, const JobConfig& job) {
  PlannedRun planned;
  planned.model.name = plan.job_name;
  const bool joint = is_joint(plan);
  for (size_t i = 0; i < (joint ? 1 : plan.sites.size()); ++i) {
    const SitePlan& site = plan.sites[i];
    SitePlan all = joint_site(plan, i);
    if (joint) all.name = "all sites";
    PlannedStep step = step_of(plan, all, job);
    if (joint) add_lines(plan, all, job, step);
    SimulatedSite simulated;
    simulated.name = all.name;
    simulated.step_s = joint ? simulate_site(step.run).step_s : site.predicted_step_s;
    simulated.tokens = step.tokens;
    simulated.chips = static_cast<double>(all.devices.size());
    planned.model.sites.push_back(simulated);
    planned.steps.push_back(std::move(step));
  }
  if (!joint && plan.sites.size() > 1) {
    planned.model.lines = lines_of(plan);
    if (plan.exchange.fragments > 0) planned.model.exchange = exchange_of(plan);
  }
  return planned;
}

}  // namespace pelago::plan
