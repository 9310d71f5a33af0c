#include "plan/planner/limits.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "base/error.h"
#include "plan/across/joint.h"
#include "plan/cost/device/profile.h"
#include "plan/cost/device/profile_key.h"
#include "plan/cost/lines.h"
#include "plan/cost/memory.h"
#include "plan/planner/search/layout.h"

namespace pelago::plan {

namespace {

constexpr double kGib = 1024.0 * 1024.0 * 1024.0;
constexpr double kHostShareMax = 0.85;

double total_memory_bytes(const SiteProblem& problem) {
  double sum = 0;
  for (const Kind& kind : problem.kinds) {
    sum += static_cast<double>(kind.count) * kind.memory_bytes;
  }
  return sum;
}

/// The same devices, asked only whether a model has room: in any cut, with the least in flight.
SiteProblem modest(const SiteProblem& problem, const model::ModelConfig& model) {
  SiteProblem modest = problem;
  modest.sizes = sizes_of(model, static_cast<int64_t>(problem.sizes.tokens));
  modest.train.microbatch_sequences = 1;
  return modest;
}

std::string largest_fitting_preset(const SiteProblem& problem, const JobConfig& job) {
  std::string largest;
  int64_t largest_parameters = 0;
  for (const std::string& name : model::preset_names()) {
    model::ModelConfig config = model::preset(name);
    config.vocab_size = job.model.vocab_size;
    if (config.num_parameters() <= largest_parameters) continue;
    if (!find_layout(modest(problem, config))) continue;
    largest = name;
    largest_parameters = config.num_parameters();
  }
  return largest;
}

/// Of all devices of the site, when each holds a share of the blocks in proportion to its memory.
double least_needed_bytes(const SiteProblem& problem) {
  const double has = total_memory_bytes(problem);
  const double blocks = static_cast<double>(problem.sizes.num_blocks);
  double needed = 0;
  int64_t device_idx = 0;
  for (const Kind& kind : problem.kinds) {
    for (int64_t i = 0; i < kind.count; ++i, ++device_idx) {
      StageShape shape;
      shape.num_blocks = static_cast<int64_t>(std::ceil(blocks * kind.memory_bytes / has));
      shape.has_embedding = device_idx == 0;
      shape.has_head = device_idx + 1 == problem.num_devices();
      shape.recompute = problem.train.recompute != "never";
      const StageLoad load{.value_bytes = value_bytes(kind.profile.dtype),
                           .is_half = kind.profile.dtype == "fp16",
                           .is_alone = problem.num_devices() == 1,
                           .has_fused_kernels = kind.is_on_this_machine,
                           .has_muon = problem.train.has_muon()};
      needed += stage_memory(problem.sizes, shape, load).total();
    }
  }
  return needed;
}

/// How many more devices like those with most memory would hold the job's model with one sequence
/// at a time, in whole nodes; 0: not known.
int64_t devices_lacking(const SiteProblem& problem) {
  SiteProblem larger = problem;
  larger.train = freest(problem.train);
  Kind& kind = larger.kinds.front();
  const Kind as_it_is = kind;
  const auto per_node = static_cast<int64_t>(kind.nodes.front().size());
  const auto fits_with = [&](int64_t num_nodes) {
    kind = as_it_is;
    for (int64_t node = 0; node < num_nodes; ++node) {
      std::vector<int> ranks;
      for (int64_t i = 0; i < per_node; ++i) {
        ranks.push_back(static_cast<int>(problem.num_devices() + node * per_node + i));
        kind.node_of[ranks.back()] = static_cast<int>(kind.nodes.size());
      }
      kind.nodes.push_back(std::move(ranks));
      kind.count += per_node;
    }
    larger.batch = 4 * larger.num_devices();
    return find_layout(larger).has_value();
  };
  // From what the missing bytes come to, upward in small steps.
  constexpr int kTries = 16;
  const double missing = least_needed_bytes(problem) - total_memory_bytes(problem);
  auto num_nodes = static_cast<int64_t>(
      std::max(0.0, missing / kind.memory_bytes / static_cast<double>(per_node)));
  for (int i = 0; i < kTries; ++i) {
    num_nodes += 1 + num_nodes / 8;
    if (fits_with(num_nodes)) return num_nodes * per_node;
  }
  return 0;
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

bool is_measured(const Plan& plan) {
  return std::any_of(plan.profiles.begin(), plan.profiles.end(), [](const auto& profile) {
    return profile.second.measured;
  });
}

HostLoad load_of(const Plan& plan) {
  double step_s = 0;
  for (const SitePlan& site : plan.sites) step_s = std::max(step_s, site.predicted_step_s);
  HostLoad load;
  for (const SitePlan& site : plan.sites) {
    for (const DevicePlan& device : site.devices) {
      const double busy_share = device.predicted_step_s / step_s;
      const auto num_cores = static_cast<double>(std::max<size_t>(device.cores.size(), 1));
      double busy = 0;
      if (is_emulated(device.device)) {
        const DeviceProfile* profile = find_profile(plan, site.name, device);
        PELAGO_ASSERT(profile != nullptr, "a plan has profiles of all its devices");
        busy = profile->host_busy_ratio * busy_share;
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

}  // namespace

void refuse_large_model(const std::string& site, const SiteProblem& problem, const JobConfig& job) {
  std::vector<std::string> kinds;
  for (const Kind& kind : problem.kinds) {
    kinds.push_back(
        fmt::format("{} x {} of {:.2f} GiB", kind.count, kind.device, kind.memory_bytes / kGib));
  }
  const double has = total_memory_bytes(problem);
  if (std::ranges::any_of(problem.kinds, [](const Kind& kind) { return kind.memory_bytes <= 0; })) {
    fail_usage("site \"{}\" ({}): no cut of the model's {} blocks suits these devices",
               site,
               fmt::join(kinds, ", "),
               problem.sizes.num_blocks);
  }
  const double needed = least_needed_bytes(problem);
  const std::string preset = largest_fitting_preset(problem, job);
  const int64_t lacking = devices_lacking(problem);
  const std::string would_do =
      lacking == 0
          ? ""
          : fmt::format("it would fit with {} more {}; ", lacking, problem.kinds.front().device);
  fail_usage(
      "site \"{}\" ({}) has {:.2f} GiB, and this model of {:.1f} M parameters needs {:.2f} GiB "
      "with "
      "one sequence at a time: {}; {}{}",
      site,
      fmt::join(kinds, ", "),
      has / kGib,
      static_cast<double>(num_parameters(job)) / 1e6,
      needed / kGib,
      needed > has ? fmt::format("{:.2f} GiB are missing", (needed - has) / kGib)
                   : "no cut of its blocks fits every device",
      would_do,
      preset.empty()
          ? "not even the smallest preset would fit: take this site out"
          : fmt::format("the largest preset that fits is model.preset = \"{}\"", preset));
}

void check_host(Plan& plan) {
  if (plan.emulation_slowdown == 0 || !is_measured(plan)) return;
  const HostLoad load = load_of(plan);
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

namespace {

/// Of sites in step: lines that cost more of a step than covering them by microbatches can hide.
void warn_of_thin_lines(Plan& plan) {
  constexpr double kNoticeable = 0.1;
  if (plan.predicted_line_share < kNoticeable) return;
  std::string lines;
  for (const FleetLink& link : plan.links) {
    lines += fmt::format("{}{} - {} ({:g} Mbit/s, {:g} ms)",
                         lines.empty() ? "" : ", ",
                         link.from,
                         link.to,
                         link.bandwidth_mbit_s,
                         link.rtt_ms);
  }
  plan.warnings.push_back(fmt::format(
      "stages in several sites wait for the line {}: the pipeline goes at {:.0f} % of the pace "
      "that "
      "it would have in one site; {}",
      lines,
      100 * (1 - plan.predicted_line_share),
      plan.predicted_rounds_tokens_s > plan.predicted_tokens_s
          ? fmt::format("sites.across = \"rounds\" would do {:.0f} tokens/s, not {:.0f}",
                        plan.predicted_rounds_tokens_s,
                        plan.predicted_tokens_s)
          : "larger train.batch_sequences or lower sites.activation_bits help"));
}

}  // namespace

void check_lines(Plan& plan) {
  const SitesConfig& exchange = plan.exchange;
  if (is_joint(plan)) return warn_of_thin_lines(plan);
  if (exchange.fragments == 0) return;
  double step_s = 0;
  for (const SitePlan& site : plan.sites) step_s = std::max(step_s, site.predicted_step_s);
  const ExchangeCosts costs = exchange_costs(plan);
  const double interval_s = costs.interval_s, overlap_s = costs.overlap_s;
  const double line_bits = 8 * costs.line_bytes;
  plan.predicted_line_mbit_s =
      line_bits * static_cast<double>(plan.sites.size() - 1) / interval_s / 1e6;
  for (const FleetLink& link : plan.links) {
    const double transfer_s = costs.seconds(link);
    const std::string line = fmt::format("the line {} - {}", link.from, link.to);
    if (transfer_s > interval_s) {
      plan.warnings.push_back(
          fmt::format("{} needs {:.1f} Mbit/s and gives {:g}: sites will wait and train at {:.0f}% "
                      "of their pace; raise sites.inner_steps to {} or lower sites.delta_bits",
                      line,
                      line_bits / interval_s / 1e6,
                      8e-6 / line_costs(link).slower_byte_s(),
                      100 * interval_s / transfer_s,
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
