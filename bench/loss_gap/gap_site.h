// One run of the loss gap, what comes of it, and one of its sites.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "bench/lone_model.h"
#include "model/parts/part.h"
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
  std::string optimizer = "adamw";  // or "muon", for the matrices of blocks
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

/// A site's model.
class GapSite {
 public:
  GapSite(const model::ModelConfig& config, int64_t seed, bool is_muon)
      : is_muon_(is_muon),
        specs_(model::part_specs(config, model::whole_model(config))),
        model_(config, Rng(static_cast<uint64_t>(seed)).fork("weights")) {}

  std::span<float> master() {
    return {model_.master.data_ptr<float>(), static_cast<size_t>(model_.master.numel())};
  }
  void round_master() { model_.weights.copy_(model_.master); }

  /// Returns the sum of token losses.
  double train(const train::TokenSource& source,
               int64_t sequence_length,
               std::span<const int64_t> windows,
               double lr) {
    constexpr size_t kMicrobatch = 16;
    model_.gradient.zero_();
    double loss = 0;
    for (size_t begin = 0; begin < windows.size(); begin += kMicrobatch) {
      const auto part = windows.subspan(begin, std::min(kMicrobatch, windows.size() - begin));
      const train::Batch batch = train::read_windows(source, sequence_length, part);
      const Tensor sum = model_.transformer.loss_sum(batch.tokens, batch.targets);
      model_.add_gradient(sum);
      loss += sum.item<double>();
    }
    const auto tokens = static_cast<double>(windows.size()) * static_cast<double>(sequence_length);
    update({.lr = lr, .step = ++step_, .grad_scale = model_.gradient_scale(tokens)});
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
      loss += model_.transformer.loss_sum(batch.tokens, batch.targets).item<double>();
    }
    return loss / static_cast<double>(num_windows * sequence_length);
  }

 private:
  void update(chips::AdamWOptions options) {
    int64_t begin = 0, end = 0;
    for (size_t i = 0; i < specs_.size(); ++i) {
      end += specs_[i].local.num_values();
      const bool is_muon = takes_muon(i);
      if (i + 1 < specs_.size() && specs_[i + 1].local.decays == specs_[i].local.decays && !is_muon &&
          !takes_muon(i + 1)) {
        continue;
      }
      options.weight_decay = specs_[i].local.decays ? 0.1 : 0.0;
      const auto range = [&](const Tensor& all) { return all.narrow(0, begin, end - begin); };
      Tensor master = range(model_.master), weights = range(model_.weights);
      Tensor m = range(model_.m), v = range(model_.v);
      if (is_muon) {
        const auto matrix = [&](const Tensor& all) { return all.view(specs_[i].local.shape); };
        Tensor master2 = matrix(master), m2 = matrix(m), weights2 = matrix(weights);
        chips::muon_step(master2,
                         matrix(range(model_.gradient)),
                         m2,
                         weights2,
                         {.lr = options.lr,
                          .weight_decay = options.weight_decay,
                          .grad_scale = options.grad_scale});
      } else {
        chips::adamw_step(master, range(model_.gradient), m, v, weights, options);
      }
      begin = end;
    }
  }
  bool takes_muon(size_t spec_idx) const { return is_muon_ && specs_[spec_idx].is_block_matrix(); }

  bool is_muon_;
  std::vector<model::PartSpec> specs_;
  LoneModel model_;
  int64_t step_ = 0;
};

}  // namespace pelago::bench
