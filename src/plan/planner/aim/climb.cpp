#include "plan/planner/aim/climb.h"

#include <algorithm>
#include <numeric>
#include <set>

namespace pelago::plan {

namespace {

class Climb {
 public:
  explicit Climb(const ClimbTerms& terms)
      : terms_(terms), plans_left_(terms.plans_max), reached_(terms.whole.size(), 1) {}

  Counts run() {
    best_ = terms_.whole;
    take_worth(best_);  // if the whole fleet is refused, that is the refusal to tell
    best_worth_ = terms_.worth(best_);
    for (const Candidate& one : in_order(terms_.starts)) look_at(one);
    while (step()) {
    }
    return best_;
  }

 private:
  struct Candidate {
    Counts counts;
    double excess = 0, bound = 0, expected = 0;
    int64_t num_devices = 0;
    /// Before the other in the order of what is looked at.
    bool operator<(const Candidate& other) const {
      if (excess != other.excess) return excess < other.excess;
      if (expected != other.expected) return expected > other.expected;
      if (num_devices != other.num_devices) return num_devices > other.num_devices;
      return counts > other.counts;
    }
  };

  std::vector<Candidate> in_order(const std::vector<Counts>& all) const {
    std::vector<Candidate> candidates;
    for (const Counts& counts : all) {
      const double bound = terms_.bound(counts);
      candidates.push_back({counts,
                            terms_.least_excess(counts),
                            bound,
                            bound * expected_of_bound(counts),
                            std::accumulate(counts.begin(), counts.end(), int64_t{0})});
    }
    std::ranges::sort(candidates, std::less<>());
    return candidates;
  }

  /// Of its bound, as the kinds alone have it.
  double expected_of_bound(const Counts& counts) const {
    double at_best = 0, reached = 0;
    for (size_t i = 0; i < counts.size(); ++i) {
      const double tokens_s = static_cast<double>(counts[i]) * terms_.device_tokens_s[i];
      at_best += tokens_s;
      reached += tokens_s * reached_[i];
    }
    return at_best > 0 ? reached / at_best : 0;
  }

  void learn_from(const Candidate& one, const Worth& worth) {
    size_t last = 0, num_groups = 0;
    for (size_t i = 0; i < one.counts.size(); ++i) {
      if (one.counts[i] == 0) continue;
      last = i;
      num_groups += 1;
    }
    if (num_groups == 1 && worth.objective > 0) reached_[last] = worth.objective / one.bound;
  }

  bool can_be_better(const Candidate& one) const {
    if (best_worth_.excess > 0 || one.excess > 0) return one.excess < best_worth_.excess;
    return one.bound > best_worth_.objective;
  }

  /// False if there is no plan left for it.
  bool take_worth(const Counts& counts) {
    const bool needs_plan = terms_.least_excess(counts) == 0 && !planned_.contains(counts);
    if (!needs_plan) return true;
    if (plans_left_ == 0) return false;
    planned_.insert(counts);
    --plans_left_;
    return true;
  }

  /// Whether it is the best now.
  bool look_at(const Candidate& one) {
    if (!can_be_better(one) || !take_worth(one.counts)) return false;
    const Worth& worth = terms_.worth(one.counts);
    learn_from(one, worth);
    if (!worth.is_better_than(best_worth_)) return false;
    best_ = one.counts;
    best_worth_ = worth;
    return true;
  }

  /// One number changed; false if no change helps.
  bool step() {
    std::vector<Counts> neighbours;
    for (size_t i = 0; i < best_.size(); ++i) {
      for (const int64_t number : terms_.numbers(i, best_[i])) {
        if (number == best_[i]) continue;
        Counts changed = best_;
        changed[i] = number;
        Counts filled = terms_.fill(changed, i);
        if (filled != changed) neighbours.push_back(std::move(filled));
        neighbours.push_back(std::move(changed));
      }
    }
    return std::ranges::any_of(in_order(neighbours),
                               [&](const Candidate& one) { return look_at(one); });
  }

  const ClimbTerms& terms_;  // outlives this
  int64_t plans_left_;
  std::vector<double> reached_;  // of its bound, by group
  std::set<Counts> planned_;
  Counts best_;
  Worth best_worth_;
};

}  // namespace

Counts climb(const ClimbTerms& terms) { return Climb(terms).run(); }

}  // namespace pelago::plan
