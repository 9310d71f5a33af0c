// What chips there and to come can do: which model by when and on what, how many further
// generations, what one more chip is worth, what a ban costs, how many chips serve so many people.
// Ranges are drawn at random, all with one seed; answers are percentiles of many trials.
#pragma once

#include <string>
#include <vector>

#include "plan/forecast/scenario.h"
#include "plan/forecast/trial.h"

namespace pelago::plan {

/// Of many trials: 10, 50 and 90 of 100 lie below. A day that never came is infinite.
struct Percentiles {
  double p10 = 0, p50 = 0, p90 = 0;
};
Percentiles percentiles_of(std::vector<double> values);

struct ModelForecast {
  std::string name;
  Percentiles begun_day, done_day;
  double in_time = -1;  // share of the trials in which it is done by its date; below 0: no date
  double line_share = 1;
  std::string waits_for;            // of the middle trial: why it is not done, or begins late
  std::vector<double> chip_shares;  // by order: of its training, in the middle trial
};

/// What more chips of one order's kind would change, in the middle trial.
struct ChipValue {
  std::string chip;
  double extra_chips = 0;   // that were added from the first day on
  double days_earlier = 0;  // the last model, for so many more
  double flops_ratio = 0;   // by the last day, of what could be trained with, relative
};

struct BanCost {
  std::string model;
  double days_later = 0;  // infinite: never with the ban, in time without
  double in_time_before = -1, in_time_after = -1;
};

/// Chips of one kind for all users, and what the kind is good for beside another.
struct ServingNeed {
  std::string chip;
  Percentiles chips;
  int64_t chips_together = 1;    // that hold the model
  int64_t answers_together = 0;  // at once, of one such group; 0: it cannot keep the latency
  double training_worth = 0;     // of one chip, in chips of the first kind
  double serving_worth = 0;
  std::string bound_by;
};

struct Forecast {
  std::vector<ModelForecast> models;
  Percentiles generations;
  std::string generations_ended;
  std::vector<ChipValue> values;
  std::vector<BanCost> bans;   // empty: the scenario has none
  double ban_flops_ratio = 0;  // of what the chips can do by the last day, that the bans take
  double generations_unbanned = 0;
  std::vector<ServingNeed> serving;
  Percentiles money, energy_mwh;
  Trial middle;
  uint64_t seed = 1;
};
Forecast make_forecast(const Scenario& scenario, uint64_t seed);

/// Of the scenario's kinds of chip, in the order in which they appear.
std::vector<ServingNeed> serving_needs(const Scenario& scenario);

std::string to_table(const Scenario& scenario, const Forecast& forecast);
std::string to_json(const Scenario& scenario, const Forecast& forecast);
/// Chips at work over time, by kind, and below it the models with their dates.
std::string to_svg(const Scenario& scenario, const Forecast& forecast);

}  // namespace pelago::plan
