#include "plan/planner/figures/warnings.h"

#include <fmt/format.h>

#include <set>

#include "plan/cost/device/profile.h"

namespace pelago::plan {

constexpr double kGib = 1024.0 * 1024.0 * 1024.0;

void warn_of_brakes(const std::vector<Pace>& paces,
                    const BatchRange& range,
                    const Balance& balance,
                    Plan& plan) {
  std::set<std::string> named;
  size_t pace_idx = 0;
  for (const SitePlan& site : plan.sites) {
    for (const PipelinePlan& pipeline : site.pipelines) {
      const double one_s = paces[pace_idx++].time_s(1);
      const bool is_brake =
          pipeline.sequences == 1 && paces.size() > 1 && one_s >= 0.999 * balance.step_s;
      const auto rank = static_cast<size_t>(pipeline.stages.front().ranks.front());
      const std::string& device = site.devices[rank].device;
      if (!is_brake || !named.insert(device).second) continue;
      std::vector<Pace> others;
      for (const Pace& pace : paces) {
        if (pace.time_s(1) < one_s) others.push_back(pace);
      }
      if (others.empty()) continue;
      const auto length = static_cast<double>(plan.sequence_length);
      const double with = balance.sequences_a_second() * length;
      const double without = balance_batch(others, range).sequences_a_second() * length;
      if (without < 1.01 * with) continue;
      plan.warnings.push_back(
          fmt::format("{} of site \"{}\" holds the others back: one sequence takes it {:.3f} s; "
                      "the fleet would do {:.0f} tokens/s without it, {:.0f} with it",
                      device,
                      site.name,
                      one_s,
                      without,
                      with));
    }
  }
}

void warn_of_memory(const std::vector<PlannedSite>& planned, const JobConfig& job, Plan& plan) {
  double on_host_bytes = 0;
  std::set<std::string> named;
  for (size_t i = 0; i < plan.sites.size(); ++i) {
    const SitePlan& site = plan.sites[i];
    for (const DevicePlan& device : site.devices) {
      if (runs_on_host(device.device)) on_host_bytes += device.predicted_memory.total();
    }
    for (size_t k = 0; k < site.pipelines.size(); ++k) {
      const int64_t fits = planned[i].layout.pipelines[k].shape.pace.microbatch_max;
      if (site.pipelines[k].stages.size() > 1 || fits == job.train.microbatch_sequences) continue;
      const auto rank = static_cast<size_t>(site.pipelines[k].stages.front().ranks.front());
      const std::string& device = site.devices[rank].device;
      if (!named.insert(device).second) continue;
      plan.warnings.push_back(
          fmt::format("{} has memory for {} sequences at once, not for the {} of "
                      "train.microbatch_sequences: it takes them in smaller cuts",
                      device,
                      fits,
                      job.train.microbatch_sequences));
    }
  }
  if (on_host_bytes > host_memory_bytes()) {
    plan.warnings.push_back(fmt::format(
        "the devices \"cpu\" and \"emulated\" need {:.1f} GiB of this machine's memory, "
        "which is {:.1f} GiB: take fewer devices or a smaller model",
        on_host_bytes / kGib,
        host_memory_bytes() / kGib));
  }
}

void warn_of_short_run(const JobConfig& job, Plan& plan) {
  if (plan.exchange.fragments > 0 && plan.steps < plan.exchange.inner_steps) {
    plan.warnings.push_back(
        fmt::format("{} steps are fewer than sites.inner_steps = {}: not every fragment is "
                    "exchanged before the end",
                    plan.steps,
                    plan.exchange.inner_steps));
  }
  if (job.train.warmup_steps >= plan.steps) {
    plan.warnings.push_back(
        fmt::format("{} steps end within train.warmup_steps = {}: the learning rate never reaches "
                    "its peak",
                    plan.steps,
                    job.train.warmup_steps));
  }
}

}  // namespace pelago::plan
