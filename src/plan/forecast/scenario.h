// scenario.toml: chips there and to come, limits, models wanted, people to serve. What is not known
// exactly is a range, written [lo, hi]: the answer then is one, too.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "chips/catalogue.h"

namespace pelago::plan {

/// A number or a range of which nothing more is known.
struct Range {
  double lo = 0, hi = 0;
  double at(double ratio) const { return lo + ratio * (hi - lo); }
};

/// Chips of a kind for one site: what has come and what was ordered.
struct ChipOrder {
  const chips::Chip* chip = nullptr;  // of the catalogue, which outlives the scenario
  std::string site = "here";
  double count = 0;                   // all that were ordered
  double delivered = 0;               // of them, there on the first day
  int first_day = 0, last_day = 0;    // between which the others come, evenly
  Range delay_days;                   // of all that has not come yet
  Range arrives{1, 1};                // of what has not come yet, the share that ever does
  Range failures_a_year{0.02, 0.09};  // of chips, for good; 0.09: arXiv:2407.21783 with repairs
  double price = 0;                   // of one chip, in the scenario's currency
  int banned_from = -1;               // none comes from this day on; below 0: no ban
};

struct WantedModel {
  std::string name;
  double parameters = 0;
  double active_parameters = 0;  // of a token's way; 0: all
  double tokens = 0;
  int by_day = -1;  // below 0: no date
  double active() const { return active_parameters > 0 ? active_parameters : parameters; }
  /// Of training: 6 a parameter and token (arXiv:2001.08361).
  double flops() const { return 6 * active() * tokens; }
};

struct ForecastLine {
  std::string from, to;
  double bandwidth_mbit_s = 1000;
  double rtt_ms = 30;
};

struct ServingWish {
  double users = 0;           // monthly; 0: nobody is served
  double requests_a_day = 2;  // of a user; assumed
  double prompt_tokens = 800;
  double answer_tokens = 400;
  double token_ms = 50;      // of an answer, at most: reading speed is about 60
  double first_token_s = 2;  // at most
  double peak_ratio = 2.5;   // busiest hour over the mean
  double weight_bits = 8;
  std::string model;  // one of the models; empty: the first
};

struct Scenario {
  std::string name = "scenario";
  std::string currency = "CNY";
  int from_day = 0, until_day = 0;
  std::vector<ChipOrder> orders;
  std::vector<WantedModel> models;  // in the order in which they are trained
  std::vector<ForecastLine> lines;  // between sites
  ServingWish serving;
  double power_mw = 0;  // 0: as much as wanted
  double money = 0;     // for chips not yet delivered and for power; 0: as much as wanted
  double price_kwh = 0.5;
  double overhead_watts = 1.5;  // hosts, network, cooling: watts of the hall a watt of chip
  Range mixing{0.95, 0.985};    // of the sum of its kinds, what a mixed fleet reaches (97.5 %:
                                // arXiv:2405.16256)
  Range goodput{0.85, 0.95};    // of time, what failures leave (arXiv:2407.21783, 2604.21428)
  // How sites that hold the model exchange it.
  double batch_tokens = 4e6;  // a step, all sites
  int64_t inner_steps = 48, fragments = 4, overlap_steps = 1;
  double delta_bits = 3.36;  // a value, as 4 bits are after coding
  // Further generations: each so many times the training of the one before, in so many months.
  double generation_growth = 4, generation_months = 6;
  int64_t trials = 500;
  std::vector<std::string> warnings;  // what the answer rests on that nobody has measured
};

/// Throws Failure (exit 2) in one line naming file, key, value and remedy: a chip that the
/// catalogue lacks, dates that run backwards, more delivered than ordered, a negative number or a
/// range written backwards, a site without a line to another, an unknown key.
Scenario read_scenario(const std::filesystem::path& path,
                       const chips::Catalogue& catalogue,
                       const std::vector<std::string>& overrides);

/// The chip's figures rest on press reports or estimates, not on a datasheet or a measurement.
bool is_press_only(const chips::Chip& chip);

}  // namespace pelago::plan
