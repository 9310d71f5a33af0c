// One trial that things may take: every range a number, day after day from the first to the last.
#pragma once

#include <string>
#include <vector>

#include "base/rng.h"
#include "plan/forecast/scenario.h"

namespace pelago::plan {

/// What is left to chance, settled.
struct Draw {
  struct Order {
    double delay_days = 0, arrives = 1, failures_a_year = 0;
    double flop_s = 0;  // of one chip, in training, before mixing, failures and lines
  };
  std::vector<Order> orders;
  double mixing = 1, goodput = 1;
};
/// The middle of every range.
Draw middle_draw(const Scenario& scenario);
Draw random_draw(const Scenario& scenario, Rng rng);

/// A question of the kind "what if".
struct WhatIf {
  int extra_order = -1;  // this order has more chips from the first day on
  double extra_chips = 0;
  bool ignores_bans = false;
};

struct Trial {
  struct Model {
    double begun_day = -1, done_day = -1;  // below 0: not by the last day
    std::string waited_for;                // why it had not begun: "memory", "the model before"
    double line_share = 1;                 // of computing that the lines between sites leave
    std::vector<double> flops;             // by order: who trained it
  };
  std::vector<Model> models;
  int64_t generations = 0;        // beyond the models
  std::string generations_ended;  // what by: "time", "memory", "the last day"
  double flops = 0;               // that all running chips could do until the last day, lines aside
  double energy_kwh = 0, money = 0;
  std::vector<std::vector<double>> flop_s;  // by order, by week: of the chips that run
  std::vector<std::vector<double>> chips;   // by order, by week: that are there and whole
};
Trial play_trial(const Scenario& scenario, const Draw& draw, const WhatIf& what_if = {});

/// Bytes that training a model takes of a site: weights, gradients, masters and moments, and a
/// sixth more for activations with recomputing.
double training_bytes(const WantedModel& model);

}  // namespace pelago::plan
