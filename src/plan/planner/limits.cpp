#include "plan/planner/limits.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "base/error.h"
#include "plan/planner/profile.h"

namespace pelago::plan {

namespace {

constexpr double kGib = 1024.0 * 1024.0 * 1024.0;
constexpr double kHostShareMax = 0.85;

std::string largest_fitting_preset(const JobConfig& job, double memory_bytes) {
  std::string largest;
  int64_t largest_parameters = 0;
  for (const std::string& name : model::preset_names()) {
    model::ModelConfig config = model::preset(name);
    config.vocab_size = job.model.vocab_size;
    if (training_memory_bytes(config, job.data.sequence_length, 1) > memory_bytes) continue;
    if (config.num_parameters() <= largest_parameters) continue;
    largest = name;
    largest_parameters = config.num_parameters();
  }
  return largest;
}

// 4129 becomes 4200: two digits are as many as a measurement of load deserves.
double round_up_to_two_digits(double value) {
  const double unit = std::pow(10.0, std::floor(std::log10(value)) - 1);
  return std::ceil(value / unit) * unit;
}

struct HostLoad {
  double emulated = 0;    // processors
  double processors = 0;  // processors that devices called "cpu" compute on
  std::map<int, double> by_core;
};

HostLoad load_of(const Plan& plan, const Probe& probe) {
  double step_s = 0;
  for (const SitePlan& site : plan.sites) step_s = std::max(step_s, site.predicted_step_s);
  HostLoad load;
  for (const SitePlan& site : plan.sites) {
    for (const DevicePlan& device : site.devices) {
      const double busy_share = device.predicted_step_s / step_s;
      const auto num_cores = static_cast<double>(std::max<size_t>(device.cores.size(), 1));
      double busy = 0;
      if (is_emulated(device.device)) {
        busy = probe.devices.at(device.device).host_busy_ratio * busy_share;
        load.emulated += busy;
      } else if (device.device == "cpu") {
        busy = num_cores * busy_share;
        load.processors += busy;
      }
      for (const int core : device.cores) load.by_core[core] += busy / num_cores;
    }
  }
  return load;
}

void refuse_overload(const HostLoad& load, const Plan& plan) {
  const double allowed = kHostShareMax * plan.host_cores - load.processors;
  if (load.emulated <= allowed) return;
  if (allowed <= 0) {
    fail_usage(
        "the emulated chips and the devices \"cpu\" need {:.1f} processors, this machine has "
        "{:g}: take \"cpu\" out of the fleet",
        load.emulated + load.processors,
        plan.host_cores);
  }
  fail_usage(
      "the emulated chips need {:.1f} processors, this machine has {:g}{}: set "
      "emulation.slowdown to at least {:g} (is {:g})",
      load.emulated,
      plan.host_cores,
      load.processors > 0 ? fmt::format(" and \"cpu\" takes {:.1f} of them", load.processors)
                          : fmt::format(" and {:.0f} % of that may be used", 100 * kHostShareMax),
      round_up_to_two_digits(plan.emulation_slowdown * load.emulated / allowed),
      plan.emulation_slowdown);
}

/// Bytes of so many quantised values: the levels, and one f32 scale for every 64 of them.
double quantised_bytes(double values, int bits) {
  return values * bits / 8 + (bits == 32 ? 0 : 4 * values / 64);
}

}  // namespace

int64_t largest_microbatch(const std::string& device,
                           const std::string& site,
                           double memory_bytes,
                           const JobConfig& job) {
  const auto needed = [&](int64_t microbatch) {
    return training_memory_bytes(job.model, job.data.sequence_length, microbatch);
  };
  if (memory_bytes <= 0) return job.train.microbatch_sequences;
  for (int64_t fits = 1, too_many = job.train.microbatch_sequences + 1;
       needed(1) <= memory_bytes;) {
    if (too_many - fits == 1) return fits;
    const int64_t middle = fits + (too_many - fits) / 2;
    (needed(middle) <= memory_bytes ? fits : too_many) = middle;
  }
  const std::string preset = largest_fitting_preset(job, memory_bytes);
  fail_usage(
      "{} of site \"{}\" has {:.2f} GiB, and this model of {:.1f} M parameters needs {:.2f} "
      "GiB with one sequence at a time: {:.2f} GiB are missing; {}",
      device,
      site,
      memory_bytes / kGib,
      static_cast<double>(job.model.num_parameters()) / 1e6,
      needed(1) / kGib,
      (needed(1) - memory_bytes) / kGib,
      preset.empty()
          ? "not even the smallest preset would fit: take this chip out"
          : fmt::format("the largest preset that fits is model.preset = \"{}\"", preset));
}

void check_host(const Probe* probe, Plan& plan) {
  if (plan.emulation_slowdown == 0 || probe == nullptr) return;
  const HostLoad load = load_of(plan, *probe);
  plan.host_load = load.emulated + load.processors;
  refuse_overload(load, plan);
  for (const auto& [core, busy] : load.by_core) {
    if (busy <= 1) continue;
    plan.warnings.push_back(
        fmt::format("processor {} carries the work of {:.2f} processors: spread the devices by "
                    "cores = [...] in fleet.toml, or raise emulation.slowdown",
                    core,
                    busy));
  }
}

void check_lines(Plan& plan) {
  const SitesConfig& exchange = plan.exchange;
  if (exchange.fragments == 0) return;
  double step_s = 0;
  for (const SitePlan& site : plan.sites) step_s = std::max(step_s, site.predicted_step_s);
  const auto num_sites = static_cast<double>(plan.sites.size());
  const double fragment_bytes =
      quantised_bytes(static_cast<double>(plan.num_parameters), exchange.delta_bits) /
      static_cast<double>(exchange.fragments);
  const double interval_s =
      step_s * static_cast<double>(exchange.inner_steps) / static_cast<double>(exchange.fragments);
  const double overlap_s = step_s * static_cast<double>(exchange.overlap_steps);
  // Each site sends a slice of its delta to every other, and its slice of the mean to every other.
  const double line_bits = 8 * fragment_bytes * 2 / num_sites;
  plan.predicted_line_mbit_s = line_bits * (num_sites - 1) / interval_s / 1e6;
  for (const FleetLink& link : plan.links) {
    // Three one-way trips beside the bytes: deltas, means, and the word that all have them.
    const double transfer_s = line_bits / (link.bandwidth_mbit_s * 1e6) + 1.5 * link.rtt_ms / 1e3;
    const std::string line = fmt::format("the line {} - {}", link.from, link.to);
    if (transfer_s > interval_s) {
      plan.warnings.push_back(
          fmt::format("{} needs {:.1f} Mbit/s and gives {:g}: sites will wait; raise "
                      "sites.inner_steps to {} or lower sites.delta_bits",
                      line,
                      line_bits / interval_s / 1e6,
                      link.bandwidth_mbit_s,
                      exchange.fragments * static_cast<int64_t>(std::ceil(transfer_s / step_s))));
    } else if (transfer_s > overlap_s) {
      const auto hiding_steps = static_cast<int64_t>(std::ceil(transfer_s / step_s));
      plan.warnings.push_back(
          fmt::format("{} needs {:.2f} s for a fragment, and the sites compute only {:.2f} s "
                      "meanwhile: set sites.overlap_steps = {}{}",
                      line,
                      transfer_s,
                      overlap_s,
                      hiding_steps,
                      hiding_steps < exchange.inner_steps / exchange.fragments
                          ? ""
                          : fmt::format(" and sites.inner_steps = {}",
                                        (hiding_steps + 1) * exchange.fragments)));
    }
  }
}

}  // namespace pelago::plan
