#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>

#include "plan/forecast/calendar.h"
#include "plan/forecast/forecast.h"

namespace pelago::plan {

namespace {

using OrderedJson = nlohmann::ordered_json;

std::string date_or_never(const Scenario& scenario, double day) {
  return std::isinf(day) || day >= scenario.until_day ? "not by the end" : day_text(day);
}

std::string time_text(double seconds) {
  if (seconds >= 2 * 3600) return fmt::format("{:.1f} h", seconds / 3600);
  if (seconds >= 120) return fmt::format("{:.1f} min", seconds / 60);
  return fmt::format("{:.1f} s", seconds);
}

std::string count_text(double value) {
  if (value >= 1e12) return fmt::format("{:.3g} T", value / 1e12);
  if (value >= 1e9) return fmt::format("{:.3g} G", value / 1e9);
  if (value >= 1e6) return fmt::format("{:.3g} M", value / 1e6);
  if (value >= 1e4) return fmt::format("{:.0f} k", value / 1e3);
  return fmt::format("{:.0f}", value);
}

/// "70 % H20, 30 % 910B": orders of one kind together, the largest first.
std::string shares_text(const Scenario& scenario, const std::vector<double>& shares) {
  std::map<std::string, double> by_chip;
  for (size_t i = 0; i < shares.size(); ++i) by_chip[scenario.orders[i].chip->name] += shares[i];
  std::vector<std::pair<double, std::string>> parts;
  for (const auto& [chip, share] : by_chip) {
    if (share > 0.005) parts.emplace_back(-share, chip);
  }
  std::sort(parts.begin(), parts.end());
  std::string text;
  for (const auto& [share, chip] : parts) {
    text += fmt::format("{}{:.0f} % {}", text.empty() ? "" : ", ", -100 * share, chip);
  }
  return text;
}

void print_chips(const Scenario& scenario, const Forecast& forecast, std::string& out) {
  auto end = std::back_inserter(out);
  fmt::format_to(end,
                 "\nchips {:<30}{:>10}{:>11}{:>13}{:>12}\n",
                 "",
                 "ordered",
                 "here now",
                 "most, whole",
                 "at the end");
  for (size_t i = 0; i < scenario.orders.size(); ++i) {
    const ChipOrder& order = scenario.orders[i];
    const std::vector<double>& chips = forecast.middle.chips[i];
    fmt::format_to(end,
                   "  {:<34}{:>10}{:>11}{:>13}{:>12}{}\n",
                   fmt::format("{} ({})", order.chip->name, order.site),
                   count_text(order.count),
                   count_text(order.delivered),
                   count_text(*std::max_element(chips.begin(), chips.end())),
                   count_text(chips.back()),
                   order.banned_from >= 0
                       ? fmt::format("   none comes from {} on", day_text(order.banned_from))
                       : "");
  }
}

void print_models(const Scenario& scenario, const Forecast& forecast, std::string& out) {
  auto end = std::back_inserter(out);
  fmt::format_to(end,
                 "\nmodels, one after another {:<4}{:>16}{:>16}{:>16}{:>12}\n",
                 "",
                 "done: early",
                 "middle",
                 "late",
                 "in time");
  for (size_t i = 0; i < forecast.models.size(); ++i) {
    const ModelForecast& model = forecast.models[i];
    const WantedModel& wanted = scenario.models[i];
    fmt::format_to(end,
                   "  {:<28}{:>16}{:>16}{:>16}{:>12}\n",
                   model.name,
                   date_or_never(scenario, model.done_day.p10),
                   date_or_never(scenario, model.done_day.p50),
                   date_or_never(scenario, model.done_day.p90),
                   model.in_time < 0 ? "" : fmt::format("{:.0f} %", 100 * model.in_time));
    fmt::format_to(end,
                   "    {} parameters{}, {} tokens{}; {}\n",
                   count_text(wanted.parameters),
                   wanted.active_parameters > 0
                       ? fmt::format(" ({} active)", count_text(wanted.active_parameters))
                       : "",
                   count_text(wanted.tokens),
                   wanted.by_day >= 0 ? ", wanted by " + day_text(wanted.by_day) : "",
                   model.waits_for.empty() || !std::isinf(model.done_day.p50)
                       ? "on " + shares_text(scenario, model.chip_shares)
                       : "waits for " + model.waits_for);
    if (model.line_share < 0.9995) {
      fmt::format_to(end,
                     "    lines between the sites leave {:.1f} % of the computing\n",
                     100 * model.line_share);
    }
  }
  fmt::format_to(
      end,
      "  then {:.0f} further generation{} ({:.0f} to {:.0f}), each {:g} times the training of "
      "the one before within {:g} months; then {}\n",
      forecast.generations.p50,
      forecast.generations.p50 == 1 ? "" : "s",
      forecast.generations.p10,
      forecast.generations.p90,
      scenario.generation_growth,
      scenario.generation_months,
      forecast.generations_ended);
}

void print_values(const Forecast& forecast, std::string& out) {
  auto end = std::back_inserter(out);
  fmt::format_to(end, "\nwhat more chips are worth, there from the first day on\n");
  for (const ChipValue& value : forecast.values) {
    fmt::format_to(
        end,
        "  {:>8} more {:<28} the last model {:.1f} days earlier, {} a chip; {:.1f} % more FLOP\n",
        count_text(value.extra_chips),
        value.chip,
        value.days_earlier,
        time_text(86400 * value.days_earlier / value.extra_chips),
        100 * value.flops_ratio);
  }
  for (const BanCost& cost : forecast.bans) {
    const std::string later = std::isinf(cost.days_later) || std::isnan(cost.days_later)
                                  ? "is not done by the end, and would be without it"
                                  : fmt::format("is done {:.0f} days later", cost.days_later);
    fmt::format_to(end,
                   "  the ban: {} {}{}\n",
                   cost.model,
                   later,
                   cost.in_time_after < 0
                       ? ""
                       : fmt::format("; in time in {:.0f} % of the trials, without it in {:.0f} %",
                                     100 * cost.in_time_after,
                                     100 * cost.in_time_before));
  }
}

void print_ban(const Forecast& forecast, std::string& out) {
  if (forecast.bans.empty()) return;
  fmt::format_to(
      std::back_inserter(out),
      "  the ban takes {:.1f} % of what the chips can do by the end; further generations "
      "{:.0f}, without it {:.0f}\n",
      100 * forecast.ban_flops_ratio,
      forecast.generations.p50,
      forecast.generations_unbanned);
}

void print_serving(const Scenario& scenario, const Forecast& forecast, std::string& out) {
  if (forecast.serving.empty()) return;
  const ServingWish& wish = scenario.serving;
  auto end = std::back_inserter(out);
  fmt::format_to(
      end,
      "\nchips for {} monthly users of {} ({:g} requests a day, {:g} + {:g} tokens, {:g} ms a "
      "token)\n",
      count_text(wish.users),
      wish.model,
      wish.requests_a_day,
      wish.prompt_tokens,
      wish.answer_tokens,
      wish.token_ms);
  for (const ServingNeed& need : forecast.serving) {
    if (need.answers_together == 0) {
      fmt::format_to(end, "  {:<28} none: {}\n", need.chip, need.bound_by);
      continue;
    }
    fmt::format_to(end,
                   "  {:<28}{:>9} ({} to {}), {} together with {} answers at once, bound by {}\n"
                   "  {:<28} worth {:.2f} of the first kind in training, {:.2f} in serving\n",
                   need.chip,
                   count_text(need.chips.p50),
                   count_text(need.chips.p10),
                   count_text(need.chips.p90),
                   need.chips_together,
                   need.answers_together,
                   need.bound_by,
                   "",
                   need.training_worth,
                   need.serving_worth);
  }
}

OrderedJson day_json(double day) {
  return std::isinf(day) ? OrderedJson(nullptr) : OrderedJson(day_text(day));
}
OrderedJson number_json(double value) {
  return std::isfinite(value) ? OrderedJson(value) : OrderedJson(nullptr);
}
OrderedJson percentiles_json(const Percentiles& value) {
  return {{"p10", number_json(value.p10)},
          {"p50", number_json(value.p50)},
          {"p90", number_json(value.p90)}};
}
OrderedJson days_json(const Percentiles& value) {
  return {{"p10", day_json(value.p10)}, {"p50", day_json(value.p50)}, {"p90", day_json(value.p90)}};
}

}  // namespace

std::string to_table(const Scenario& scenario, const Forecast& forecast) {
  std::string out = fmt::format("{}: {} to {}, {} trials drawn with seed {}\n",
                                scenario.name,
                                day_text(scenario.from_day),
                                day_text(scenario.until_day),
                                scenario.trials,
                                forecast.seed);
  print_chips(scenario, forecast, out);
  print_models(scenario, forecast, out);
  print_values(forecast, out);
  print_ban(forecast, out);
  print_serving(scenario, forecast, out);
  fmt::format_to(
      std::back_inserter(out),
      "\nall chips on all the time: {:.3g} GWh ({:.3g} to {:.3g}); money with deliveries {} {} "
      "({} to {})\n",
      forecast.energy_mwh.p50 / 1000,
      forecast.energy_mwh.p10 / 1000,
      forecast.energy_mwh.p90 / 1000,
      count_text(forecast.money.p50),
      scenario.currency,
      count_text(forecast.money.p10),
      count_text(forecast.money.p90));
  for (const std::string& warning : scenario.warnings) out += "note: " + warning + "\n";
  return out;
}

std::string to_json(const Scenario& scenario, const Forecast& forecast) {
  OrderedJson json;
  json["name"] = scenario.name;
  json["from"] = day_text(scenario.from_day);
  json["until"] = day_text(scenario.until_day);
  json["seed"] = forecast.seed;
  json["trials"] = scenario.trials;
  json["models"] = OrderedJson::array();
  for (const ModelForecast& model : forecast.models) {
    OrderedJson shares = OrderedJson::object();
    for (size_t i = 0; i < model.chip_shares.size(); ++i) {
      OrderedJson& share = shares[scenario.orders[i].chip->id];
      share = (share.is_null() ? 0.0 : share.get<double>()) + model.chip_shares[i];
    }
    json["models"].push_back(
        {{"name", model.name},
         {"begun", days_json(model.begun_day)},
         {"done", days_json(model.done_day)},
         {"in_time", model.in_time < 0 ? OrderedJson(nullptr) : OrderedJson(model.in_time)},
         {"line_share", model.line_share},
         {"waits_for", model.waits_for},
         {"chip_shares", shares}});
  }
  json["generations"] = percentiles_json(forecast.generations);
  json["generations_ended_by"] = forecast.generations_ended;
  json["chip_values"] = OrderedJson::array();
  for (const ChipValue& value : forecast.values) {
    json["chip_values"].push_back({{"chip", value.chip},
                                   {"extra_chips", value.extra_chips},
                                   {"days_earlier", value.days_earlier},
                                   {"flops_ratio", value.flops_ratio}});
  }
  json["ban_costs"] = OrderedJson::array();
  for (const BanCost& cost : forecast.bans) {
    json["ban_costs"].push_back(
        {{"model", cost.model}, {"days_later", number_json(cost.days_later)}});
  }
  json["ban_flops_ratio"] = forecast.ban_flops_ratio;
  json["generations_without_ban"] = forecast.generations_unbanned;
  json["serving"] = OrderedJson::array();
  for (const ServingNeed& need : forecast.serving) {
    json["serving"].push_back(
        {{"chip", need.chip},
         {"chips", need.answers_together > 0 ? percentiles_json(need.chips) : OrderedJson(nullptr)},
         {"chips_together", need.chips_together},
         {"answers_together", need.answers_together},
         {"training_worth", need.training_worth},
         {"serving_worth", need.serving_worth},
         {"bound_by", need.bound_by}});
  }
  json["energy_mwh"] = percentiles_json(forecast.energy_mwh);
  json["money"] = percentiles_json(forecast.money);
  json["notes"] = scenario.warnings;
  return json.dump(2);
}

}  // namespace pelago::plan
