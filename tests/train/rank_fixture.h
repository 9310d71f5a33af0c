// Ranks of one site as threads of the test: a collective over shared memory and a plain CPU device,
// so that the trainer's laws are tested without processes.
#pragma once

#include <algorithm>
#include <barrier>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "base/rng.h"
#include "chips/torch.h"
#include "model/transformer.h"
#include "train/rank/trainer.h"

namespace pelago::train {

/// Meeting place of the ranks.
struct ThreadGroup {
  explicit ThreadGroup(int ranks) : num_ranks(ranks), meet(ranks), places(ranks) {}
  int num_ranks;
  std::barrier<> meet;
  std::vector<std::span<std::byte>> places;  // what each rank gave to the collective under way
};

class ThreadCollective final : public chips::Collective {
 public:
  ThreadCollective(ThreadGroup& group, int rank) : group_(&group), rank_(rank) {}
  using Collective::all_reduce_sum;
  using Collective::broadcast;
  int rank() const override { return rank_; }
  int num_ranks() const override { return group_->num_ranks; }
  void all_reduce_sum(std::span<float> values) override {
    reduce(values, [](float a, float b) { return a + b; });
  }
  void all_reduce_sum(std::span<double> values) override {
    reduce(values, [](double a, double b) { return a + b; });
  }
  void all_reduce_max(std::span<double> values) override {
    reduce(values, [](double a, double b) { return std::max(a, b); });
  }
  void broadcast(std::span<std::byte> bytes, int from_rank) override {
    give(bytes);
    const auto& source = group_->places[static_cast<size_t>(from_rank)];
    if (rank_ != from_rank) std::copy(source.begin(), source.end(), bytes.begin());
    group_->meet.arrive_and_wait();
  }
  std::vector<std::byte> all_gather(std::span<const std::byte> /*bytes*/) override { return {}; }
  void send(std::span<const std::byte> /*bytes*/, int /*to*/, uint32_t /*tag*/) override {}
  void receive(std::span<std::byte> /*bytes*/, int /*from*/, uint32_t /*tag*/) override {}
  void barrier() override { group_->meet.arrive_and_wait(); }

 private:
  void give(std::span<std::byte> bytes) {
    group_->places[static_cast<size_t>(rank_)] = bytes;
    group_->meet.arrive_and_wait();
  }
  template <typename T, typename Join>
  void reduce(std::span<T> values, const Join& join) {
    give(std::as_writable_bytes(values));
    std::vector<T> total(values.size());
    for (size_t rank = 0; rank < group_->places.size(); ++rank) {
      const auto* given = reinterpret_cast<const T*>(group_->places[rank].data());
      for (size_t i = 0; i < total.size(); ++i) {
        total[i] = rank == 0 ? given[i] : join(total[i], given[i]);
      }
    }
    group_->meet.arrive_and_wait();
    std::copy(total.begin(), total.end(), values.begin());
    group_->meet.arrive_and_wait();
  }

  ThreadGroup* group_;
  int rank_;
};

class PlainDevice final : public chips::Device {
 public:
  explicit PlainDevice(c10::ScalarType dtype) : dtype_(dtype) {}
  c10::Device torch_device() const override { return torch::kCPU; }
  const std::string& name() const override { return name_; }
  const chips::Chip* chip() const override { return nullptr; }
  c10::ScalarType training_dtype() const override { return dtype_; }
  void synchronize() override {}
  chips::DeviceStats stats() const override { return {}; }
  void reset_stats() override {}
  int64_t memory_bytes() const override { return 0; }

 private:
  c10::ScalarType dtype_;
  std::string name_ = "cpu";
};

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

struct SiteShape {
  std::vector<int64_t> sequences{4};  // of each rank
  int64_t microbatch = 4;
  int64_t first_sequence = 0;
  int64_t batch_sequences = 0;  // of all sites; 0: this one is alone
  std::string dtype = "f32";
  c10::ScalarType device_dtype = torch::kFloat32;
};

inline TrainerOptions options_of(const SiteShape& shape) {
  TrainerOptions options;
  options.model = tiny_model();
  options.train.dtype = shape.dtype;
  options.train.lr = 1e-2;
  options.train.warmup_steps = 0;
  options.train.eval_sequences = 0;
  options.site.name = "test";
  options.site.first_sequence = shape.first_sequence;
  for (const int64_t sequences : shape.sequences) {
    plan::DevicePlan device;
    device.device = "cpu";
    device.sequences = sequences;
    device.microbatch = shape.microbatch;
    options.site.devices.push_back(device);
    options.site.batch_sequences += sequences;
  }
  options.batch_sequences =
      shape.batch_sequences > 0 ? shape.batch_sequences : options.site.batch_sequences;
  options.sequence_length = 16;
  options.num_steps = 40;
  return options;
}

/// Runs body on every rank at once, each with a trainer that holds the same initial weights.
inline void run_ranks(const SiteShape& shape,
                      const TokenSource& samples,
                      const std::function<void(Trainer&, int rank)>& body) {
  const TrainerOptions options = options_of(shape);
  const auto num_ranks = static_cast<int>(shape.sequences.size());
  ThreadGroup group(num_ranks);
  const Tensor weights = model::initial_weights(options.model, Rng(7));
  const auto run_rank = [&](int rank) {
    at::set_num_threads(1);
    PlainDevice device(shape.device_dtype);
    ThreadCollective collective(group, rank);
    Trainer trainer(options, device, collective, samples);
    trainer.load_weights(weights);
    body(trainer, rank);
  };
  std::vector<std::jthread> others;
  for (int rank = 1; rank < num_ranks; ++rank) others.emplace_back(run_rank, rank);
  run_rank(0);
}

}  // namespace pelago::train
