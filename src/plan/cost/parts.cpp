#include "plan/cost/parts.h"

#include <algorithm>

#include "plan/across/joint.h"
#include "plan/cost/device/profile_key.h"
#include "plan/cost/plan_costs.h"

namespace pelago::plan {

namespace {

/// What all microbatches of a pipeline take of one stage's pass.
double all_passes_s(const LinearCost& pass, const LinearCost& waited, const PipelineRun& run) {
  double seconds = 0;
  for (const int64_t sequences : run.sequences) {
    seconds += pass.at(static_cast<double>(sequences)) - waited.at(static_cast<double>(sequences));
  }
  return seconds;
}

/// By rank of the site, or of all sites of a joint plan.
std::vector<PartSeconds> parts_of_site(const Plan& plan, const JobConfig& job, size_t site_idx) {
  const SitePlan site = joint_site(plan, site_idx);
  const SiteRun run = run_of_plan(plan, job, site_idx);
  const SiteTime time = simulate_site(run);
  std::vector<PartSeconds> parts(site.devices.size());
  for (size_t i = 0; i < site.pipelines.size(); ++i) {
    for (size_t s = 0; s < site.pipelines[i].stages.size(); ++s) {
      const StageCosts& costs = run.pipelines[i].stages[s];
      const double end_s = time.pipelines[i].stages[s].end_s;
      PartSeconds part;
      part.forward_s = all_passes_s(costs.forward, costs.forward_wait, run.pipelines[i]);
      part.backward_s = all_passes_s(costs.backward, costs.backward_wait, run.pipelines[i]);
      part.bubble_s = end_s - part.forward_s - part.backward_s;
      part.optimizer_s = costs.update_s;
      part.reduce_s = time.step_s - end_s - part.optimizer_s;
      for (const int rank : site.pipelines[i].stages[s].ranks) {
        parts[static_cast<size_t>(rank)] = part;
      }
    }
  }
  return parts;
}

/// What handing a fragment over takes a site: its chips write their own shares of it to the host,
/// once to be sent and once to be mixed with what came, and all read the mixture, as masters and as
/// weights. Stages hold unlike fragments, so one of them works at a time.
double handing_s(const Plan& plan, const SitePlan& site) {
  const double values =
      static_cast<double>(plan.num_parameters) / static_cast<double>(plan.exchange.fragments);
  double host_byte_s = 0;
  for (const DevicePlan& device : site.devices) {
    const DeviceProfile* profile = find_profile(plan, site.name, device);
    if (profile != nullptr) host_byte_s = std::max(host_byte_s, profile->host_byte_s);
  }
  size_t width = site.pipelines.front().stages.front().ranks.size();
  for (const PipelinePlan& pipeline : site.pipelines) {
    for (const StagePlan& stage : pipeline.stages) width = std::min(width, stage.ranks.size());
  }
  const double written = 2 * sizeof(float) / static_cast<double>(site.pipelines.size());
  const double read = 2 * sizeof(float);
  return values * (written + read) * host_byte_s / static_cast<double>(width);
}

}  // namespace

PartSeconds& PartSeconds::operator+=(const PartSeconds& other) {
  for (const NamedPart& part : all_parts()) this->*part.seconds += other.*part.seconds;
  return *this;
}

PartSeconds PartSeconds::times(double factor) const {
  PartSeconds product = *this;
  for (const NamedPart& part : all_parts()) product.*part.seconds *= factor;
  return product;
}

const std::vector<NamedPart>& all_parts() {
  static const std::vector<NamedPart> parts = {{"forward", &PartSeconds::forward_s},
                                               {"backward", &PartSeconds::backward_s},
                                               {"bubble", &PartSeconds::bubble_s},
                                               {"reduce", &PartSeconds::reduce_s},
                                               {"optimizer", &PartSeconds::optimizer_s},
                                               {"line", &PartSeconds::line_s}};
  return parts;
}

std::vector<std::vector<PartSeconds>> parts_of_plan(const Plan& plan, const JobConfig& job) {
  std::vector<std::vector<PartSeconds>> parts;
  if (is_joint(plan)) {
    const std::vector<PartSeconds> all = parts_of_site(plan, job, 0);
    auto next = all.begin();
    for (const SitePlan& site : plan.sites) {
      const auto end = next + static_cast<std::ptrdiff_t>(site.devices.size());
      parts.emplace_back(next, end);
      next = end;
    }
    return parts;
  }
  const bool exchanges = plan.sites.size() > 1 && plan.exchange.fragments > 0;
  const double num_exchanges =  // a step
      exchanges ? static_cast<double>(plan.exchange.fragments) /
                      static_cast<double>(plan.exchange.inner_steps)
                : 0;
  double slowest_s = 0;  // sites wait for each other
  for (size_t i = 0; i < plan.sites.size(); ++i) {
    parts.push_back(parts_of_site(plan, job, i));
    const double handed_s = exchanges ? num_exchanges * handing_s(plan, plan.sites[i]) : 0;
    slowest_s = std::max(slowest_s, parts.back().front().sum_s() + handed_s);
  }
  const ExchangeCosts exchange = exchange_costs(plan);
  double exchange_s = 0;  // of the slowest line
  for (const FleetLink& link : plan.links) {
    exchange_s = std::max(exchange_s, exchange.seconds(link));
  }
  const double late_s = num_exchanges * std::max(0.0, exchange_s - exchange.overlap_s);
  for (auto& site : parts) {
    for (PartSeconds& part : site) part.line_s = slowest_s - part.sum_s() + late_s;
  }
  return parts;
}

}  // namespace pelago::plan
