#include "train/probe/measure.h"

#include <time.h>

#include <algorithm>
#include <functional>
#include <vector>

#include "base/clock.h"
#include "chips/kernels.h"
#include "chips/torch.h"
#include "model/parts/part.h"
#include "model/parts/stage.h"
#include "plan/cost/sizes.h"

namespace pelago::train {

namespace {

constexpr size_t kRepeatsMin = 3;
constexpr size_t kRepeatsMax = 25;
constexpr double kBudgetS = 0.35;  // of one piece
constexpr int64_t kUpdateValues = 1 << 20;

/// What one run of a piece took.
struct Cost {
  double seconds = 0;     // of the device
  double host_cpu_s = 0;  // of this process, all threads
};

double process_cpu_s() {
  timespec time{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

class Stopwatch {
 public:
  explicit Stopwatch(chips::Device& device) : device_(&device) {}

  /// The median of a few runs; the first one warms up and does not count.
  Cost time(const std::function<void()>& run) const {
    once(run);
    std::vector<Cost> costs;
    const double deadline_s = steady_now_s() + kBudgetS;
    // An emulated chip's clock is exact, and every run puts off the moment at which it is idle.
    const size_t repeats_max = device_->stats().device_busy_s > 0 ? kRepeatsMin : kRepeatsMax;
    while (costs.size() < kRepeatsMin ||
           (costs.size() < repeats_max && steady_now_s() < deadline_s)) {
      costs.push_back(once(run));
    }
    std::nth_element(costs.begin(),
                     costs.begin() + static_cast<std::ptrdiff_t>(costs.size() / 2),
                     costs.end(),
                     [](const Cost& a, const Cost& b) { return a.seconds < b.seconds; });
    return costs[costs.size() / 2];
  }

 private:
  Cost once(const std::function<void()>& run) const {
    const bool has_own_clock = device_->stats().device_busy_s > 0;
    if (!has_own_clock) device_->synchronize();
    const double busy_before_s = device_->stats().device_busy_s;
    const double cpu_before_s = process_cpu_s();
    const double begin_s = steady_now_s();
    run();
    const double busy_s = device_->stats().device_busy_s - busy_before_s;
    if (busy_s == 0) device_->synchronize();
    return {.seconds = busy_s > 0 ? busy_s : steady_now_s() - begin_s,
            .host_cpu_s = process_cpu_s() - cpu_before_s};
  }

  chips::Device* device_;
};

c10::ScalarType training_dtype(const plan::JobConfig& job, const chips::Device& device) {
  if (job.train.dtype == "f32") return torch::kFloat32;
  if (job.train.dtype == "bf16") return torch::kBFloat16;
  return device.training_dtype();
}

std::string name_of(c10::ScalarType dtype) {
  return dtype == torch::kBFloat16 ? "bf16" : dtype == torch::kHalf ? "fp16" : "f32";
}

/// A part of a model of as many blocks as it says, on the device, with weights as good as any.
struct Part {
  Part(const plan::JobConfig& job, const model::ModelPart& held, chips::Device& device)
      : config(with_blocks(job.model, held.num_blocks)),
        weights(torch::full({model::num_values(model::part_specs(config, held))},
                            0.01,
                            torch::TensorOptions()
                                .dtype(training_dtype(job, device))
                                .device(device.torch_device()))),
        gradient(torch::zeros({weights.numel()}, weights.options().dtype(torch::kFloat32))),
        parameters(config, held, weights),
        stage(config, parameters, {}) {}
  static model::ModelConfig with_blocks(model::ModelConfig config, int64_t num_blocks) {
    config.num_hidden_layers = num_blocks;
    return config;
  }
  model::ModelConfig config;
  Tensor weights;   // [n]
  Tensor gradient;  // [n] f32
  model::Parameters parameters;
  model::Stage stage;
};

/// Random tokens and hidden states of a microbatch, on the device.
model::StageInput made_up_input(const plan::JobConfig& job,
                                int64_t sequences,
                                chips::Device& device) {
  const int64_t length = job.data.sequence_length;
  torch::manual_seed(static_cast<uint64_t>(job.train.seed));
  model::StageInput input;
  input.batch = sequences;
  input.num_tokens = length;
  input.tokens = torch::randint(job.model.vocab_size, {sequences, length}, torch::kInt64)
                     .to(device.torch_device());
  input.targets = input.tokens;
  input.hidden = torch::randn({sequences * length, job.model.hidden_size})
                     .to(training_dtype(job, device))
                     .to(device.torch_device());
  return input;
}

struct PieceCosts {
  Cost forward, backward;
  double seconds() const { return forward.seconds + backward.seconds; }
  double host_cpu_s() const { return forward.host_cpu_s + backward.host_cpu_s; }
};

/// Never negative: noise is not a profit.
Cost operator-(const Cost& whole, const Cost& part) {
  return {.seconds = std::max(0.0, whole.seconds - part.seconds),
          .host_cpu_s = std::max(0.0, whole.host_cpu_s - part.host_cpu_s)};
}

PieceCosts operator-(const PieceCosts& whole, const PieceCosts& part) {
  return {whole.forward - part.forward, whole.backward - part.backward};
}

/// With few and with many sequences.
struct AtTwoSizes {
  PieceCosts few, many;
};

AtTwoSizes operator-(const AtTwoSizes& whole, const AtTwoSizes& part) {
  return {whole.few - part.few, whole.many - part.many};
}

/// One part's forward and backward. output_gradient of a part with a head is not read.
PieceCosts time_part(const Stopwatch& stopwatch, Part& part, const model::StageInput& input) {
  const auto forward = [&] { return part.stage.forward(input); };
  const auto both = [&] {
    model::StagePass pass = forward();
    const Tensor gradient = pass.output;
    part.stage.backward(std::move(pass), gradient, 1.0, part.gradient, [](int64_t) {});
  };
  PieceCosts costs;
  costs.forward = stopwatch.time([&] { forward(); });
  const Cost whole = stopwatch.time(both);
  costs.backward = whole - costs.forward;
  return costs;
}

/// The line through two sizes; noise must not make either part negative.
plan::LinearCost fit(double few_s, int64_t few, double many_s, int64_t many) {
  if (few == many) return {.fixed_s = 0, .sequence_s = many_s / static_cast<double>(many)};
  const double slope = (many_s - few_s) / static_cast<double>(many - few);
  const double highest = many_s / static_cast<double>(many);
  plan::LinearCost cost;
  cost.sequence_s = std::clamp(slope, 0.1 * highest, highest);
  cost.fixed_s = many_s - cost.sequence_s * static_cast<double>(many);
  return cost;
}

struct UpdateCosts {
  Cost around;  // clearing gradients, and their norm
  Cost run;     // AdamW
};

/// Of one block's matrices, with Muon.
struct BlockUpdate {
  Cost cost;
  double num_values = 0;  // of all of them together
};
BlockUpdate time_block_update(const Stopwatch& stopwatch,
                              const plan::JobConfig& job,
                              chips::Device& device) {
  const torch::NoGradGuard no_grad;
  const auto f32 = torch::TensorOptions().dtype(torch::kFloat32).device(device.torch_device());
  struct Matrix {
    Tensor master, gradient, m, weights;  // [R,C]
  };
  std::vector<Matrix> matrices;
  BlockUpdate update;
  const model::ModelConfig config = Part::with_blocks(job.model, 1);
  for (const model::PartSpec& spec : model::part_specs(config, model::whole_model(config))) {
    if (!spec.is_block_matrix()) continue;
    const auto dtype = training_dtype(job, device);
    const std::vector<int64_t>& shape = spec.local.shape;
    matrices.push_back({torch::zeros(shape, f32),
                        torch::full(shape, 1e-3, f32),
                        torch::zeros(shape, f32),
                        torch::zeros(shape, f32.dtype(dtype))});
    update.num_values += static_cast<double>(spec.local.num_values());
  }
  update.cost = stopwatch.time([&] {
    for (Matrix& one : matrices) {
      chips::muon_step(one.master, one.gradient, one.m, one.weights, {.lr = 1e-3});
    }
  });
  return update;
}

/// Clipping and AdamW of num_values parameters.
UpdateCosts time_update(const Stopwatch& stopwatch,
                        const plan::JobConfig& job,
                        int64_t num_values,
                        chips::Device& device) {
  const torch::NoGradGuard no_grad;
  const auto f32 = torch::TensorOptions().dtype(torch::kFloat32).device(device.torch_device());
  Tensor master = torch::zeros({num_values}, f32);
  Tensor m = torch::zeros({num_values}, f32);
  Tensor v = torch::zeros({num_values}, f32);
  Tensor gradient = torch::full({num_values}, 1e-3, f32);
  Tensor weights = torch::zeros({num_values}, f32.dtype(training_dtype(job, device)));
  UpdateCosts costs;
  costs.around = stopwatch.time([&] {
    gradient.zero_();
    chips::sum_of_squares(gradient);
  });
  costs.run = stopwatch.time(
      [&] { chips::adamw_step(master, gradient, m, v, weights, {.lr = 1e-3, .step = 1}); });
  return costs;
}

/// Splits costs at two sizes into those of one value and those that every time has.
void split(double small_s, double large_s, double& value_s, double& fixed_s) {
  value_s = std::max(0.0, large_s - small_s) / (kUpdateValues * 7.0 / 8);
  fixed_s = std::max(0.0, large_s - value_s * static_cast<double>(kUpdateValues));
}

/// Fills the profile's update_*.
void measure_update(const Stopwatch& stopwatch,
                    const plan::JobConfig& job,
                    chips::Device& device,
                    plan::DeviceProfile& profile) {
  const UpdateCosts small = time_update(stopwatch, job, kUpdateValues / 8, device);
  const UpdateCosts large = time_update(stopwatch, job, kUpdateValues, device);
  double around_value_s = 0, adamw_value_s = 0;
  split(small.around.seconds, large.around.seconds, around_value_s, profile.update_s);
  split(small.run.seconds, large.run.seconds, adamw_value_s, profile.update_run_s);
  profile.update_parameter_s = around_value_s + adamw_value_s;
  if (!job.train.has_muon()) return;
  // Plans charge AdamW for every value, and a block for what Muon takes more.
  const BlockUpdate muon = time_block_update(stopwatch, job, device);
  const plan::ModelSizes sizes = plan::sizes_of(job.model, job.data.sequence_length);
  const double by_adamw_s =
      adamw_value_s * muon.num_values + profile.update_run_s * plan::decaying_runs(sizes);
  profile.update_block_s = std::max(0.0, muon.cost.seconds - by_adamw_s);
}

}  // namespace

plan::DeviceProfile measure_device(const plan::JobConfig& job,
                                   const std::string& name,
                                   chips::Device& device) {
  const int64_t num_blocks = job.model.num_hidden_layers;
  const int64_t many = job.train.microbatch_sequences;
  const int64_t few = std::max<int64_t>(1, many / 4);
  const Stopwatch stopwatch(device);
  const auto measure = [&](const model::ModelPart& held) {
    Part part(job, held, device);
    return AtTwoSizes{time_part(stopwatch, part, made_up_input(job, few, device)),
                      time_part(stopwatch, part, made_up_input(job, many, device))};
  };
  // A stage does a little besides its blocks: it joins what a block hands on, and looks for values
  // that are too large. So a block is what a second one adds, and the rest counts once a stage.
  const AtTwoSizes one_block = measure({.first_block = 1, .last_block = 2, .num_blocks = 3});
  const AtTwoSizes block =
      measure({.first_block = 1, .last_block = 3, .num_blocks = 4}) - one_block;
  const AtTwoSizes embedding =
      measure({.first_block = 0, .last_block = 1, .num_blocks = 2}) - one_block;
  const AtTwoSizes head = measure({.first_block = 1, .last_block = 2, .num_blocks = 2}) - one_block;
  const AtTwoSizes rest = one_block - block;

  plan::DeviceProfile profile;
  profile.device = name;
  profile.dtype = name_of(training_dtype(job, device));
  profile.measured = true;
  profile.block_forward = fit(block.few.forward.seconds, few, block.many.forward.seconds, many);
  profile.block_backward = fit(block.few.backward.seconds, few, block.many.backward.seconds, many);
  profile.embedding = fit(embedding.few.seconds(), few, embedding.many.seconds(), many);
  profile.head = fit(head.few.seconds(), few, head.many.seconds(), many);

  profile.stage_forward = fit(rest.few.forward.seconds, few, rest.many.forward.seconds, many);
  profile.stage_backward = fit(rest.few.backward.seconds, few, rest.many.backward.seconds, many);

  measure_update(stopwatch, job, device, profile);
  const auto step = [&](auto&& of) {
    return static_cast<double>(num_blocks) * of(block.many) + of(embedding.many) + of(head.many) +
           of(rest.many);
  };
  if (device.stats().device_busy_s > 0) {
    profile.host_busy_ratio = step([](const PieceCosts& costs) { return costs.host_cpu_s(); }) /
                              step([](const PieceCosts& costs) { return costs.seconds(); });
  }
  return profile;
}

}  // namespace pelago::train
