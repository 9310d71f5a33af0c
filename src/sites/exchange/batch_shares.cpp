#include "sites/exchange/batch_shares.h"

#include <algorithm>

#include "base/error.h"

namespace pelago::sites {

namespace {

bool can_change(const SitePace& pace) {
  return pace.step_s > 0 && pace.sequences >= std::max<int64_t>(pace.least, 1);
}

double sequence_s(const SitePace& pace) {
  return pace.step_s / static_cast<double>(pace.sequences);
}

bool same_shares(std::span<const SitePace> a, std::span<const SitePace> b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const auto& x, const auto& y) {
    return x.sequences == y.sequences;
  });
}

std::vector<int64_t> shares_of(std::span<const SitePace> paces) {
  std::vector<int64_t> shares;
  for (const SitePace& pace : paces) shares.push_back(pace.sequences);
  return shares;
}

double gain(std::span<const SitePace> paces, std::span<const int64_t> shares) {
  const double now_s = step_time_s(paces, shares_of(paces));
  return now_s > 0 ? 1 - step_time_s(paces, shares) / now_s : 0;
}

/// Of each site, over rounds of equal shares; rounds in which it was away do not count.
std::vector<SitePace> medians(const std::deque<std::vector<SitePace>>& rounds) {
  std::vector<SitePace> result = rounds.back();
  for (size_t site = 0; site < result.size(); ++site) {
    std::vector<double> times;
    for (const auto& round : rounds) {
      if (round[site].step_s > 0) times.push_back(round[site].step_s);
    }
    std::sort(times.begin(), times.end());
    result[site].step_s = times.empty() ? 0 : times[times.size() / 2];
  }
  return result;
}

}  // namespace

std::vector<int64_t> fit_shares(std::span<const SitePace> paces) {
  std::vector<int64_t> shares(paces.size());
  int64_t left = 0;
  for (size_t i = 0; i < paces.size(); ++i) {
    shares[i] = can_change(paces[i]) ? std::max<int64_t>(paces[i].least, 1) : paces[i].sequences;
    left += paces[i].sequences - shares[i];
  }
  for (; left > 0; --left) {
    size_t best = paces.size();
    double best_s = 0;
    for (size_t i = 0; i < paces.size(); ++i) {
      if (!can_change(paces[i])) continue;
      const double done_s = sequence_s(paces[i]) * static_cast<double>(shares[i] + 1);
      if (best < paces.size() && done_s >= best_s) continue;
      best = i;
      best_s = done_s;
    }
    ++shares[best];
  }
  return shares;
}

double step_time_s(std::span<const SitePace> paces, std::span<const int64_t> shares) {
  PELAGO_ASSERT(paces.size() == shares.size(), "a share for each site");
  double slowest_s = 0;
  for (size_t i = 0; i < paces.size(); ++i) {
    if (!can_change(paces[i])) continue;
    slowest_s = std::max(slowest_s, sequence_s(paces[i]) * static_cast<double>(shares[i]));
  }
  return slowest_s;
}

std::optional<std::vector<int64_t>> ShareWatch::observe(std::span<const SitePace> paces) {
  if (options_.rounds <= 0) return std::nullopt;
  if (!rounds_.empty() && !same_shares(rounds_.back(), paces)) rounds_.clear();
  rounds_.emplace_back(paces.begin(), paces.end());
  if (static_cast<int>(rounds_.size()) > options_.rounds) rounds_.pop_front();
  if (static_cast<int>(rounds_.size()) < options_.rounds) return std::nullopt;
  const std::vector<int64_t> shares = fit_shares(medians(rounds_));
  const bool lasts = std::all_of(rounds_.begin(), rounds_.end(), [&](const auto& round) {
    return gain(round, shares) >= options_.gain_min;
  });
  if (!lasts) return std::nullopt;
  rounds_.clear();
  return shares;
}

}  // namespace pelago::sites
