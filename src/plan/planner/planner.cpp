// From a job and a fleet to a Plan: profiles, then memory, then shares, then the limits that only
// the finished shares can be held against.
#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "base/error.h"
#include "plan/plan.h"
#include "plan/planner/balance.h"
#include "plan/planner/limits.h"
#include "plan/planner/profile.h"

namespace pelago::plan {

namespace {

constexpr double kGib = 1024.0 * 1024.0 * 1024.0;
constexpr int64_t kStepsMax = 1'000'000'000;

/// A device of the fleet with what it needs and may hold.
struct Candidate {
  const FleetSite* site = nullptr;      // of the fleet, which outlives the planning
  const FleetDevice* device = nullptr;  // of the same
  DeviceProfile profile;
  double memory_bytes = 0;
  int64_t microbatch_max = 0;
  Pace pace() const {
    return {.sequence_s = profile.sequence_s,
            .step_s = profile.step_s,
            .microbatch_s = profile.microbatch_s,
            .microbatch_max = microbatch_max};
  }
};

void refuse_wrong_dtype(const JobConfig& job,
                        const FleetDevice& device,
                        const chips::Catalogue& catalogue) {
  const chips::Chip* chip = find_chip(device, catalogue);
  if (job.train.dtype != "bf16" || chip == nullptr || chip->has_bf16) return;
  fail_usage("{} has no bf16: set train.dtype = \"auto\" (is \"bf16\")", device.device);
}

std::vector<Candidate> gather_candidates(const JobConfig& job,
                                         const FleetConfig& fleet,
                                         const chips::Catalogue& catalogue,
                                         const Probe* probe) {
  std::vector<Candidate> candidates;
  // A fleet has few kinds of device and may have 100,000 devices: each kind is thought about once.
  std::map<std::string, Candidate> known;
  for (const FleetSite& site : fleet.sites) {
    for (const FleetDevice& device : site.devices) {
      const std::string kind =
          fmt::format("{} {} {}", device.device, device.chip, device.cores.size());
      auto found = known.find(kind);
      if (found == known.end()) {
        refuse_wrong_dtype(job, device, catalogue);
        const double memory_bytes = device_memory_bytes(device, fleet, catalogue);
        found =
            known
                .emplace(kind,
                         Candidate{&site,
                                   &device,
                                   profile_device(device, job, fleet, catalogue, probe),
                                   memory_bytes,
                                   largest_microbatch(device.device, site.name, memory_bytes, job)})
                .first;
      }
      Candidate candidate = found->second;
      candidate.site = &site;
      candidate.device = &device;
      candidates.push_back(std::move(candidate));
    }
  }
  return candidates;
}

/// The fewest equal cuts of the share that fit; the last may be smaller.
int64_t choose_microbatch(int64_t sequences, int64_t microbatch_max) {
  const int64_t num_microbatches = (sequences + microbatch_max - 1) / microbatch_max;
  return (sequences + num_microbatches - 1) / num_microbatches;
}

DevicePlan plan_device(const Candidate& candidate, int64_t sequences, const JobConfig& job) {
  DevicePlan device;
  device.device = candidate.device->device;
  device.node = candidate.device->node;
  device.cores = candidate.device->cores;
  device.faults = candidate.device->faults;
  device.predicted_step_s = candidate.pace().time_s(sequences);
  device.predicted_tokens_s =
      static_cast<double>(sequences * job.data.sequence_length) / device.predicted_step_s;
  device.predicted_memory.buffers =
      candidate.profile.memory_bytes > 0
          ? static_cast<double>(candidate.profile.memory_bytes)
          : training_memory_bytes(job.model,
                                  job.data.sequence_length,
                                  choose_microbatch(sequences, candidate.microbatch_max));
  device.memory_bytes = candidate.memory_bytes;
  device.measured = candidate.profile.measured;
  return device;
}

/// What a site's step waits for: "A100 80GB SXM compute", "cpu compute", ...
std::string name_bound(const Candidate& slowest,
                       const PipelinePlan& pipeline,
                       const JobConfig& job,
                       const chips::Catalogue& catalogue) {
  const chips::Chip* chip = find_chip(*slowest.device, catalogue);
  if (chip == nullptr) return slowest.device->device + " compute";
  const Roofline line = chip_roofline(*chip, job);
  const double sequences = static_cast<double>(pipeline.sequences);
  const double microbatches = static_cast<double>(pipeline.num_microbatches());
  const double compute_s = sequences * line.sequence_compute_s;
  const double launch_s = microbatches * line.microbatch_launch_s;
  const double memory_s =
      sequences * line.sequence_memory_s + microbatches * line.microbatch_memory_s + line.step_s;
  if (launch_s > std::max(compute_s, memory_s)) return chip->name + " launches";
  return chip->name + (compute_s >= memory_s ? " compute" : " memory");
}

void fill_sites(const std::vector<Candidate>& candidates,
                const Balance& balance,
                const JobConfig& job,
                const FleetConfig& fleet,
                const chips::Catalogue& catalogue,
                Plan& plan) {
  size_t candidate_idx = 0;
  int64_t first_sequence = 0;
  for (const FleetSite& fleet_site : fleet.sites) {
    SitePlan site;
    site.name = fleet_site.name;
    site.listen = fleet_site.listen;
    site.first_sequence = first_sequence;
    const Candidate* slowest = nullptr;
    size_t slowest_idx = 0;
    for (size_t i = 0; i < fleet_site.devices.size(); ++i, ++candidate_idx) {
      const Candidate& candidate = candidates[candidate_idx];
      site.devices.push_back(plan_device(candidate, balance.sequences[candidate_idx], job));
      PipelinePlan pipeline;
      pipeline.sequences = balance.sequences[candidate_idx];
      pipeline.microbatch = choose_microbatch(pipeline.sequences, candidate.microbatch_max);
      pipeline.stages = {{.first_block = 0,
                          .last_block = job.model.num_hidden_layers,
                          .ranks = {static_cast<int>(i)}}};
      pipeline.predicted_step_s = site.devices.back().predicted_step_s;
      site.batch_sequences += pipeline.sequences;
      site.pipelines.push_back(std::move(pipeline));
      if (site.devices.back().predicted_step_s > site.predicted_step_s) {
        site.predicted_step_s = site.devices.back().predicted_step_s;
        slowest = &candidate;
        slowest_idx = i;
      }
    }
    site.bound_by = name_bound(*slowest, site.pipelines[slowest_idx], job, catalogue);
    if (site.predicted_step_s < 0.95 * balance.step_s) site.bound_by = "waits for a slower site";
    first_sequence += site.batch_sequences;
    plan.sites.push_back(std::move(site));
  }
}

/// A device that slows all others with a single sequence is kept, but named: with whole sequences
/// there is no smaller share to give it.
void warn_of_brakes(const std::vector<Candidate>& candidates,
                    const Balance& balance,
                    const BatchRange& range,
                    int64_t sequence_length,
                    Plan& plan) {
  std::set<std::string> named;
  for (size_t i = 0; i < candidates.size() && candidates.size() > 1; ++i) {
    const Pace pace = candidates[i].pace();
    const bool is_brake = balance.sequences[i] == 1 && pace.time_s(1) >= balance.step_s;
    if (!is_brake || !named.insert(candidates[i].device->device).second) continue;
    std::vector<Pace> others;
    for (const Candidate& other : candidates) {
      if (other.device->device != candidates[i].device->device) others.push_back(other.pace());
    }
    if (others.empty()) continue;
    const double with = balance.sequences_a_second() * static_cast<double>(sequence_length);
    const double without =
        balance_batch(others, range).sequences_a_second() * static_cast<double>(sequence_length);
    if (without < 1.01 * with) continue;
    plan.warnings.push_back(
        fmt::format("{} of site \"{}\" holds the others back: one sequence takes it {:.3f} s; the "
                    "fleet would do {:.0f} tokens/s without it, {:.0f} with it",
                    candidates[i].device->device,
                    candidates[i].site->name,
                    pace.time_s(1),
                    without,
                    with));
  }
}

void warn_of_memory(const std::vector<Candidate>& candidates, const JobConfig& job, Plan& plan) {
  double on_host_bytes = 0;
  std::set<std::string> named;
  for (size_t i = 0, site = 0, first = 0; i < candidates.size(); ++i) {
    while (i - first >= plan.sites[site].devices.size()) first += plan.sites[site++].devices.size();
    const DevicePlan& device = plan.sites[site].devices[i - first];
    if (runs_on_host(device.device)) on_host_bytes += device.predicted_memory.total();
    if (candidates[i].microbatch_max == job.train.microbatch_sequences) continue;
    if (!named.insert(device.device).second) continue;
    plan.warnings.push_back(
        fmt::format("{} has memory for {} sequences at once, not for the {} of "
                    "train.microbatch_sequences: it takes them in smaller cuts",
                    device.device,
                    candidates[i].microbatch_max,
                    job.train.microbatch_sequences));
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

void refuse_small_batch(const BatchRange& range, size_t num_devices) {
  if (static_cast<int64_t>(num_devices) <= range.hi()) return;
  fail_usage(
      "train.batch_sequences = {} is too small for {} devices, which take at least one "
      "sequence each: set it to {} or more",
      range.asked,
      num_devices,
      num_devices);
}

int64_t choose_steps(const TrainConfig& train, double step_s) {
  if (train.steps > 0) return train.steps;
  const double steps = std::floor(train.minutes * 60 / step_s);
  return steps >= static_cast<double>(kStepsMax)
             ? kStepsMax
             : std::max<int64_t>(1, static_cast<int64_t>(steps));
}

}  // namespace

Plan make_plan(const JobConfig& job,
               const FleetConfig& fleet,
               const chips::Catalogue& catalogue,
               const Probe* probe,
               double host_cores) {
  if (probe != nullptr && probe->job_hash != probe_hash(job, fleet)) {
    fail_usage(
        "the probe was made for another model, sequence length, microbatch, dtype or "
        "slowdown; run `pelago probe` again");
  }
  const std::vector<Candidate> candidates = gather_candidates(job, fleet, catalogue, probe);
  const BatchRange range{job.train.batch_sequences};
  refuse_small_batch(range, candidates.size());
  std::vector<Pace> paces;
  for (const Candidate& candidate : candidates) paces.push_back(candidate.pace());
  const Balance balance = balance_batch(paces, range);

  Plan plan;
  plan.job_name = job.name;
  plan.steps = choose_steps(job.train, balance.step_s);
  plan.batch_sequences = balance.batch;
  plan.sequence_length = job.data.sequence_length;
  plan.num_parameters = job.model.num_parameters();
  plan.num_blocks = job.model.num_hidden_layers;
  plan.links = fleet.links;
  plan.exchange = job.sites;
  if (fleet.sites.size() == 1) plan.exchange.fragments = 0;
  plan.emulation_slowdown = fleet.emulation_slowdown;
  plan.emulation_memory_bytes = fleet.emulation_memory_gib.value_or(0) * kGib;
  plan.predicted_tokens_s =
      balance.sequences_a_second() * static_cast<double>(job.data.sequence_length);
  plan.host_cores = host_cores;
  fill_sites(candidates, balance, job, fleet, catalogue, plan);
  check_host(probe, plan);
  check_lines(plan);
  warn_of_brakes(candidates, balance, range, job.data.sequence_length, plan);
  warn_of_memory(candidates, job, plan);
  warn_of_short_run(job, plan);
  return plan;
}

}  // namespace pelago::plan
