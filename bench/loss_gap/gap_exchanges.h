// What the sites of a run in one process hold together, and the exchanges in flight between them.
#pragma once

#include <cmath>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "bench/loss_gap/gap_site.h"
#include "sites/exchange/fragment_exchange.h"
#include "sites/exchange/global_state.h"
#include "train/site_runner.h"

namespace pelago::bench {

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
    if (leaving >= 0) begin(leaving % run_.sites.fragments, completed, /*is_final=*/false);
    if (schedule_.merge_after(completed) >= 0) merge(/*is_final=*/false);
  }
  void after_last_step() {
    for (int64_t fragment = 0; fragment < run_.sites.fragments; ++fragment) {
      begin(fragment, run_.steps, /*is_final=*/true);
      merge(/*is_final=*/true);
    }
    for (const sites::GlobalState& state : states_) {
      PELAGO_ASSERT(state.hash() == states_.front().hash(), "all sites hold the same bits");
    }
  }
  /// Of the exchanges while training: the final ones are a cost of the run.
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
    // Of each site: its weights then, and what of their change was not sent.
    std::vector<std::vector<float>> snapshots, unsent;
  };

  bool is_thin() const { return run_.sites.delta_bits == sites::kThinBits; }

  std::span<float> local(size_t site, int64_t fragment) {
    const train::Fragment& range = fragments_[static_cast<size_t>(fragment)];
    return (*sites_)[site].master().subspan(static_cast<size_t>(range.begin),
                                            static_cast<size_t>(range.end - range.begin));
  }

  sites::ExchangeSpec spec_of(int64_t fragment, int64_t completed) const {
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
    return spec;
  }

  void begin(int64_t fragment, int64_t completed, bool is_final) {
    sites::ExchangeSpec spec = spec_of(fragment, completed);
    if (is_final) spec = spec.final();
    std::vector<std::unique_ptr<sites::FragmentExchange>> members;
    for (size_t i = 0; i < sites_->size(); ++i) {
      spec.member_idx = static_cast<int64_t>(i);
      members.push_back(std::make_unique<sites::FragmentExchange>(
          spec,
          states_[i].global(fragment),
          local(i, fragment),
          is_thin() ? std::span<const float>() : states_[i].kept_error(fragment)));
    }
    const int64_t num_bytes = carry(members);
    if (!is_final) {
      sent_bytes_ += num_bytes;
      exchanged_values_ += static_cast<int64_t>(local(0, fragment).size());
    }
    Flying flying{.fragment = fragment, .outcomes = {}, .snapshots = {}, .unsent = {}};
    const sites::OuterOptions outer{.lr = run_.sites.outer_lr,
                                    .momentum = run_.sites.outer_momentum};
    for (size_t i = 0; i < sites_->size(); ++i) {
      flying.outcomes.push_back(states_[i].outer_step(
          fragment, members[i]->mean(), is_final ? sites::OuterOptions::final() : outer));
      const std::span<const float> error = members[i]->new_error();
      states_[i].keep_error(fragment, is_thin() ? std::span<const float>() : error, completed);
      const std::span<const float> snapshot = local(i, fragment);
      flying.snapshots.emplace_back(snapshot.begin(), snapshot.end());
      flying.unsent.emplace_back(snapshot.size(), 0.0F);
      if (!is_thin() || is_final) continue;
      const auto keep = static_cast<float>(run_.sites.error_decay);
      for (size_t k = 0; k < error.size(); ++k) flying.unsent[i][k] = keep * error[k];
    }
    sent_steps_[static_cast<size_t>(fragment)] = completed;
    flying_.push_back(std::move(flying));
  }

  /// Returns the bytes sent by all.
  static int64_t carry(std::vector<std::unique_ptr<sites::FragmentExchange>>& members) {
    const auto count = static_cast<int64_t>(members.size());
    int64_t num_bytes = 0;
    for (const bool of_mean : {false, true}) {
      for (int64_t from = 0; from < count; ++from) {
        for (int64_t to = 0; to < count; ++to) {
          if (from == to) continue;
          sites::FragmentExchange& sender = *members[static_cast<size_t>(from)];
          sites::FragmentExchange& receiver = *members[static_cast<size_t>(to)];
          if (of_mean && !sender.has_summed()) continue;  // more members than units to sum
          const std::string slice = of_mean ? sender.mean_slice(to) : sender.delta_slice(to);
          const Status taken =
              of_mean ? receiver.accept_mean(from, slice) : receiver.accept_delta(from, slice);
          PELAGO_ASSERT(static_cast<bool>(taken), "a slice of ours is sound");
          num_bytes += static_cast<int64_t>(slice.size());
        }
      }
    }
    return num_bytes;
  }

  /// As sites::Member has it for the workers.
  void merge(bool is_final) {
    const Flying flying = std::move(flying_.front());
    flying_.pop_front();
    const auto keep = static_cast<float>(run_.sites.merge_alpha);
    for (size_t i = 0; i < sites_->size(); ++i) {
      states_[i].apply(flying.fragment, num_merged_, flying.outcomes[i]);
      const std::span<const float> global = states_[i].global(flying.fragment);
      const std::span<float> now = local(i, flying.fragment);
      for (size_t k = 0; k < now.size(); ++k) {
        const float target = global[k] - flying.unsent[i][k];
        if (is_final) {
          now[k] = global[k];
        } else if (schedule_.overlap_steps > 0) {
          now[k] += (1 - keep) * (target - flying.snapshots[i][k]);
        } else {
          now[k] = keep * now[k] + (1 - keep) * target;
        }
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

}  // namespace pelago::bench
