#include "plan/simulation/run/site_clock.h"

#include <algorithm>
#include <cmath>

namespace pelago::plan {

namespace {

/// The value that a standard normal variable stays below with this probability (Acklam's rational
/// approximation, relative error 1.2e-9).
double normal_quantile(double probability) {
  constexpr double kA[] = {-3.969683028665376e+01,
                           2.209460984245205e+02,
                           -2.759285104469687e+02,
                           1.383577518672690e+02,
                           -3.066479806614716e+01,
                           2.506628277459239e+00};
  constexpr double kB[] = {-5.447609879822406e+01,
                           1.615858368580409e+02,
                           -1.556989798598866e+02,
                           6.680131188771972e+01,
                           -1.328068155288572e+01};
  constexpr double kC[] = {-7.784894002430293e-03,
                           -3.223964580411365e-01,
                           -2.400758277161838e+00,
                           -2.549732539343734e+00,
                           4.374664141464968e+00,
                           2.938163982698783e+00};
  constexpr double kD[] = {
      7.784695709041462e-03, 3.224671290700398e-01, 2.445134137142996e+00, 3.754408661907416e+00};
  constexpr double kLow = 0.02425;
  const auto tail = [&](double q) {
    return (((((kC[0] * q + kC[1]) * q + kC[2]) * q + kC[3]) * q + kC[4]) * q + kC[5]) /
           ((((kD[0] * q + kD[1]) * q + kD[2]) * q + kD[3]) * q + 1);
  };
  if (probability < kLow) return tail(std::sqrt(-2 * std::log(probability)));
  if (probability > 1 - kLow) return -tail(std::sqrt(-2 * std::log1p(-probability)));
  const double q = probability - 0.5;
  const double r = q * q;
  return (((((kA[0] * r + kA[1]) * r + kA[2]) * r + kA[3]) * r + kA[4]) * r + kA[5]) * q /
         (((((kB[0] * r + kB[1]) * r + kB[2]) * r + kB[3]) * r + kB[4]) * r + 1);
}

}  // namespace

double largest_normal(double count, Rng& rng) {
  // Each stays below x with p(x), all of them with p(x)^count: the quantile of u^(1/count). Near 1
  // that is 1 - tail with tail = -ln(u) / count, which keeps its digits.
  const double uniform = std::max(rng.next_uniform(), 1e-300);
  const double below = std::exp(std::log(uniform) / count);
  if (below < 0.999) return normal_quantile(std::max(below, 1e-300));
  return -normal_quantile(std::max(-std::expm1(std::log(uniform) / count), 1e-300));
}

double next_exponential(double mean, Rng& rng) { return -mean * std::log1p(-rng.next_uniform()); }

std::vector<Mark> marks_of_step(const SimulatedSite& site,
                                const std::vector<ScheduledExchange>& schedule,
                                int64_t step) {
  std::vector<Mark> marks;
  const auto num_layers = static_cast<double>(site.num_layers);
  const double forward = site.forward_share;
  const auto number_at = [](const ScheduledExchange& exchange, int64_t taken) -> int64_t {
    const int64_t since = taken - exchange.first_step;
    return since >= 0 && since % exchange.period_steps == 0 ? since / exchange.period_steps : -1;
  };
  for (size_t i = 0; i < schedule.size(); ++i) {
    const ScheduledExchange& exchange = schedule[i];
    const int64_t needed = number_at(exchange, step - 1 - exchange.overlap_steps);
    const int64_t given = number_at(exchange, step);
    if (needed < 0 && given < 0) continue;
    for (size_t part = 0; part < exchange.parts.size(); ++part) {
      const auto layer = static_cast<double>(exchange.parts[part].layer_idx);
      const auto exchange_idx = static_cast<uint32_t>(i);
      const auto part_idx = static_cast<uint32_t>(part);
      if (needed >= 0) {
        marks.push_back(
            {forward * layer / num_layers, Mark::Kind::kNeed, exchange_idx, part_idx, needed});
      }
      if (given >= 0) {
        marks.push_back({forward + (1 - forward) * (num_layers - layer) / num_layers,
                         Mark::Kind::kGive,
                         exchange_idx,
                         part_idx,
                         given});
      }
    }
  }
  std::stable_sort(marks.begin(), marks.end(), [](const Mark& a, const Mark& b) {
    return a.at_ratio < b.at_ratio;
  });
  marks.push_back({1, Mark::Kind::kEnd, 0, 0, 0});
  return marks;
}

double SiteClock::pace(const SimulatedSite& site, double spares) const {
  return 1 - std::max(0.0, chips_lost - spares) / site.chips;
}

void SiteClock::change(Activity next, double now_s) {
  const double passed_s = now_s - since_s;
  switch (activity) {
    case Activity::kAway:
      outcome.away_s += passed_s;
      break;
    case Activity::kComputing:
      outcome.computing_s += passed_s;
      fresh_s += passed_s;
      break;
    case Activity::kWaiting:
      outcome.waiting_s += passed_s;
      break;
    case Activity::kDown:
      outcome.down_s += passed_s;
      break;
  }
  activity = next;
  since_s = now_s;
}

void SiteClock::lose_fresh_work() {
  outcome.computing_s -= fresh_s;
  outcome.lost_s += fresh_s;
  outcome.tokens -= fresh_tokens;
  outcome.steps -= fresh_steps;
  fresh_s = fresh_tokens = fresh_steps = 0;
}

void SiteClock::take_snapshot(int64_t next_step) {
  snapshot_step = next_step;
  fresh_s = fresh_tokens = fresh_steps = 0;
}

}  // namespace pelago::plan
