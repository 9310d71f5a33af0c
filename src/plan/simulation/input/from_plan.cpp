#include "plan/simulation/input/from_plan.h"

#include <algorithm>
#include <map>

#include "base/error.h"
#include "plan/across/joint.h"
#include "plan/cost/plan_costs.h"

namespace pelago::plan {

namespace {

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

PlannedStep step_of(const Plan& plan, size_t site_idx, const JobConfig& job) {
  SitePlan site = joint_site(plan, site_idx);
  if (is_joint(plan)) site.name = "all sites";
  PlannedStep step;
  step.site = site.name;
  step.run = run_of_plan(plan, job, site_idx);
  for (size_t p = 0; p < site.pipelines.size(); ++p) {
    const PipelinePlan& pipeline = site.pipelines[p];
    std::vector<int> line_of;
    for (size_t s = 0; s < pipeline.stages.size(); ++s) {
      step.stage_names.push_back(stage_name(site, p, s));
      step.chips_of_stage.push_back(static_cast<int64_t>(pipeline.stages[s].ranks.size()));
      const std::optional<size_t> link = link_behind(plan, pipeline, s);
      line_of.push_back(link ? static_cast<int>(*link) : -1);
    }
    if (is_joint(plan)) step.line_of.push_back(std::move(line_of));
  }
  step.tokens = static_cast<double>(site.batch_sequences * plan.sequence_length);
  return step;
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
    const LineCosts costs = line_costs(link);
    for (const bool is_back : {false, true}) {
      SimulatedLine line;
      line.from = idx.at(is_back ? link.to : link.from);
      line.to = idx.at(is_back ? link.from : link.to);
      line.bytes_s = 1 / (is_back ? costs.byte_back_s : costs.byte_s);
      line.delay_s = costs.way_s;
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
    PlannedStep step = step_of(plan, i, job);
    SimulatedSite simulated;
    simulated.name = step.site;
    simulated.step_s = joint ? simulate_site(step.run).step_s : plan.sites[i].predicted_step_s;
    simulated.tokens = step.tokens;
    simulated.chips = static_cast<double>(joint_site(plan, i).devices.size());
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
