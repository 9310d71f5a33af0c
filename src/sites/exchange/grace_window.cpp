#include "sites/exchange/grace_window.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace pelago::sites {

namespace {

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

/// What is still usual: the median and so many median deviations.
double usual_upper(const std::vector<double>& values, double deviations) {
  const double middle = median(values);
  std::vector<double> distances;
  for (const double value : values) distances.push_back(std::abs(value - middle));
  return middle + deviations * median(std::move(distances));
}

}  // namespace

void GraceWindow::observe(const ExchangeTimes& times) {
  exchanges_.push_back(times);
  if (exchanges_.size() > options_.exchanges_max) exchanges_.pop_front();
  constexpr double kNarrowing = 0.9;  // an exchange: half after seven
  widened_s_ *= kNarrowing;
}

void GraceWindow::widen() { widened_s_ = std::min(2 * seconds(), options_.max_s); }

double GraceWindow::seconds() const {
  if (exchanges_.size() < options_.exchanges_min) return options_.max_s;
  std::vector<double> steps, transfers, available, lateness;
  for (const ExchangeTimes& times : exchanges_) {
    steps.push_back(times.step_s);
    transfers.push_back(times.transfer_s);
    available.push_back(times.available_s);
    lateness.push_back(times.lateness_s);
  }
  const double slack_s = median(available) - usual_upper(transfers, options_.deviations);
  const double usual_s = usual_upper(lateness, options_.deviations);
  const double least_s = std::max(options_.min_s, options_.steps_min * median(steps));
  return std::clamp(
      std::max({slack_s, usual_s, widened_s_}), std::min(least_s, options_.max_s), options_.max_s);
}

}  // namespace pelago::sites
