// One training run of several sites in one process: each is a model, an optimizer and a GlobalState
// of its own, and their exchanges are those of src/sites/exchange, carried out at once instead of
// over a line. One site alone is synchronous data parallel training: a step's gradient is a sum
// over tokens, so it is the same however many sites would share the batch.
#pragma once

#include <cmath>
#include <deque>
#include <memory>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/rng.h"
#include "chips/kernels.h"
#include "data/dataset.h"
#include "model/transformer.h"
#include "plan/job.h"
#include "sites/exchange/fragment_exchange.h"
#include "sites/exchange/global_state.h"
#include "train/rank/samples.h"
#include "train/site_runner.h"

namespace pelago::bench {

struct GapRun {
  std::vector<int64_t> shares = {16};  // sequences a step, of each site
  int64_t sequence_length = 128;
  int64_t heads = 3;  // of 64; with the 4 layers, 2.2 M parameters
  int64_t layers = 4;
  int64_t steps = 3960;
  int64_t seed = 1;
  double lr = 2e-3;
  int64_t warmup_steps = 100;
  plan::SitesConfig sites;

  int64_t batch() const { return std::accumulate(shares.begin(), shares.end(), int64_t{0}); }
  int64_t tokens() const { return steps * batch() * sequence_length; }
};

struct GapResult {
  double heldout_loss = 0;
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

/// What the sites hold together, and the exchanges in flight.
class GapExchanges {
 public:
  GapExchanges(const GapRun& run, const model::ModelConfig& config, std::deque<GapSite>& sites)
      : run_(run), sites_(&sites) {
    schedule_ = {.inner_steps = run.sites.inner_steps,
                 .num_fragments = run.sites.fragments,
                 .overlap_steps = run.sites.overlap_steps,
                 .num_steps = run.steps};
    fragments_ = train::cut_fragments(config, run.sites.fragments);
    const std::span<const float> start = sites.front().master();
    for (size_t i = 0; i < sites.size(); ++i) {
      states_.emplace_back(std::vector<float>(start.begin(), start.end()), fragments_);
    }
    sent_steps_.assign(fragments_.size(), 0);
  }

  void after_step(int64_t completed) {
    const int64_t leaving = schedule_.snapshot_after(completed);
    if (leaving >= 0) begin(leaving % run_.sites.fragments, completed);
    if (schedule_.merge_after(completed) >= 0) merge(run_.sites.merge_alpha);
  }
  void after_last_step() {
    for (int64_t fragment = 0; fragment < run_.sites.fragments; ++fragment) {
      begin(fragment, run_.steps);
      merge(0);
    }
    for (const sites::GlobalState& state : states_) {
      PELAGO_ASSERT(state.hash() == states_.front().hash(), "all sites hold the same bits");
    }
  }
  double bytes_per_parameter_round() const {
    return exchanged_values_ == 0
               ? 0
               : static_cast<double>(sent_bytes_) / static_cast<double>(exchanged_values_) /
                     static_cast<double>(sites_->size());
  }

 private:
  struct Flying {
    int64_t fragment = 0;
    std::vector<sites::FragmentOutcome> outcomes;
  };

  std::span<float> local(size_t site, int64_t fragment) {
    const train::Fragment& range = fragments_[static_cast<size_t>(fragment)];
    return (*sites_)[site].master().subspan(static_cast<size_t>(range.begin),
                                            static_cast<size_t>(range.end - range.begin));
  }

  void begin(int64_t fragment, int64_t completed) {
    const int64_t since = sent_steps_[static_cast<size_t>(fragment)];
    sites::ExchangeSpec spec{.bits = run_.sites.delta_bits,
                             .member_idx = 0,
                             .tokens = {},
                             .rule = run_.sites.combine == "direction"
                                         ? sites::MergeRule::kDirection
                                         : sites::MergeRule::kMean,
                             .error_decay = run_.sites.error_decay};
    for (const int64_t share : run_.shares) {
      spec.tokens.push_back(share * run_.sequence_length * (completed - since));
    }
    std::vector<std::unique_ptr<sites::FragmentExchange>> members;
    for (size_t i = 0; i < sites_->size(); ++i) {
      spec.member_idx = static_cast<int64_t>(i);
      members.push_back(std::make_unique<sites::FragmentExchange>(
          spec, states_[i].global(fragment), local(i, fragment), states_[i].kept_error(fragment)));
    }
    carry(members);
    Flying flying{.fragment = fragment, .outcomes = {}};
    for (size_t i = 0; i < sites_->size(); ++i) {
      flying.outcomes.push_back(states_[i].outer_step(
          fragment,
          members[i]->mean(),
          {.lr = run_.sites.outer_lr, .momentum = run_.sites.outer_momentum}));
      states_[i].keep_error(fragment, members[i]->new_error(), completed);
    }
    exchanged_values_ += static_cast<int64_t>(local(0, fragment).size());
    sent_steps_[static_cast<size_t>(fragment)] = completed;
    flying_.push_back(std::move(flying));
  }

  void carry(std::vector<std::unique_ptr<sites::FragmentExchange>>& members) {
    const auto count = static_cast<int64_t>(members.size());
    for (const bool of_mean : {false, true}) {
      for (int64_t from = 0; from < count; ++from) {
        for (int64_t to = 0; to < count; ++to) {
          if (from == to) continue;
          sites::FragmentExchange& sender = *members[static_cast<size_t>(from)];
          sites::FragmentExchange& receiver = *members[static_cast<size_t>(to)];
          const std::string slice = of_mean ? *sender.mean_slice() : sender.delta_slice(to);
          const Status taken =
              of_mean ? receiver.accept_mean(from, slice) : receiver.accept_delta(from, slice);
          PELAGO_ASSERT(static_cast<bool>(taken), "a slice of ours is sound");
          sent_bytes_ += static_cast<int64_t>(slice.size());
        }
      }
    }
  }

  void merge(double alpha) {
    const Flying flying = std::move(flying_.front());
    flying_.pop_front();
    const auto keep = static_cast<float>(alpha);
    for (size_t i = 0; i < sites_->size(); ++i) {
      states_[i].apply(flying.fragment, num_merged_, flying.outcomes[i]);
      const std::span<const float> global = states_[i].global(flying.fragment);
      const std::span<float> now = local(i, flying.fragment);
      for (size_t k = 0; k < now.size(); ++k) {
        now[k] = keep * now[k] + (1 - keep) * global[k];
      }
      (*sites_)[i].round_master();
    }
    ++num_merged_;
  }

  GapRun run_;
  std::deque<GapSite>* sites_;  // outlives this
  train::ExchangeSchedule schedule_;
  std::vector<train::Fragment> fragments_;
  std::vector<sites::GlobalState> states_;
  std::vector<int64_t> sent_steps_;
  std::deque<Flying> flying_;
  int64_t sent_bytes_ = 0, exchanged_values_ = 0, num_merged_ = 0;
};

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
  std::deque<GapSite> sites;
  for (size_t i = 0; i < run.shares.size(); ++i) sites.emplace_back(config, run.seed);
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
  if (exchanges) {
    exchanges->after_last_step();
    result.bytes_per_parameter_round = exchanges->bytes_per_parameter_round();
  }
  result.train_loss /= static_cast<double>(num_last);
  result.heldout_loss = sites.front().evaluate(heldout_source, run.sequence_length);
  result.seconds = steady_now_s() - begin_s;
  return result;
}

}  // namespace pelago::bench
