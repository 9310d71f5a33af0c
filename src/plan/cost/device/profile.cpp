#include "plan/cost/device/profile.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "plan/cost/device/links.h"
#include "plan/cost/device/operators.h"
#include "plan/cost/device/profile_key.h"

namespace pelago::plan {

namespace {

constexpr double kGib = 1024.0 * 1024.0 * 1024.0;

// A processor core of which nothing is known: what a 2.5 GHz core with 256-bit vectors reaches in
// f32 matrix products, and its share of two memory channels. Deliberately low; probe for the truth.
constexpr double kCoreFlops = 50e9;
constexpr double kCoreBytesPerSecond = 8e9;
// A processor queues nothing: starting an operator is a function call of about a microsecond.
constexpr double kCallS = 1e-6;
// What an accelerator spends on starting an operator that the host has queued well ahead.
constexpr double kLaunchS = 2e-6;

std::string dtype_of(const JobConfig& job, const chips::Chip* chip) {
  if (job.train.dtype != "auto") return job.train.dtype;
  if (chip == nullptr) return "f32";
  return chip->has_bf16 ? "bf16" : "fp16";
}

DeviceRates rates_of(const FleetDevice& device, const JobConfig& job, const chips::Chip* chip) {
  DeviceRates rates;
  const bool is_f32 = dtype_of(job, chip) == "f32";
  rates.value_bytes = is_f32 ? 4 : 2;
  if (chip == nullptr) {
    const auto num_cores = static_cast<double>(std::max<size_t>(device.cores.size(), 1));
    rates.flop_s = kCoreFlops * num_cores;
    rates.bytes_s = kCoreBytesPerSecond * num_cores;
    rates.launch_s = kCallS;
    return rates;
  }
  // Where no figure is published, f32 has 1/4 (910B, MLU370) to 1/16 (A100) of the 16-bit peak.
  const double gemm_flop_s = chip->training_gemm_tflops() * 1e12;
  rates.flop_s =
      !is_f32 ? gemm_flop_s : (chip->fp32_tflops ? *chip->fp32_tflops * 1e12 : gemm_flop_s / 8);
  rates.bytes_s = chip->memory_gb_s * 1e9;
  rates.launch_s = kLaunchS;
  return rates;
}

/// The line through the times of a quarter of a microbatch and of a whole one.
template <typename Time>
LinearCost fit(int64_t microbatch, const Time& time_of) {
  const auto large = static_cast<double>(microbatch);
  const double small = std::max(1.0, std::floor(large / 4));
  const double large_s = time_of(large).total();
  if (large <= small) {
    const double launch_s = time_of(large).launch_s;
    return {launch_s, (large_s - launch_s) / large};
  }
  const double sequence_s = (large_s - time_of(small).total()) / (large - small);
  return {large_s - large * sequence_s, sequence_s};
}

DeviceProfile catalogue_profile(const FleetDevice& device,
                                const JobConfig& job,
                                const chips::Chip* chip,
                                double slowdown) {
  const DeviceRates rates = rates_of(device, job, chip);
  const ModelSizes sizes = sizes_of(job, job.data.sequence_length);
  const auto timed = [&](auto&& operators) {
    return fit(job.train.microbatch_sequences,
               [&](double sequences) { return operators(sizes, rates, sequences); })
        .times(slowdown);
  };
  DeviceProfile profile;
  profile.device = device.device;
  profile.dtype = dtype_of(job, chip);
  // An emulated chip goes at the catalogue's pace, whatever the real one does.
  if (chip != nullptr && !is_emulated(device.device)) {
    const chips::Interval ratios = pace_ratios(*chip);
    profile.least_ratio = ratios.lo;
    profile.most_ratio = ratios.hi;
  }
  profile.block_forward = timed(block_forward_time);
  profile.block_backward = timed(block_backward_time);
  profile.embedding = timed(embedding_time);
  profile.head = timed(head_time);
  const auto parameters = static_cast<double>(num_parameters(job));
  profile.update_s = slowdown * update_time(rates, 0, 0).total();
  profile.update_run_s = slowdown * update_time(rates, 0, 1).total() - profile.update_s;
  profile.update_parameter_s =
      (slowdown * update_time(rates, parameters, 0).total() - profile.update_s) / parameters;
  if (job.train.has_muon()) {
    const double more_s = muon_time(sizes, rates).total() - block_adamw_time(sizes, rates).total();
    profile.update_block_s = slowdown * std::max(0.0, more_s);
  }
  return profile;
}

}  // namespace

// A peak that only the press gives may be off by what the published shares of the 910B's peaks
// differ by: 0.30 to 0.52 of it, 0.73 to 1.27 of their middle. Where a chip has such shares of its
// own they count.
chips::Interval pace_ratios(const chips::Chip& chip) {
  const auto& mfu = chip.train_mfu;
  if (mfu && mfu->lo > 0 && mfu->hi > mfu->lo) {
    return {mfu->middle() / mfu->hi, mfu->middle() / mfu->lo};
  }
  const bool is_official =
      chip.peak_confidence.starts_with("datasheet") || chip.peak_confidence.starts_with("vendor");
  return is_official ? chips::Interval{1, 1} : chips::Interval{1 / 1.27, 1 / 0.73};
}

double value_bytes(const std::string& dtype) { return dtype == "f32" ? 4 : 2; }

const chips::Chip* find_chip(const FleetDevice& device, const chips::Catalogue& catalogue) {
  return device.chip.empty() ? nullptr : &catalogue.find(device.chip);
}

void refuse_wrong_dtype(const JobConfig& job,
                        const FleetDevice& device,
                        const chips::Catalogue& catalogue) {
  const chips::Chip* chip = find_chip(device, catalogue);
  if (job.train.dtype != "bf16" || chip == nullptr || chip->has_bf16) return;
  fail_usage("{} has no bf16: set train.dtype = \"auto\" (is \"bf16\")", device.device);
}

DeviceProfile profile_device(const std::string& site,
                             const FleetDevice& device,
                             const JobConfig& job,
                             const FleetConfig& fleet,
                             const chips::Catalogue& catalogue,
                             const Probe* probe,
                             int num_cards) {
  refuse_wrong_dtype(job, device, catalogue);
  const chips::Chip* chip = find_chip(device, catalogue);
  const double slowdown = is_emulated(device.device) ? fleet.emulation_slowdown : 1.0;
  DeviceProfile profile;
  if (probe != nullptr) {
    const DeviceProfile* measured = find_profile(probe->devices, site, device.node, device.device);
    if (measured == nullptr) {
      fail_usage("the probe has no figures for {} of site \"{}\"; run `pelago probe` again",
                 device.device,
                 site);
    }
    profile = *measured;
    if (profile.dtype.empty()) profile.dtype = dtype_of(job, chip);
  } else if (chip == nullptr && device.device != "cpu") {
    fail_usage(
        "the pace of {} is not known: run `pelago probe`, or name its kind in fleet.toml, as "
        "in chip = \"{}\"",
        device.device,
        catalogue.chips().front().id);
  } else {
    profile = catalogue_profile(device, job, chip, slowdown);
  }
  const LinkCosts links = link_costs(chip, num_cards);
  if (profile.host_byte_s == 0) {
    profile.host_byte_s = slowdown * links.host_byte_s;
    profile.host_copy_s = slowdown * links.host_copy_s;
  }
  if (profile.group_byte_s == 0) {
    profile.group_byte_s = slowdown * links.group_byte_s;
    profile.pair_byte_s = slowdown * links.pair_byte_s;
    // The emulator's collectives have one hop of 5 us, however many cards there are. Operators of
    // 2 us bring the values into place: one before a block's tokens are gathered, one before and
    // one after its sums are scattered, three about gradients.
    constexpr double kHopS = 5e-6, kOperatorS = 2e-6;
    constexpr double kEmulatedCallS = kHopS + 1.5 * kOperatorS;
    const bool is_emulating = is_emulated(device.device);
    profile.group_call_s = is_emulating ? slowdown * kEmulatedCallS : links.group_call_s;
    profile.reduce_place_s = is_emulating ? slowdown * 1.5 * kOperatorS : 0;
    profile.group_hop_s = is_emulating ? 0 : links.group_hop_s;
  }
  return profile;
}

double device_power_w(const FleetDevice& device, const chips::Catalogue& catalogue) {
  if (device.power_w > 0) return device.power_w;
  const chips::Chip* chip = find_chip(device, catalogue);
  return chip == nullptr ? 0 : chip->power_w;
}

double host_memory_bytes() {
  return static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGE_SIZE));
}

double device_memory_bytes(const FleetDevice& device,
                           const FleetConfig& fleet,
                           const chips::Catalogue& catalogue) {
  if (device.memory_gib > 0) return device.memory_gib * kGib;
  if (is_emulated(device.device) && fleet.emulation_memory_gib) {
    return *fleet.emulation_memory_gib * kGib;
  }
  if (const chips::Chip* chip = find_chip(device, catalogue)) {
    return (chip->usable_memory_gib > 0 ? chip->usable_memory_gib : chip->memory_gib) * kGib;
  }
  return device.device == "cpu" ? host_memory_bytes() : 0;
}

std::string name_bound(const FleetDevice& device,
                       const JobConfig& job,
                       const chips::Catalogue& catalogue,
                       int64_t microbatch) {
  const chips::Chip* chip = find_chip(device, catalogue);
  if (chip == nullptr) return "compute";
  const DeviceRates rates = rates_of(device, job, chip);
  const ModelSizes sizes = sizes_of(job, job.data.sequence_length);
  const auto sequences = static_cast<double>(microbatch);
  const OperatorTime forward = block_forward_time(sizes, rates, sequences);
  const OperatorTime backward = block_backward_time(sizes, rates, sequences);
  const double compute_s = forward.compute_s + backward.compute_s;
  const double memory_s = forward.memory_s + backward.memory_s;
  const double launch_s = forward.launch_s + backward.launch_s;
  if (launch_s > std::max(compute_s, memory_s)) return "launches";
  return compute_s >= memory_s ? "compute" : "memory";
}

}  // namespace pelago::plan
