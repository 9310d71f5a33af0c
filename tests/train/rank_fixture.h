// Ranks of one site as threads of the test, each with a plain CPU device, so that the trainer's
// laws are tested without processes.
#pragma once

#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "base/rng.h"
#include "chips/torch.h"
#include "model/transformer.h"
#include "train/rank/trainer.h"
#include "train/thread_links.h"

namespace pelago::train {

class PlainDevice : public chips::Device {
 public:
  /// memory_bytes: 0: not known, so that nothing is copied on the device.
  explicit PlainDevice(c10::ScalarType dtype, int64_t memory_bytes = 0)
      : dtype_(dtype), memory_bytes_(memory_bytes) {}
  c10::Device torch_device() const override { return torch::kCPU; }
  const std::string& name() const override { return name_; }
  const chips::Chip* chip() const override { return nullptr; }
  c10::ScalarType training_dtype() const override { return dtype_; }
  void synchronize() override {}
  chips::DeviceStats stats() const override { return {}; }
  void reset_stats() override {}
  int64_t memory_bytes() const override { return memory_bytes_; }

 private:
  c10::ScalarType dtype_;
  int64_t memory_bytes_;
  std::string name_ = "cpu";
};

inline double relative_difference(const Tensor& a, const Tensor& b) {
  return ((a - b).norm() / b.norm()).item<double>();
}

inline model::ModelConfig tiny_model() {
  model::ModelConfig config;
  config.vocab_size = 32;
  config.hidden_size = 16;
  config.intermediate_size = 32;
  config.num_hidden_layers = 2;
  config.num_attention_heads = 2;
  config.num_key_value_heads = 1;
  config.head_dim = 8;
  return config;
}

/// A text that can be learnt: each token is three more than the one before, but for a few slips.
inline MemorySource learnable_tokens(int64_t num_tokens, uint64_t seed = 3) {
  Rng rng(seed);
  std::vector<int64_t> tokens{0};
  while (static_cast<int64_t>(tokens.size()) < num_tokens) {
    const bool slips = rng.next_uniform() < 0.05;
    tokens.push_back(slips ? static_cast<int64_t>(rng.next_below(32)) : (tokens.back() + 3) % 32);
  }
  return MemorySource(std::move(tokens));
}

/// A stage's blocks and how many ranks it is cut over.
struct StageShape {
  int64_t num_blocks = 2;
  int width = 1;
  bool recompute = false;
};

struct SiteShape {
  std::vector<int64_t> sequences{4};  // of each pipeline
  int64_t microbatch = 4;
  int64_t first_sequence = 0;
  int64_t batch_sequences = 0;  // of all sites; 0: this one is alone
  std::string dtype = "f32";
  c10::ScalarType device_dtype = torch::kFloat32;
  std::vector<std::vector<StageShape>> pipelines = {};  // empty: one stage each
  bool slice_optimizer = false;
  model::ModelConfig model = tiny_model();
  std::vector<c10::ScalarType> device_dtypes = {};  // by rank; empty: device_dtype
  std::function<StepTamper(int rank)> tamper = {};
  int64_t memory_bytes = 0;  // of each device; 0: not known
  std::string optimizer = "adamw";
};

inline TrainerOptions options_of(const SiteShape& shape) {
  TrainerOptions options;
  options.model = shape.model;
  options.train.dtype = shape.dtype;
  options.train.optimizer = shape.optimizer;
  options.train.lr = 1e-2;
  options.train.warmup_steps = 0;
  options.train.eval_sequences = 0;
  options.site.name = "test";
  options.site.first_sequence = shape.first_sequence;
  options.site.slice_optimizer = shape.slice_optimizer;
  for (size_t i = 0; i < shape.sequences.size(); ++i) {
    plan::PipelinePlan pipeline;
    pipeline.sequences = shape.sequences[i];
    pipeline.microbatch = shape.microbatch;
    const std::vector<StageShape> stages =
        shape.pipelines.empty() ? std::vector{StageShape{shape.model.num_hidden_layers}}
                                : shape.pipelines[i];
    int64_t first_block = 0;
    for (const StageShape& stage_shape : stages) {
      plan::StagePlan stage;
      stage.first_block = first_block;
      stage.last_block = first_block += stage_shape.num_blocks;
      stage.recompute = stage_shape.recompute;
      for (int k = 0; k < stage_shape.width; ++k) {
        stage.ranks.push_back(static_cast<int>(options.site.devices.size()));
        options.site.devices.emplace_back().device = "cpu";
      }
      pipeline.stages.push_back(stage);
    }
    options.site.pipelines.push_back(pipeline);
    options.site.batch_sequences += pipeline.sequences;
  }
  options.batch_sequences =
      shape.batch_sequences > 0 ? shape.batch_sequences : options.site.batch_sequences;
  options.sequence_length = 16;
  options.num_steps = 40;
  return options;
}

/// What all ranks of a test share: the whole model's state.
struct SharedState {
  explicit SharedState(int64_t num_values)
      : master(torch::zeros({num_values})),
        m(torch::zeros({num_values})),
        v(torch::zeros({num_values})) {}
  static std::span<float> values_of(const Tensor& tensor) {
    return {tensor.data_ptr<float>(), static_cast<size_t>(tensor.numel())};
  }
  HostState host() const { return {values_of(master), values_of(m), values_of(v)}; }
  Tensor master, m, v;  // [N] f32
};

/// One rank of the test's site.
struct TestRank {
  Trainer& trainer;
  chips::Collective& collective;
  int rank;
  /// All ranks' part of the state, on every rank that asks once all have called it.
  void store(const SharedState& state) const {
    trainer.store(state.host(), {0, state.master.numel()});
    collective.barrier();
  }
};

/// Runs body on every rank at once, each with a trainer that holds the same initial weights.
inline void run_grid(const SiteShape& shape,
                     const TokenSource& samples,
                     const std::function<void(TestRank&)>& body) {
  const TrainerOptions options = options_of(shape);
  const auto num_ranks = static_cast<int>(options.site.devices.size());
  ThreadGroup control(num_ranks), reduction(num_ranks);
  ThreadPost post;
  const Tensor weights = model::initial_weights(options.model, Rng(7));
  const auto run_rank = [&](int rank) {
    at::set_num_threads(1);
    PlainDevice device(shape.device_dtypes.empty() ? shape.device_dtype
                                                   : shape.device_dtypes[static_cast<size_t>(rank)],
                       shape.memory_bytes);
    ThreadCollective control_link(control, rank), reduction_link(reduction, rank);
    ThreadCourier courier(post, rank);
    TrainerOptions own_options = options;
    if (shape.tamper) own_options.tamper = shape.tamper(rank);
    Trainer trainer(own_options, device, {&control_link, &reduction_link, &courier}, samples);
    trainer.load({.master = SharedState::values_of(weights), .m = {}, .v = {}}, {});
    TestRank test_rank{trainer, control_link, rank};
    body(test_rank);
    control_link.barrier();
  };
  std::vector<std::jthread> others;
  for (int rank = 1; rank < num_ranks; ++rank) others.emplace_back(run_rank, rank);
  run_rank(0);
}

inline void run_ranks(const SiteShape& shape,
                      const TokenSource& samples,
                      const std::function<void(Trainer&, int rank)>& body) {
  run_grid(shape, samples, [&](TestRank& rank) { body(rank.trainer, rank.rank); });
}

}  // namespace pelago::train
