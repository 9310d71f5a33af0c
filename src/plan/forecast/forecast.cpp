#include "plan/forecast/forecast.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace pelago::plan {

namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();

double day_or_never(double day) { return day < 0 ? kNever : day; }

/// What the Monte Carlo keeps of its trials.
struct Trials {
  std::vector<std::vector<double>> begun, done;  // by model
  std::vector<double> generations, money, energy_mwh;
};

Trials play_all(const Scenario& scenario, uint64_t seed, const WhatIf& what_if) {
  Trials all;
  all.begun.resize(scenario.models.size());
  all.done.resize(scenario.models.size());
  const Rng rng(seed);
  for (int64_t trial_idx = 0; trial_idx < scenario.trials; ++trial_idx) {
    const Draw draw = random_draw(scenario, rng.fork("trial", static_cast<uint64_t>(trial_idx)));
    const Trial trial = play_trial(scenario, draw, what_if);
    for (size_t i = 0; i < scenario.models.size(); ++i) {
      all.begun[i].push_back(day_or_never(trial.models[i].begun_day));
      all.done[i].push_back(day_or_never(trial.models[i].done_day));
    }
    all.generations.push_back(static_cast<double>(trial.generations));
    all.money.push_back(trial.money);
    all.energy_mwh.push_back(trial.energy_kwh / 1000);
  }
  return all;
}

double share_in_time(const std::vector<double>& done, int by_day) {
  if (by_day < 0) return -1;
  const auto count =
      std::count_if(done.begin(), done.end(), [by_day](double day) { return day <= by_day + 1.0; });
  return static_cast<double>(count) / static_cast<double>(done.size());
}

std::vector<ModelForecast> forecast_models(const Scenario& scenario,
                                           const Trials& all,
                                           const Trial& middle) {
  std::vector<ModelForecast> models;
  for (size_t i = 0; i < scenario.models.size(); ++i) {
    ModelForecast model;
    model.name = scenario.models[i].name;
    model.begun_day = percentiles_of(all.begun[i]);
    model.done_day = percentiles_of(all.done[i]);
    model.in_time = share_in_time(all.done[i], scenario.models[i].by_day);
    const Trial::Model& trial = middle.models[i];
    model.line_share = trial.line_share;
    model.waits_for = trial.waited_for;
    if (trial.begun_day < 0 && model.waits_for.empty()) model.waits_for = "the model before it";
    double flops = 0;
    for (const double part : trial.flops) flops += part;
    for (const double part : trial.flops) model.chip_shares.push_back(flops > 0 ? part / flops : 0);
    models.push_back(std::move(model));
  }
  return models;
}

/// The last day of the last model that is done at all; the scenario's last day if none is.
double last_done(const Scenario& scenario, const Trial& trial) {
  double day = -1;
  for (const Trial::Model& model : trial.models) day = std::max(day, model.done_day);
  return day < 0 ? scenario.until_day : day;
}

std::vector<ChipValue> value_chips(const Scenario& scenario,
                                   const Draw& draw,
                                   const Trial& middle) {
  std::vector<ChipValue> values;
  for (size_t i = 0; i < scenario.orders.size(); ++i) {
    // A tenth more, at least one: a single chip among a hundred thousand moves no date.
    const double extra = std::max(1.0, std::round(0.1 * scenario.orders[i].count));
    const Trial more = play_trial(
        scenario,
        draw,
        {.extra_order = static_cast<int>(i), .extra_chips = extra, .ignores_bans = false});
    ChipValue value;
    value.chip = scenario.orders[i].chip->name;
    value.extra_chips = extra;
    value.flops_ratio = middle.flops > 0 ? more.flops / middle.flops - 1 : 0;
    value.days_earlier = last_done(scenario, middle) - last_done(scenario, more);
    values.push_back(value);
  }
  return values;
}

void cost_bans(const Scenario& scenario, const Draw& middle, Forecast& forecast) {
  const bool has_ban = std::any_of(scenario.orders.begin(),
                                   scenario.orders.end(),
                                   [](const ChipOrder& order) { return order.banned_from >= 0; });
  if (!has_ban) return;
  // The same draws without the ban: the difference is the ban's alone.
  const WhatIf unbanned{.extra_order = -1, .extra_chips = 0, .ignores_bans = true};
  const Trials without = play_all(scenario, forecast.seed, unbanned);
  for (size_t i = 0; i < forecast.models.size(); ++i) {
    const double before = percentiles_of(without.done[i]).p50;
    const double after = forecast.models[i].done_day.p50;
    BanCost cost;
    cost.model = forecast.models[i].name;
    cost.days_later = std::isinf(before) ? 0 : after - before;
    cost.in_time_before = share_in_time(without.done[i], scenario.models[i].by_day);
    cost.in_time_after = forecast.models[i].in_time;
    forecast.bans.push_back(cost);
  }
  forecast.generations_unbanned = percentiles_of(without.generations).p50;
  forecast.ban_flops_ratio =
      1 - forecast.middle.flops / play_trial(scenario, middle, unbanned).flops;
}

}  // namespace

Percentiles percentiles_of(std::vector<double> values) {
  if (values.empty()) return {};
  std::sort(values.begin(), values.end());
  const auto at = [&values](double share) {
    return values[static_cast<size_t>(share * static_cast<double>(values.size() - 1) + 0.5)];
  };
  return {at(0.1), at(0.5), at(0.9)};
}

Forecast make_forecast(const Scenario& scenario, uint64_t seed) {
  Forecast forecast;
  forecast.seed = seed;
  const Draw middle = middle_draw(scenario);
  forecast.middle = play_trial(scenario, middle);
  const Trials all = play_all(scenario, seed, {});
  forecast.models = forecast_models(scenario, all, forecast.middle);
  forecast.generations = percentiles_of(all.generations);
  forecast.generations_ended = forecast.middle.generations_ended;
  forecast.money = percentiles_of(all.money);
  forecast.energy_mwh = percentiles_of(all.energy_mwh);
  forecast.values = value_chips(scenario, middle, forecast.middle);
  cost_bans(scenario, middle, forecast);
  forecast.serving = serving_needs(scenario);
  return forecast;
}

}  // namespace pelago::plan
