#include "plan/forecast/trial.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include "plan/simulation/bandwidth.h"
#include "plan/simulation/run/run_model.h"

namespace pelago::plan {

namespace {

constexpr double kGib = 1024.0 * 1024.0 * 1024.0;
constexpr double kDayS = 86400;
constexpr int kWeek = 7;
// How long what the lines leave is taken to stay as it is while a fleet grows.
constexpr int kLookAgainDays = 30;

double draw_of(const Range& range, Rng& rng) { return range.at(rng.next_uniform()); }

/// FLOP/s of one chip in training: its peak times the share of it that training reaches.
double flop_s_of(const chips::Chip& chip, double mfu_ratio, double press_ratio) {
  const double peak = chip.bf16_tflops.value_or(chip.fp16_tflops.value_or(0)) * 1e12;
  const chips::Interval mfu = chip.train_mfu.value_or(chips::Interval{0.25, 0.45});
  const double share = mfu.lo + mfu_ratio * (mfu.hi - mfu.lo);
  const double flop_s = peak > 0 ? peak * share : chip.training_gemm_tflops() * 1e12 * 0.5;
  return is_press_only(chip) ? flop_s * (0.7 + 0.4 * press_ratio) : flop_s;
}

/// The days of one trial.
class Days {
 public:
  Days(const Scenario& scenario, const Draw& draw, const WhatIf& what_if)
      : scenario_(scenario), draw_(draw), what_if_(what_if), alive_(scenario.orders.size()) {
    for (size_t i = 0; i < scenario.orders.size(); ++i) {
      alive_[i] = scenario.orders[i].delivered;
      if (what_if.extra_order == static_cast<int>(i)) alive_[i] += what_if.extra_chips;
    }
    running_ = alive_;
    by_thrift_.resize(alive_.size());
    std::iota(by_thrift_.begin(), by_thrift_.end(), size_t{0});
    std::stable_sort(by_thrift_.begin(), by_thrift_.end(), [&](size_t a, size_t b) {
      return draw.orders[a].flop_s / watts(a) > draw.orders[b].flop_s / watts(b);
    });
    next_model();
  }

  Trial play() {
    trial_.flop_s.resize(alive_.size());
    trial_.chips.resize(alive_.size());
    for (int day = scenario_.from_day; day < scenario_.until_day; ++day) {
      receive(day);
      switch_on();
      if ((day - scenario_.from_day) % kWeek == 0) note_week();
      for (size_t i = 0; i < alive_.size(); ++i) {
        trial_.flops += running_[i] * draw_.orders[i].flop_s * draw_.goodput * kDayS;
      }
      train(day);
      for (size_t i = 0; i < alive_.size(); ++i) {
        alive_[i] *= std::exp(-draw_.orders[i].failures_a_year / 365.25);
      }
    }
    if (trial_.generations_ended.empty()) trial_.generations_ended = "the last day";
    while (trial_.models.size() < scenario_.models.size()) trial_.models.emplace_back();
    trial_.models.resize(scenario_.models.size());
    return std::move(trial_);
  }

 private:
  double watts(size_t i) const {
    const double chip_w = scenario_.orders[i].chip->power_w;
    return std::max(1.0, chip_w) * scenario_.overhead_watts;
  }

  /// What comes this day, if there is money for it.
  void receive(int day) {
    for (size_t i = 0; i < alive_.size(); ++i) {
      const ChipOrder& order = scenario_.orders[i];
      const Draw::Order& drawn = draw_.orders[i];
      if (!what_if_.ignores_bans && order.banned_from >= 0 && day >= order.banned_from) continue;
      const double due = (order.count - order.delivered) * drawn.arrives;
      const double first = order.first_day + drawn.delay_days;
      const double length = std::max(1.0, static_cast<double>(order.last_day - order.first_day));
      const auto share_by = [&](double at) { return std::clamp((at - first) / length, 0.0, 1.0); };
      double come = due * (share_by(day + 1.0) - share_by(day));
      if (scenario_.money > 0 && order.price > 0) {
        come = std::min(come, std::max(0.0, scenario_.money - trial_.money) / order.price);
      }
      trial_.money += come * order.price;
      alive_[i] += come;
    }
  }

  /// The thriftiest chips first, as far as power and money go.
  void switch_on() {
    double left_w = scenario_.power_mw > 0 ? scenario_.power_mw * 1e6 : 1e300;
    if (scenario_.money > 0 && scenario_.price_kwh > 0) {
      const double left = std::max(0.0, scenario_.money - trial_.money);
      left_w = std::min(left_w, left / scenario_.price_kwh / 24 * 1000);
    }
    double used_w = 0;
    for (const size_t i : by_thrift_) {
      running_[i] = std::min(alive_[i], left_w / watts(i));
      left_w -= running_[i] * watts(i);
      used_w += running_[i] * watts(i);
    }
    trial_.energy_kwh += used_w * 24 / 1000;
    trial_.money += used_w * 24 / 1000 * scenario_.price_kwh;
  }

  void note_week() {
    for (size_t i = 0; i < alive_.size(); ++i) {
      trial_.flop_s[i].push_back(running_[i] * draw_.orders[i].flop_s * draw_.goodput);
      trial_.chips[i].push_back(alive_[i]);
    }
  }

  void next_model() {
    const size_t idx = trial_.models.size();
    if (idx < scenario_.models.size()) {
      wanted_ = scenario_.models[idx];
    } else {
      // The next generation: as much more in parameters as in tokens.
      const double growth = std::sqrt(scenario_.generation_growth);
      wanted_.parameters *= growth;
      wanted_.active_parameters *= growth;
      wanted_.tokens *= growth;
    }
    left_flops_ = wanted_.flops();
    trial_.models.emplace_back();
    trial_.models.back().flops.assign(alive_.size(), 0.0);
    looked_day_ = -1;
  }

  /// Sites that hold the model; their FLOP/s.
  std::map<std::string, double> sites_for(const WantedModel& model) const {
    std::map<std::string, double> bytes, flop_s;
    for (size_t i = 0; i < alive_.size(); ++i) {
      const ChipOrder& order = scenario_.orders[i];
      const double usable_gib = order.chip->usable_memory_gib > 0 ? order.chip->usable_memory_gib
                                                                  : 0.94 * order.chip->memory_gib;
      bytes[order.site] += running_[i] * usable_gib * kGib;
      flop_s[order.site] += running_[i] * draw_.orders[i].flop_s;
    }
    for (const auto& [site, has] : bytes) {
      if (has < training_bytes(model) || flop_s[site] <= 0) flop_s.erase(site);
    }
    return flop_s;
  }

  /// Of computing, what the exchanges over the lines leave.
  double line_share(const std::map<std::string, double>& sites) const {
    if (sites.size() < 2) return 1;
    double flop_s = 0;
    for (const auto& [site, rate] : sites) flop_s += rate;
    RunModel model;
    model.name = scenario_.name;
    std::map<std::string, size_t> idx;
    for (const auto& [site, rate] : sites) {
      idx[site] = model.sites.size();
      SimulatedSite simulated;
      simulated.name = site;
      simulated.step_s = 6 * wanted_.active() * scenario_.batch_tokens / flop_s;
      model.sites.push_back(simulated);
    }
    for (const ForecastLine& line : scenario_.lines) {
      if (!idx.contains(line.from) || !idx.contains(line.to)) continue;
      for (const auto& [from, to] : {std::pair{line.from, line.to}, {line.to, line.from}}) {
        model.lines.push_back(
            {idx[from], idx[to], line.bandwidth_mbit_s * 1e6 / 8, line.rtt_ms / 2e3, 0, 0});
      }
    }
    const int64_t interval = scenario_.inner_steps / scenario_.fragments;
    const double bytes =
        wanted_.parameters * scenario_.delta_bits / 8 / static_cast<double>(scenario_.fragments);
    for (int64_t p = 0; p < scenario_.fragments; ++p) {
      model.exchange.schedule.push_back(
          {(p + 1) * interval - 1, scenario_.inner_steps, scenario_.overlap_steps, {{0, bytes}}});
    }
    return utilisation_of(model);
  }

  void train(int day) {
    double left_s = kDayS;
    while (left_s > 0 && trial_.generations_ended.empty()) {
      Trial::Model& model = trial_.models.back();
      if (looked_day_ < 0 || day - looked_day_ >= kLookAgainDays || sites_.empty()) {
        sites_ = sites_for(wanted_);
        share_ = line_share(sites_);
        looked_day_ = day;
      }
      double flop_s = 0;
      for (size_t i = 0; i < alive_.size(); ++i) flop_s += rate_of(i);
      if (flop_s <= 0) {
        model.waited_for = "memory: no site holds it";
        return end_generations_if(day, "no site holds the next");
      }
      const double now = day + (kDayS - left_s) / kDayS;
      if (model.begun_day < 0) model.begun_day = now;
      model.line_share = std::min(model.line_share, share_);
      const double seconds = std::min(left_s, left_flops_ / flop_s);
      for (size_t i = 0; i < alive_.size(); ++i) model.flops[i] += rate_of(i) * seconds;
      left_flops_ -= flop_s * seconds;
      left_s -= seconds;
      const bool is_extra = trial_.models.size() > scenario_.models.size();
      const double lasted = day + (kDayS - left_s) / kDayS - model.begun_day;
      if (is_extra && lasted > scenario_.generation_months * 30.44) {
        trial_.generations_ended = "the next would take longer";
        return;
      }
      if (left_flops_ > 1e-9 * wanted_.flops()) return;
      model.done_day = day + (kDayS - left_s) / kDayS;
      if (is_extra) trial_.generations += 1;
      if (trial_.generations > 20) trial_.generations_ended = "20 are counted at most";
      next_model();
    }
  }

  void end_generations_if(int day, const char* why) {
    // A fleet that still grows may hold tomorrow what it does not hold today.
    bool grows = false;
    for (const ChipOrder& order : scenario_.orders) grows = grows || day < order.last_day + 365;
    if (!grows && trial_.models.size() > scenario_.models.size()) trial_.generations_ended = why;
  }

  /// FLOP/s that order i brings to the model at hand.
  double rate_of(size_t i) const {
    if (!sites_.contains(scenario_.orders[i].site)) return 0;
    const double mixing = num_kinds() > 1 ? draw_.mixing : 1;
    return running_[i] * draw_.orders[i].flop_s * mixing * draw_.goodput * share_;
  }
  size_t num_kinds() const {
    size_t kinds = 0;
    for (size_t i = 0; i < running_.size(); ++i) {
      bool is_new = running_[i] > 0;
      for (size_t k = 0; k < i; ++k) {
        is_new =
            is_new && (scenario_.orders[k].chip != scenario_.orders[i].chip || running_[k] <= 0);
      }
      kinds += is_new ? 1 : 0;
    }
    return kinds;
  }

  const Scenario& scenario_;
  const Draw& draw_;
  const WhatIf& what_if_;
  std::vector<double> alive_, running_;
  std::vector<size_t> by_thrift_;
  WantedModel wanted_;
  double left_flops_ = 0, share_ = 1;
  int looked_day_ = -1;
  std::map<std::string, double> sites_;
  Trial trial_;
};

}  // namespace

double training_bytes(const WantedModel& model) {
  // bf16 weights, f32 gradients, f32 master and two moments.
  return model.parameters * (2 + 4 + 12) * 7 / 6;
}

Draw middle_draw(const Scenario& scenario) {
  Draw draw;
  for (const ChipOrder& order : scenario.orders) {
    draw.orders.push_back({order.delay_days.at(0.5),
                           order.arrives.at(0.5),
                           order.failures_a_year.at(0.5),
                           flop_s_of(*order.chip, 0.5, 0.5)});
  }
  draw.mixing = scenario.mixing.at(0.5);
  draw.goodput = scenario.goodput.at(0.5);
  return draw;
}

Draw random_draw(const Scenario& scenario, Rng rng) {
  Draw draw;
  // One kind of chip is as fast in one order as in another.
  std::map<const chips::Chip*, double> flop_s;
  for (const ChipOrder& order : scenario.orders) {
    Rng of_chip = rng.fork(order.chip->id);
    const double mfu_ratio = of_chip.next_uniform();
    flop_s.try_emplace(order.chip, flop_s_of(*order.chip, mfu_ratio, of_chip.next_uniform()));
    draw.orders.push_back({draw_of(order.delay_days, rng),
                           draw_of(order.arrives, rng),
                           draw_of(order.failures_a_year, rng),
                           flop_s.at(order.chip)});
  }
  draw.mixing = draw_of(scenario.mixing, rng);
  draw.goodput = draw_of(scenario.goodput, rng);
  return draw;
}

Trial play_trial(const Scenario& scenario, const Draw& draw, const WhatIf& what_if) {
  return Days(scenario, draw, what_if).play();
}

}  // namespace pelago::plan
