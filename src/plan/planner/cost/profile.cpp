#include "plan/planner/profile.h"

#include <unistd.h>

#include <algorithm>

#include "base/error.h"

namespace pelago::plan {

namespace {

constexpr double kGib = 1024.0 * 1024.0 * 1024.0;
constexpr double kHalfBytes = 2;  // bf16 and fp16

// Optimizer traffic a parameter: reads f32 master, gradient and both moments (16 bytes), the
// gradient once more for its norm (4), writes master, moments (12) and the bf16 weight (2).
constexpr double kOptimizerBytes = 34;

// A processor core of which nothing is known: what a 2.5 GHz core with 256-bit vectors reaches in
// f32 matrix products, and its share of two memory channels. Deliberately low; probe for the truth.
constexpr double kCoreFlops = 50e9;
constexpr double kCoreBytesPerSecond = 8e9;

// Operators that are started for one layer of a microbatch, forward and backward, beside the
// layers, and for the optimizer, where each of chips/kernels.h is one. Fitted to probes of the 10m
// preset on three emulated chips: about 180 in all.
constexpr double kOperatorsPerLayer = 32;
constexpr double kOperatorsBeside = 30;
constexpr double kOperatorsPerStep = 20;
// What an accelerator spends on starting an operator that the host has queued well ahead.
constexpr double kLaunchS = 2e-6;

Roofline roofline(const JobConfig& job, double flops, double bytes_per_second, double launch_s) {
  const auto tokens = static_cast<double>(job.data.sequence_length);
  const auto parameters = static_cast<double>(job.model.num_parameters());
  const auto layers = static_cast<double>(job.model.num_hidden_layers);
  Roofline line;
  // Backward does the products of forward twice: for the input's gradient and for the weight's.
  line.sequence_compute_s =
      3 * job.model.forward_flops_per_token(job.data.sequence_length) * tokens / flops;
  // Each kept value is written once and read once going forward, and the same for its gradient with
  // one more read of the value itself.
  const double activation_bytes = 5 * kHalfBytes * tokens * layers * activation_values(job.model);
  line.sequence_memory_s = activation_bytes / bytes_per_second;
  // Weights are read forward and backward, their gradients written, read, and added up in f32.
  line.microbatch_memory_s = (4 * kHalfBytes + 8) * parameters / bytes_per_second;
  line.microbatch_launch_s = (kOperatorsPerLayer * layers + kOperatorsBeside) * launch_s;
  line.step_s = kOptimizerBytes * parameters / bytes_per_second + kOperatorsPerStep * launch_s;
  return line;
}

}  // namespace

double activation_values(const model::ModelConfig& model) {
  const auto hidden = static_cast<double>(model.hidden_size);
  const auto feed_forward = static_cast<double>(model.intermediate_size);
  const auto queries = static_cast<double>(model.num_attention_heads * model.head_dim);
  const auto keys = static_cast<double>(model.num_key_value_heads * model.head_dim);
  // Block input, both norms' results, the sum between, attention's and the block's output: 6 D.
  // Queries: projected, normed, rotated, attended; keys and values: projected, then normed and
  // rotated keys. Gate, up and their product: 3 F. Attention keeps no probabilities.
  return 6 * hidden + 4 * queries + 4 * keys + 3 * feed_forward;
}

Roofline chip_roofline(const chips::Chip& chip, const JobConfig& job) {
  return roofline(job, chip.training_gemm_tflops() * 1e12, chip.memory_gb_s * 1e9, kLaunchS);
}

Roofline processor_roofline(const JobConfig& job, double num_cores) {
  // A processor queues nothing: starting an operator is a function call of about a microsecond.
  constexpr double kCallS = 1e-6;
  return roofline(job, kCoreFlops * num_cores, kCoreBytesPerSecond * num_cores, kCallS);
}

const chips::Chip* find_chip(const FleetDevice& device, const chips::Catalogue& catalogue) {
  return device.chip.empty() ? nullptr : &catalogue.find(device.chip);
}

DeviceProfile profile_device(const FleetDevice& device,
                             const JobConfig& job,
                             const FleetConfig& fleet,
                             const chips::Catalogue& catalogue,
                             const Probe* probe) {
  if (probe != nullptr) {
    const auto found = probe->devices.find(device.device);
    if (found != probe->devices.end()) return found->second;
    fail_usage("the probe has no figures for {}; run `pelago probe` again", device.device);
  }
  const chips::Chip* chip = find_chip(device, catalogue);
  if (chip == nullptr && device.device != "cpu") {
    fail_usage(
        "the pace of {} is not known: run `pelago probe`, or name its kind in fleet.toml, as "
        "in chip = \"{}\"",
        device.device,
        catalogue.chips().front().id);
  }
  const Roofline line =
      chip != nullptr
          ? chip_roofline(*chip, job)
          : processor_roofline(job, static_cast<double>(std::max<size_t>(device.cores.size(), 1)));
  const double slowdown = is_emulated(device.device) ? fleet.emulation_slowdown : 1.0;
  DeviceProfile profile;
  profile.device = device.device;
  profile.sequence_s = (line.sequence_compute_s + line.sequence_memory_s) * slowdown;
  profile.microbatch_s = (line.microbatch_memory_s + line.microbatch_launch_s) * slowdown;
  profile.step_s = line.step_s * slowdown;
  return profile;
}

double host_memory_bytes() {
  return static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGE_SIZE));
}

double device_memory_bytes(const FleetDevice& device,
                           const FleetConfig& fleet,
                           const chips::Catalogue& catalogue) {
  if (is_emulated(device.device) && fleet.emulation_memory_gib) {
    return *fleet.emulation_memory_gib * kGib;
  }
  if (const chips::Chip* chip = find_chip(device, catalogue)) {
    return (chip->usable_memory_gib > 0 ? chip->usable_memory_gib : chip->memory_gib) * kGib;
  }
  return device.device == "cpu" ? host_memory_bytes() : 0;
}

double training_memory_bytes(const model::ModelConfig& model,
                             int64_t sequence_length,
                             int64_t microbatch) {
  const auto length = static_cast<double>(sequence_length);
  const auto tokens = length * static_cast<double>(microbatch);
  const auto parameters = static_cast<double>(model.num_parameters());
  // bf16: weight 2, its gradient 2, f32 master 4, summed gradient 4, two moments 8. f32: weight and
  // master are one (4), gradient 4, summed gradient 4, moments 8. Both are 20.
  const double lasting_bytes = 20 * parameters;
  const double activation_bytes =
      kHalfBytes * tokens * static_cast<double>(model.num_hidden_layers) * activation_values(model);
  // Backward of one layer's attention makes its probabilities and their gradient again, in f32,
  // with one product between them.
  const double attention_bytes =
      3 * 4 * tokens * length * static_cast<double>(model.num_attention_heads);
  // The head never holds all logits: a chunk of 512 tokens as four f32 values and a rounded one a
  // logit; beside it the f32 gradient of the head, twice while it grows, and the hidden states with
  // theirs.
  const double head_bytes = 18 * std::min(tokens, 512.0) * static_cast<double>(model.vocab_size) +
                            8 * static_cast<double>(model.vocab_size * model.hidden_size) +
                            2 * kHalfBytes * tokens * static_cast<double>(model.hidden_size);
  // When the optimizer runs, activations are gone; a chip without a fused AdamW then holds the
  // scaled gradient and the denominator, or the gradient in f64 for its norm.
  const double optimizer_bytes = 8 * parameters;
  return lasting_bytes +
         std::max(optimizer_bytes, activation_bytes + std::max(attention_bytes, head_bytes));
}

}  // namespace pelago::plan
