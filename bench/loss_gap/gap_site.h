// One run of the loss gap, what comes of it, and one of its sites.
#pragma once

#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "base/rng.h"
#include "chips/kernels.h"
#include "model/transformer.h"
#include "plan/job.h"
#include "train/rank/samples.h"

namespace pelago::bench {

struct GapRun {
  std::vector<int64_t> shares = {64};  // sequences a step, of each site
  int64_t sequence_length = 128;
  int64_t heads = 3;  // of 64; with the 4 layers, 2.2 M parameters
  int64_t layers = 4;
  int64_t steps = 990;
  int64_t seed = 1;
  double lr = 2e-3;
  int64_t warmup_steps = 100;
  double min_lr_ratio = 0.1;
  plan::SitesConfig sites;

  int64_t batch() const { return std::accumulate(shares.begin(), shares.end(), int64_t{0}); }
  int64_t tokens() const { return steps * batch() * sequence_length; }
};

struct GapResult {
  double heldout_loss = 0;
  double site_loss = 0;   // held out, of the first site before the final exchanges
  double train_loss = 0;  // of the last 50 steps
  double bytes_per_parameter_round = 0;
  double seconds = 0;
};

/// A site's model: bf16 weights beside f32 masters, gradients summed in f32.
class GapSite {
 public:
  GapSite(const model::ModelConfig& config, int64_t seed)
      : specs_(model::parameter_specs(config)),
        master_(model::initial_weights(config, Rng(static_cast<uint64_t>(seed)).fork("weights"))),
        weights_(master_.to(torch::kBFloat16)),
        m_(torch::zeros_like(master_)),
        v_(torch::zeros_like(master_)),
        gradient_(torch::zeros_like(master_)),
        parameters_(config, weights_),
        transformer_(config, parameters_) {}

  std::span<float> master() {
    return {master_.data_ptr<float>(), static_cast<size_t>(master_.numel())};
  }
  void round_master() { weights_.copy_(master_); }

  /// Returns the sum of token losses.
  double train(const train::TokenSource& source,
               int64_t sequence_length,
               std::span<const int64_t> windows,
               double lr) {
    constexpr size_t kMicrobatch = 16;
    gradient_.zero_();
    double loss = 0;
    for (size_t begin = 0; begin < windows.size(); begin += kMicrobatch) {
      const auto part = windows.subspan(begin, std::min(kMicrobatch, windows.size() - begin));
      const train::Batch batch = train::read_windows(source, sequence_length, part);
      const Tensor sum = transformer_.loss_sum(batch.tokens, batch.targets);
      sum.backward();
      parameters_.move_gradients_into(gradient_);
      loss += sum.item<double>();
    }
    const auto tokens = static_cast<double>(windows.size()) * static_cast<double>(sequence_length);
    const double norm = std::sqrt(chips::sum_of_squares(gradient_)) / tokens;
    update({.lr = lr, .step = ++step_, .grad_scale = std::min(1.0, 1.0 / norm) / tokens});
    return loss;
  }

  double evaluate(const train::TokenSource& source, int64_t sequence_length) {
    const torch::NoGradGuard no_grad;
    const int64_t num_windows = train::num_windows(source, sequence_length);
    double loss = 0;
    for (int64_t begin = 0; begin < num_windows; begin += 16) {
      std::vector<int64_t> windows(static_cast<size_t>(std::min<int64_t>(16, num_windows - begin)));
      std::iota(windows.begin(), windows.end(), begin);
      const train::Batch batch = train::read_windows(source, sequence_length, windows);
      loss += transformer_.loss_sum(batch.tokens, batch.targets).item<double>();
    }
    return loss / static_cast<double>(num_windows * sequence_length);
  }

 private:
  void update(chips::AdamWOptions options) {
    int64_t begin = 0, end = 0;
    for (size_t i = 0; i < specs_.size(); ++i) {
      end += specs_[i].num_values();
      if (i + 1 < specs_.size() && specs_[i + 1].decays == specs_[i].decays) continue;
      options.weight_decay = specs_[i].decays ? 0.1 : 0.0;
      const auto range = [&](const Tensor& all) { return all.narrow(0, begin, end - begin); };
      Tensor master = range(master_), m = range(m_), v = range(v_), weights = range(weights_);
      chips::adamw_step(master, range(gradient_), m, v, weights, options);
      begin = end;
    }
  }

  std::vector<model::ParameterSpec> specs_;
  Tensor master_, weights_, m_, v_, gradient_;  // [N]; weights_ bf16, the others f32
  model::Parameters parameters_;
  model::Transformer transformer_;
  int64_t step_ = 0;
};

}  // namespace pelago::bench
