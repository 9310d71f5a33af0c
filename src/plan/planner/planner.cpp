#include "plan/planner/planner.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include "base/error.h"
#include "plan/cost/device/profile.h"
#include "plan/cost/device/profile_key.h"
#include "plan/plan.h"
#include "plan/planner/across/joint_plan.h"
#include "plan/planner/figures/figures.h"
#include "plan/planner/figures/warnings.h"
#include "plan/planner/limits.h"
#include "plan/planner/search/play/settle.h"

namespace pelago::plan {

namespace {

constexpr double kGib = 1024.0 * 1024.0 * 1024.0;
constexpr int64_t kStepsMax = 1'000'000'000;

/// Fills plan.profiles too.
std::vector<std::vector<SiteDevice>> gather_devices(const JobConfig& job,
                                                    const FleetConfig& fleet,
                                                    const chips::Catalogue& catalogue,
                                                    const Probe* probe,
                                                    Plan& plan) {
  std::vector<std::vector<SiteDevice>> sites;
  // A fleet has few kinds of device and may have 100,000 devices: each kind is thought about once.
  std::map<std::string, SiteDevice> known;
  ProfileBook book(plan.profiles);
  for (const FleetSite& site : fleet.sites) {
    std::vector<SiteDevice>& devices = sites.emplace_back();
    std::map<std::pair<std::string, std::string>, int> num_cards;  // by kind and node
    for (const FleetDevice& device : site.devices) {
      ++num_cards[{kind_of_device(device.device), device.node}];
    }
    for (const FleetDevice& device : site.devices) {
      const std::string name = profile_name(device.device, device.cores.size());
      // The catalogue says the same in all sites, a probe may not.
      const std::string place = probe == nullptr ? "" : site.name + "/" + device.node;
      const int cards = num_cards.at({kind_of_device(device.device), device.node});
      const auto [found, is_new] = known.try_emplace(fmt::format("{} {} {} {} {} {} {}",
                                                                 name,
                                                                 place,
                                                                 device.chip,
                                                                 cards,
                                                                 device.memory_gib,
                                                                 site.network_gbit_s,
                                                                 site.network_us));
      if (is_new) {
        SiteDevice& one = found->second;
        one.device = device.device;
        one.profile = profile_device(site.name, device, job, fleet, catalogue, probe, cards);
        one.memory_bytes = device_memory_bytes(device, fleet, catalogue);
        if (!runs_on_host(device.device)) {
          one.profile.network_byte_s = 8e-9 / site.network_gbit_s;
          one.profile.network_message_s = 1e-6 * site.network_us;
        }
      }
      book.add(site.name, device.node, name, found->second.profile);
      devices.push_back(found->second);
      devices.back().node = device.node;
    }
  }
  return sites;
}

SiteLayout must_find(const SiteProblem& problem, const std::string& site, const JobConfig& job) {
  if (auto layout = find_layout(problem)) return std::move(*layout);
  // With a batch for everybody it is memory, or what the job asks for, that stands in the way.
  SiteProblem plenty = problem;
  plenty.batch = 64 * problem.num_devices();
  const auto layout = find_layout(plenty);
  if (layout) {
    fail_usage(
        "train.batch_sequences = {} is too small for the {} pipelines of site \"{}\", which take "
        "at least one sequence each: set it to {} or more",
        job.train.batch_sequences,
        layout->pipelines.size(),
        site,
        job.train.batch_sequences * static_cast<int64_t>(layout->pipelines.size()) /
                std::max<int64_t>(problem.batch, 1) +
            1);
  }
  plenty.train.exact_microbatch = false;
  if (job.train.exact_microbatch && find_layout(plenty)) {
    fail_usage(
        "site \"{}\" has no memory for microbatches of just {} sequences: set "
        "train.microbatch_sequences to fewer, or leave exact_microbatch out",
        site,
        job.train.microbatch_sequences);
  }
  plenty.train = freest(job.train);
  if (find_layout(plenty)) {
    fail_usage(
        "site \"{}\" cannot be cut as the job asks (train.optimizer = \"{}\", pipeline = \"{}\", "
        "recompute = \"{}\", slice_optimizer = \"{}\", tensor_parallel = {}, stages = {}) with {} "
        "blocks on {} devices: leave these fields out, and the planner chooses",
        site,
        job.train.optimizer,
        job.train.pipeline,
        job.train.recompute,
        job.train.slice_optimizer,
        job.train.tensor_parallel,
        job.train.stages,
        problem.sizes.num_blocks,
        problem.num_devices());
  }
  refuse_large_model(site, problem, job);
}

/// Sites that differ in nothing but their name have one layout: it is found once.
bool is_same_site(const std::vector<SiteDevice>& one, const std::vector<SiteDevice>& other) {
  return std::ranges::equal(one, other, [](const SiteDevice& a, const SiteDevice& b) {
    return a.device == b.device && a.node == b.node && a.memory_bytes == b.memory_bytes &&
           a.profile == b.profile;
  });
}

/// A layout for each site, at the share of the batch that its speed will earn it.
std::vector<PlannedSite> plan_sites(const std::vector<std::vector<SiteDevice>>& devices,
                                    const FleetConfig& fleet,
                                    const JobConfig& job) {
  const ModelSizes sizes = sizes_of(job, job.data.sequence_length);
  const auto num_sites = static_cast<int64_t>(devices.size());
  const int64_t batch = job.train.batch_sequences;
  std::vector<PlannedSite> sites;
  double rate = 0;
  for (size_t i = 0; i < devices.size(); ++i) {
    const auto same = std::find_if(
        devices.begin(), devices.begin() + static_cast<std::ptrdiff_t>(i), [&](const auto& other) {
          return is_same_site(devices[i], other);
        });
    if (same != devices.begin() + static_cast<std::ptrdiff_t>(i)) {
      sites.push_back(sites[static_cast<size_t>(same - devices.begin())]);
      rate += sites.back().layout.sequences_a_second;
      continue;
    }
    PlannedSite site;
    const int64_t share = std::max<int64_t>(1, batch / num_sites);
    site.problem = make_problem(devices[i], sizes, job.train, share);
    site.layout = must_find(site.problem, fleet.sites[i].name, job);
    rate += site.layout.sequences_a_second;
    sites.push_back(std::move(site));
  }
  for (PlannedSite& site : sites) {
    const double share = static_cast<double>(batch) * site.layout.sequences_a_second / rate;
    const auto expected = static_cast<double>(site.problem.batch);
    if (std::abs(share - expected) < 0.1 * expected) continue;
    SiteProblem problem = site.problem;
    problem.batch = std::max<int64_t>(1, std::llround(share));
    const auto same = std::find_if(
        sites.begin(), sites.begin() + (&site - sites.data()), [&](const PlannedSite& other) {
          return other.problem.batch == problem.batch &&
                 is_same_site(devices[static_cast<size_t>(&other - sites.data())],
                              devices[static_cast<size_t>(&site - sites.data())]);
        });
    if (&*same != &site) {
      site = *same;
      continue;
    }
    if (auto layout = find_layout(problem)) {
      site.problem = std::move(problem);
      site.layout = std::move(*layout);
    }
  }
  return sites;
}

void fill_sites(const std::vector<PlannedSite>& planned,
                const Balance& balance,
                const JobConfig& job,
                const FleetConfig& fleet,
                const chips::Catalogue& catalogue,
                Plan& plan) {
  std::span<const int64_t> shares(balance.sequences);
  int64_t first_sequence = 0;
  double slowest_s = 0;
  for (size_t i = 0; i < planned.size(); ++i) {
    const FleetSite& fleet_site = fleet.sites[i];
    SitePlan site;
    site.name = fleet_site.name;
    site.listen = fleet_site.listen;
    site.first_sequence = first_sequence;
    for (const FleetDevice& from : fleet_site.devices) {
      site.devices.push_back(device_plan(site.name, from, fleet, catalogue, plan));
    }
    const size_t num_pipelines = planned[i].layout.pipelines.size();
    const SiteTime time = fill_site(planned[i].problem,
                                    planned[i].layout,
                                    shares.first(num_pipelines),
                                    job.data.sequence_length,
                                    site);
    shares = shares.subspan(num_pipelines);
    site.bound_by = name_bound_of(find_slowest(site, time), fleet_site, job, catalogue);
    first_sequence += site.batch_sequences;
    slowest_s = std::max(slowest_s, site.predicted_step_s);
    plan.sites.push_back(std::move(site));
  }
  for (SitePlan& site : plan.sites) {
    if (site.predicted_step_s < 0.95 * slowest_s) site.bound_by = "waits for a slower site";
  }
  plan.predicted_tokens_s =
      static_cast<double>(balance.batch * job.data.sequence_length) / slowest_s;
}

void refuse_small_batch(const BatchRange& range, size_t num_pipelines) {
  if (static_cast<int64_t>(num_pipelines) <= range.hi()) return;
  fail_usage(
      "train.batch_sequences = {} is too small for {} pipelines, which take at least one sequence "
      "each: set it to {} or more",
      range.asked,
      num_pipelines,
      num_pipelines);
}

void fill_terms(const JobConfig& job, const FleetConfig& fleet, double host_cores, Plan& plan) {
  plan.job_name = job.name;
  plan.sequence_length = job.data.sequence_length;
  plan.num_parameters = num_parameters(job);
  plan.num_blocks = job.model.num_hidden_layers;
  plan.optimizer = job.train.optimizer;
  plan.links = fleet.links;
  plan.exchange = job.sites;
  plan.emulation_slowdown = fleet.emulation_slowdown;
  plan.emulation_memory_bytes = fleet.emulation_memory_gib.value_or(0) * kGib;
  plan.host_cores = host_cores;
}

int64_t choose_steps(const TrainConfig& train, double step_s) {
  if (train.steps > 0) return train.steps;
  const double steps = std::floor(train.minutes * 60 / step_s);
  return steps >= static_cast<double>(kStepsMax)
             ? kStepsMax
             : std::max<int64_t>(1, static_cast<int64_t>(steps));
}

}  // namespace

DevicePlan device_plan(const std::string& site,
                       const FleetDevice& from,
                       const FleetConfig& fleet,
                       const chips::Catalogue& catalogue,
                       const Plan& plan) {
  DevicePlan device;
  device.device = from.device;
  device.node = from.node;
  device.cores = from.cores;
  device.faults = from.faults;
  device.memory_bytes = device_memory_bytes(from, fleet, catalogue);
  const DeviceProfile* profile = find_profile(plan, site, device);
  PELAGO_ASSERT(profile != nullptr, "a plan has profiles of all its devices");
  device.measured = profile->measured;
  return device;
}

std::string name_bound_of(const SlowestStage& slowest,
                          const FleetSite& site,
                          const JobConfig& job,
                          const chips::Catalogue& catalogue) {
  if (!slowest.instead.empty()) return slowest.instead;
  const FleetDevice& device = site.devices[slowest.rank];
  const chips::Chip* chip = find_chip(device, catalogue);
  return fmt::format("{} {}",
                     chip == nullptr ? device.device : chip->name,
                     name_bound(device, job, catalogue, slowest.microbatch));
}

std::vector<Pace> PlannedSite::paces() const {
  std::vector<Pace> paces;
  std::vector<int64_t> shares;
  for (const SiteLayout::Pipeline& pipeline : layout.pipelines) {
    paces.push_back(pipeline.shape.pace);
    shares.push_back(pipeline.shape.pace.microbatch_max *
                     static_cast<int64_t>(pipeline.shape.stages.size()));
  }
  const SiteTime time = simulate_site(site_run(problem, layout, shares));
  for (Pace& pace : paces) pace.step_s += time.reduction_wait_s;
  return paces;
}

SlowestStage find_slowest(const SitePlan& site, const SiteTime& time) {
  constexpr double kMostOfIt = 0.3;
  size_t pipeline_idx = 0;
  for (size_t i = 0; i < time.pipelines.size(); ++i) {
    if (time.pipelines[i].end_s > time.pipelines[pipeline_idx].end_s) pipeline_idx = i;
  }
  const PipelineTime& slowest = time.pipelines[pipeline_idx];
  size_t stage_idx = 0;
  for (size_t i = 0; i < slowest.stages.size(); ++i) {
    if (slowest.stages[i].busy_s > slowest.stages[stage_idx].busy_s) stage_idx = i;
  }
  const PipelinePlan& pipeline = site.pipelines[pipeline_idx];
  SlowestStage found;
  found.rank = static_cast<size_t>(pipeline.stages[stage_idx].ranks.front());
  found.microbatch = pipeline.microbatch;
  if (time.reduction_wait_s > kMostOfIt * time.step_s) {
    found.instead = "the reduction";
  } else if (slowest.bubble() > kMostOfIt) {
    found.instead = fmt::format("filling and draining {} stages", pipeline.stages.size());
  }
  return found;
}

std::string profile_name(const std::string& device, size_t num_cores) {
  return device == "cpu" ? fmt::format("cpu with {} cores", num_cores) : device;
}

Plan make_plan(const JobConfig& job,
               const FleetConfig& fleet,
               const chips::Catalogue& catalogue,
               const Probe* probe,
               double host_cores) {
  if (probe != nullptr && probe->job_hash != probe_hash(job, fleet)) {
    fail_usage(
        "the probe was made for another model, sequence length, microbatch, dtype, optimizer or "
        "slowdown; run `pelago probe` again");
  }
  Plan plan;
  const auto devices = gather_devices(job, fleet, catalogue, probe, plan);
  fill_terms(job, fleet, host_cores, plan);
  if (const auto joint = choose_joint(devices, fleet, job)) {
    fill_joint(*joint, job, fleet, catalogue, plan);
    plan.steps = choose_steps(job.train, joint->step_s);
    check_host(plan);
    check_lines(plan);
    warn_of_short_run(job, plan);
    warn_of_rounds_settings(job, plan);
    fill_figures(devices, job, fleet, catalogue, plan);
    return plan;
  }
  std::vector<PlannedSite> planned = plan_sites(devices, fleet, job);
  std::vector<Pace> paces;
  for (const PlannedSite& site : planned) {
    for (Pace& pace : site.paces()) paces.push_back(std::move(pace));
  }
  const BatchRange range{.asked = job.train.batch_sequences, .is_fixed = job.train.exact_batch};
  refuse_small_batch(range, paces.size());
  Balance balance = balance_batch(paces, range);
  std::span<int64_t> shares(balance.sequences);
  for (PlannedSite& site : planned) {
    const size_t num_pipelines = site.layout.pipelines.size();
    settle_shares(site.problem, site.layout, shares.first(num_pipelines));
    shares = shares.subspan(num_pipelines);
  }

  plan.batch_sequences = balance.batch;
  if (fleet.sites.size() == 1) plan.exchange.fragments = 0;
  fill_sites(planned, balance, job, fleet, catalogue, plan);
  double step_s = 0;
  for (const SitePlan& site : plan.sites) step_s = std::max(step_s, site.predicted_step_s);
  plan.steps = choose_steps(job.train, step_s);
  check_host(plan);
  check_lines(plan);
  warn_of_brakes(paces, range, balance, plan);
  warn_of_memory(planned, job, plan);
  warn_of_short_run(job, plan);
  fill_figures(devices, job, fleet, catalogue, plan);
  return plan;
}

}  // namespace pelago::plan
