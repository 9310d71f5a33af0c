#include "sites/trust/delta_watch.h"

#include <algorithm>
#include <cmath>

namespace pelago::sites {

namespace {

constexpr size_t kWindow = 16;        // rounds: follows the learning rate, forgets one odd round
constexpr size_t kUsualFrom = 4;      // rounds from which on a median says something
constexpr double kDeviationsMax = 6;  // of a normal distribution: once in 10^9
constexpr double kDeviationMin = 0.4;
constexpr double kUnknownRatioMax = 30;
constexpr double kCosineMin = -0.2;
constexpr double kChance = 4;             // standard deviations of a cosine by chance, 1/sqrt(N)
constexpr int64_t kJudgedValuesMin = 64;  // a shorter slice says nothing

double median_of(std::vector<double> values) {
  const size_t middle = values.size() / 2;
  std::nth_element(values.begin(), values.begin() + static_cast<ptrdiff_t>(middle), values.end());
  if (values.size() % 2 == 1) return values[middle];
  const double upper = values[middle];
  return 0.5 * (upper +
                *std::max_element(values.begin(), values.begin() + static_cast<ptrdiff_t>(middle)));
}

}  // namespace

std::string_view name_of(DeltaFault fault) {
  switch (fault) {
    case DeltaFault::kNone:
      return "";
    case DeltaFault::kNotFinite:
      return "not finite";
    case DeltaFault::kZero:
      return "zero";
    case DeltaFault::kNorm:
      return "norm";
    case DeltaFault::kDirection:
      return "direction";
  }
  return "";
}

void RunningMedian::add(double value) {
  values_.push_back(value);
  if (values_.size() > kWindow) values_.pop_front();
}

double RunningMedian::median() const { return median_of({values_.begin(), values_.end()}); }

double RunningMedian::deviation() const {
  const double middle = median();
  std::vector<double> distances;
  for (const double value : values_) distances.push_back(std::abs(value - middle));
  return 1.4826 * median_of(distances);
}

bool DeltaWatch::differs(const Pair& pair, double log_ratio) const {
  const auto known = log_ratio_.find(pair);
  if (known == log_ratio_.end() || known->second.num_values() < kUsualFrom) {
    return std::abs(log_ratio) > std::log(kUnknownRatioMax);
  }
  const double deviation = std::max(known->second.deviation(), kDeviationMin);
  return std::abs(log_ratio - known->second.median()) > kDeviationsMax * deviation;
}

// Of two that do not fit: who left its own habit farther; before there are habits, the larger one.
bool DeltaWatch::has_moved_more(const std::string& site,
                                double log_rms,
                                const std::string& other,
                                double other_log_rms) const {
  const auto mine = log_rms_.find(site), theirs = log_rms_.find(other);
  const bool are_known =
      mine != log_rms_.end() && theirs != log_rms_.end() &&
      std::min(mine->second.num_values(), theirs->second.num_values()) >= kUsualFrom;
  if (!are_known) return log_rms > other_log_rms;
  return std::abs(log_rms - mine->second.median()) >
         std::abs(other_log_rms - theirs->second.median());
}

DeltaFault DeltaWatch::fault_of(size_t idx,
                                const std::vector<std::string>& sites,
                                const std::vector<bool>& has_trained,
                                const SliceGram& gram) const {
  const double rms = gram.rms(idx);
  if (!std::isfinite(rms)) return DeltaFault::kNotFinite;
  const double cosine_min =
      kCosineMin - kChance / std::sqrt(static_cast<double>(gram.num_values()));
  size_t num_others = 0, num_unlike = 0, num_against = 0;
  for (size_t other = 0; other < sites.size(); ++other) {
    const double other_rms = gram.rms(other);
    const bool is_witness =
        other != idx && has_trained[other] && other_rms > 0 && std::isfinite(other_rms);
    if (!is_witness) continue;
    ++num_others;
    if (rms == 0) continue;
    const double log_rms = std::log(rms), other_log_rms = std::log(other_rms);
    num_unlike += differs({sites[idx], sites[other]}, log_rms - other_log_rms) &&
                          (sites.size() > 2 ||
                           has_moved_more(sites[idx], log_rms, sites[other], other_log_rms))
                      ? 1
                      : 0;
    const bool is_against = sites.size() > 2 ? gram.cosine(idx, other) < cosine_min
                                             : gram.cosine_to_reference(idx) < cosine_min &&
                                                   gram.cosine_to_reference(other) > -cosine_min;
    num_against += is_against ? 1 : 0;
  }
  if (num_others == 0) return DeltaFault::kNone;
  if (rms == 0) return DeltaFault::kZero;
  if (2 * num_unlike > num_others) return DeltaFault::kNorm;
  if (2 * num_against > num_others) return DeltaFault::kDirection;
  return DeltaFault::kNone;
}

std::vector<DeltaFault> DeltaWatch::judge(const std::vector<std::string>& sites,
                                          const std::vector<bool>& has_trained,
                                          const SliceGram& gram) const {
  std::vector<DeltaFault> faults(sites.size(), DeltaFault::kNone);
  if (gram.num_values() < kJudgedValuesMin) return faults;
  for (size_t idx = 0; idx < sites.size(); ++idx) {
    if (has_trained[idx]) faults[idx] = fault_of(idx, sites, has_trained, gram);
  }
  return faults;
}

void DeltaWatch::learn(const std::vector<std::string>& sites,
                       const std::vector<bool>& teaches,
                       const SliceGram& gram) {
  const auto counts = [&](size_t idx) {
    return teaches[idx] && gram.rms(idx) > 0 && std::isfinite(gram.rms(idx));
  };
  for (size_t idx = 0; idx < sites.size(); ++idx) {
    if (!counts(idx)) continue;
    const double log_rms = std::log(gram.rms(idx));
    log_rms_[sites[idx]].add(log_rms);
    for (size_t other = 0; other < sites.size(); ++other) {
      if (other == idx || !counts(other)) continue;
      log_ratio_[{sites[idx], sites[other]}].add(log_rms - std::log(gram.rms(other)));
    }
  }
}

}  // namespace pelago::sites
