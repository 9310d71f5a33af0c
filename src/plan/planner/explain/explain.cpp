#include "plan/planner/explain/explain.h"

#include <algorithm>
#include <map>

#include "base/error.h"
#include "plan/across/joint.h"
#include "plan/cost/device/profile.h"
#include "plan/cost/device/profile_key.h"
#include "plan/cost/plan_costs.h"
#include "plan/record.h"

namespace pelago::plan {

namespace {

constexpr double kGib = 1024.0 * 1024.0 * 1024.0;

/// What an exchange keeps the sites waiting for, of the time from one to the next.
double line_wait_share(const Plan& plan) {
  const ExchangeCosts costs = exchange_costs(plan);
  if (costs.interval_s == 0) return 0;
  double wait_s = 0;
  for (const FleetLink& link : plan.links) {
    wait_s = std::max(wait_s, costs.seconds(link) - costs.overlap_s);
  }
  return wait_s / (costs.interval_s + wait_s);
}

StepShares shares_of(const Plan& plan, const JobConfig& job, size_t site_idx) {
  const SiteTime time = simulate_site(run_of_plan(plan, job, site_idx));
  const auto slowest = std::max_element(
      time.pipelines.begin(), time.pipelines.end(), [](const auto& a, const auto& b) {
        return a.end_s < b.end_s;
      });
  StepShares shares;
  shares.site = is_joint(plan) ? "all sites in step" : plan.sites[site_idx].name;
  shares.bound_by = plan.sites[site_idx].bound_by;
  shares.line = is_joint(plan) ? plan.predicted_line_share : line_wait_share(plan);
  const double rest = (1 - shares.line) / time.step_s;
  shares.compute = rest * slowest->end_s * (1 - slowest->bubble());
  shares.bubble = rest * slowest->end_s * slowest->bubble();
  shares.reduce = rest * time.reduction_wait_s;
  shares.update = rest * (time.step_s - time.reduced_s);
  return shares;
}

/// The fleet, the probe and the job, one of them changed.
struct Case {
  std::string what;
  JobConfig job;
  FleetConfig fleet;
  std::optional<Probe> probe;
};

std::string name_of(const FleetDevice& device, const chips::Catalogue& catalogue) {
  const chips::Chip* chip = find_chip(device, catalogue);
  return chip == nullptr ? kind_of_device(device.device) : chip->name;
}

/// One more card of the same kind, or a node of them where the site has several such nodes.
void add_chips(const FleetDevice& like, size_t site_idx, Case& one) {
  FleetSite& site = one.fleet.sites[site_idx];
  std::map<std::string, int64_t> in_node;
  int64_t highest = 0;
  for (const FleetDevice& device : site.devices) {
    if (kind_of_device(device.device) != kind_of_device(like.device)) continue;
    const size_t colon = device.device.rfind(':');
    if (!runs_on_host(device.device)) {
      highest = std::max<int64_t>(highest, std::stoll(device.device.substr(colon + 1)));
    }
    if (device.chip == like.chip) in_node[device.node] += 1;
  }
  const int64_t count = in_node.size() > 1 ? in_node.begin()->second : 1;
  for (int64_t i = 0; i < count; ++i) {
    FleetDevice added = like;
    added.node = in_node.size() > 1 ? "one more" : like.node;
    if (!runs_on_host(like.device)) {
      added.device = fmt::format("{}:{}", kind_of_device(like.device), highest + 1 + i);
    }
    const DeviceProfile* profile =
        one.probe ? find_profile(one.probe->devices, site.name, like.node, like.device) : nullptr;
    if (profile != nullptr) {
      one.probe->devices[fmt::format("{}/{}", site.name, added.device)] = DeviceProfile(*profile);
    }
    site.devices.push_back(std::move(added));
  }
  one.what = fmt::format("{} more {} in site {}", count, one.what, site.name);
}

std::vector<Case> cases_of(const JobConfig& job,
                           const FleetConfig& fleet,
                           const chips::Catalogue& catalogue,
                           const Probe* probe) {
  const Case as_it_is{
      "", job, fleet, probe == nullptr ? std::nullopt : std::optional<Probe>(*probe)};
  std::vector<Case> cases;
  for (size_t i = 0; i < fleet.links.size(); ++i) {
    Case one = as_it_is;
    FleetLink& link = one.fleet.links[i];
    link.bandwidth_mbit_s *= 2;
    link.back_mbit_s *= 2;
    one.what = fmt::format("2x the line {} - {}", link.from, link.to);
    cases.push_back(one);
  }
  std::map<std::string, std::vector<size_t>> sites_of_kind;  // by chip's name
  for (size_t i = 0; i < fleet.sites.size(); ++i) {
    std::map<std::string, FleetDevice> kinds;
    for (const FleetDevice& device : fleet.sites[i].devices) {
      kinds.try_emplace(name_of(device, catalogue), device);
    }
    for (const auto& [name, device] : kinds) {
      sites_of_kind[name].push_back(i);
      Case one = as_it_is;
      one.what = name;
      add_chips(device, i, one);
      cases.push_back(std::move(one));
    }
  }
  for (const auto& [name, sites] : sites_of_kind) {
    Case one = as_it_is;
    one.what = fmt::format("a quarter more memory on each {}", name);
    for (FleetSite& site : one.fleet.sites) {
      for (FleetDevice& device : site.devices) {
        if (name_of(device, catalogue) != name) continue;
        device.memory_gib = 1.25 * device_memory_bytes(device, fleet, catalogue) / kGib;
      }
    }
    cases.push_back(std::move(one));
  }
  Case batch = as_it_is;
  batch.what = fmt::format("train.batch_sequences = {}", 2 * job.train.batch_sequences);
  batch.job.train.batch_sequences *= 2;
  cases.push_back(std::move(batch));
  return cases;
}

}  // namespace

double tokens_s_with_lines(const Plan& plan) {
  return plan.predicted_tokens_s * (1 - line_wait_share(plan));
}

Explanation explain_plan(const Plan& plan,
                         const JobConfig& job,
                         const FleetConfig& fleet,
                         const chips::Catalogue& catalogue,
                         const Probe* probe,
                         double host_cores) {
  Explanation explanation;
  if (plan.bound_tokens_s > 0) {
    explanation.bound_ratio = plan.predicted_tokens_s / plan.bound_tokens_s;
  }
  const size_t num_runs = is_joint(plan) ? 1 : plan.sites.size();
  for (size_t i = 0; i < num_runs; ++i) explanation.sites.push_back(shares_of(plan, job, i));
  const double before = tokens_s_with_lines(plan);
  for (const Case& one : cases_of(job, fleet, catalogue, probe)) {
    double after = 0;
    try {
      // More chips than the host can emulate are worth knowing of, too.
      after = tokens_s_with_lines(make_plan(one.job,
                                            one.fleet,
                                            catalogue,
                                            one.probe ? &*one.probe : nullptr,
                                            16 * host_cores + 1024));
    } catch (const Failure&) {
      continue;  // a change that cannot be planned is none
    }
    constexpr double kNoticeable = 0.01;
    const double gain = after / before - 1;
    if (gain >= kNoticeable) explanation.changes.push_back({one.what, gain});
  }
  std::stable_sort(explanation.changes.begin(),
                   explanation.changes.end(),
                   [](const auto& a, const auto& b) { return a.gain_ratio > b.gain_ratio; });
  return explanation;
}

std::string to_text(const Explanation& explanation) {
  std::string text = fmt::format("of what these chips could do computing all the time: {:.1f} %\n",
                                 100 * explanation.bound_ratio);
  for (const StepShares& site : explanation.sites) {
    text += fmt::format(
        "  {}: bound by {}; of a step {:.1f} % compute, {:.1f} % stages waiting for each other, "
        "{:.1f} % sums of gradients, {:.1f} % update, {:.1f} % line\n",
        site.site,
        site.bound_by,
        100 * site.compute,
        100 * site.bubble,
        100 * site.reduce,
        100 * site.update,
        100 * site.line);
  }
  if (explanation.changes.empty()) {
    return text + "no single change that was tried gains a hundredth\n";
  }
  text += "changes worth most, each by itself, planned anew:\n";
  constexpr size_t kShown = 3;
  for (size_t i = 0; i < std::min(kShown, explanation.changes.size()); ++i) {
    text += fmt::format("  {:+.1f} % from {}\n",
                        100 * explanation.changes[i].gain_ratio,
                        explanation.changes[i].what);
  }
  return text;
}

template <typename Visitor, Like<StepShares> P>
void each_field(Visitor& visit, P& shares) {
  visit("site", shares.site);
  visit("bound_by", shares.bound_by);
  visit("compute", shares.compute);
  visit("bubble", shares.bubble);
  visit("reduce", shares.reduce);
  visit("update", shares.update);
  visit("line", shares.line);
}
template <typename Visitor, Like<PlanChange> P>
void each_field(Visitor& visit, P& change) {
  visit("what", change.what);
  visit("gain_ratio", change.gain_ratio);
}
template <typename Visitor, Like<Explanation> P>
void each_field(Visitor& visit, P& explanation) {
  visit("bound_ratio", explanation.bound_ratio);
  visit("sites", explanation.sites);
  visit("changes", explanation.changes);
}

std::string to_json(const Explanation& explanation) { return write_record(explanation, 1); }

}  // namespace pelago::plan
