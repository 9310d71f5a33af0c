// One training run of several sites in one process: each is a model, an optimizer and a GlobalState
// of its own, and their exchanges are those of src/sites/exchange, carried out at once instead of
// over a line. One site alone is synchronous data parallel training: a step's gradient is a sum
// over tokens, so it is the same however many sites would share the batch.
#pragma once

#include <deque>
#include <optional>
#include <vector>

#include "base/clock.h"
#include "bench/loss_gap/gap_exchanges.h"
#include "bench/loss_gap/gap_site.h"
#include "data/dataset.h"
#include "train/rank/samples.h"

namespace pelago::bench {

inline model::ModelConfig gap_model(const GapRun& run, int64_t vocab_size) {
  model::ModelConfig config;
  config.vocab_size = vocab_size;
  config.head_dim = 64;
  config.hidden_size = run.heads * config.head_dim;
  config.intermediate_size = config.hidden_size * 8 / 3;
  config.num_hidden_layers = run.layers;
  config.num_attention_heads = run.heads;
  config.num_key_value_heads = run.heads;
  config.validate();
  return config;
}

/// on_step(completed steps, mean train loss of the step).
template <typename OnStep>
GapResult carry_out(const GapRun& run,
                    const data::TokenStream& tokens,
                    const data::TokenStream& heldout,
                    const OnStep& on_step) {
  const double begin_s = steady_now_s();
  const model::ModelConfig config = gap_model(run, tokens.vocab_size());
  const train::StreamSource source(tokens), heldout_source(heldout);
  const data::SampleOrder order(train::num_windows(source, run.sequence_length),
                                static_cast<uint64_t>(run.seed));
  plan::TrainConfig schedule;
  schedule.lr = run.lr;
  schedule.warmup_steps = run.warmup_steps;
  schedule.min_lr_ratio = run.min_lr_ratio;
  std::deque<GapSite> sites;
  for (size_t i = 0; i < run.shares.size(); ++i) sites.emplace_back(config, run.seed, run.optimizer == "muon");
  std::optional<GapExchanges> exchanges;
  if (sites.size() > 1 || run.sites.fragments > 0) exchanges.emplace(run, config, sites);

  GapResult result;
  int64_t num_last = 0;
  for (int64_t step = 0; step < run.steps; ++step) {
    double loss = 0;
    int64_t sample = step * run.batch();
    for (size_t i = 0; i < sites.size(); ++i) {
      std::vector<int64_t> windows;
      for (int64_t k = 0; k < run.shares[i]; ++k) windows.push_back(order.sequence_of(sample++));
      loss += sites[i].train(
          source, run.sequence_length, windows, schedule.learning_rate(step, run.steps));
    }
    loss /= static_cast<double>(run.batch() * run.sequence_length);
    if (exchanges) exchanges->after_step(step + 1);
    if (step + 50 >= run.steps) {
      result.train_loss += loss;
      ++num_last;
    }
    on_step(step + 1, loss);
  }
  result.train_loss /= static_cast<double>(num_last);
  const auto heldout_of_first = [&] {
    return sites.front().evaluate(heldout_source, run.sequence_length);
  };
  if (exchanges) {
    result.site_loss = heldout_of_first();
    exchanges->after_last_step();
    result.bytes_per_parameter_round = exchanges->bytes_per_parameter_round();
  }
  result.heldout_loss = heldout_of_first();
  result.seconds = steady_now_s() - begin_s;
  return result;
}

}  // namespace pelago::bench
