// Whether a delta looks like those that its site and the others usually send. Sites are partners,
// so the check is made for one that is broken (a chip that computes wrong, a bug, a stolen key),
// not for many that plot together. With two sites nobody can be outvoted: only a change of habit is
// seen, and of the two the one is meant that changed.
//
// A delta is held against each other member's, and is at fault if it does not fit to more than half
// of them: one bad delta then never makes the others look bad.
//   norm       log(rms_i / rms_j) farther than 6 MAD from its running median. MAD is at least
//              0.4, which makes 11 times the smallest change found: a site that joins again has an
//              optimizer without a past, and its first deltas are several times their usual size.
//              Before four rounds are known, 30 times
//   direction  cosine below -0.2, plus what chance does to a short slice; honest ones lie above 0.
//              Between two, the outer momentum is the third witness
//   zero       it did not move while others did
// Sources: guards by norm and direction as in Sun et al. (arXiv:1911.07963) and Karimireddy et al.
// (arXiv:2012.10333); median and MAD because a mean would learn the attack.
#pragma once

#include <deque>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "sites/trust/slice_gram.h"

namespace pelago::sites {

enum class DeltaFault { kNone, kNotFinite, kZero, kNorm, kDirection };
/// "not finite", "zero", "norm", "direction"; "" for none.
std::string_view name_of(DeltaFault fault);

/// The last few values of something, and what is usual for it.
class RunningMedian {
 public:
  void add(double value);
  size_t num_values() const { return values_.size(); }
  double median() const;
  /// Median distance from the median, in standard deviations of a normal distribution.
  double deviation() const;

 private:
  std::deque<double> values_;
};

class DeltaWatch {
 public:
  /// What is wrong with each member's delta; in the order of sites. has_trained: there are tokens
  /// behind it; one without is never at fault.
  std::vector<DeltaFault> judge(const std::vector<std::string>& sites,
                                const std::vector<bool>& has_trained,
                                const SliceGram& gram) const;
  /// These deltas were committed: those that teach are what is usual. Those at fault teach nothing.
  void learn(const std::vector<std::string>& sites,
             const std::vector<bool>& teaches,
             const SliceGram& gram);

 private:
  using Pair = std::pair<std::string, std::string>;
  bool differs(const Pair& pair, double log_ratio) const;
  bool has_moved_more(const std::string& site,
                      double log_rms,
                      const std::string& other,
                      double other_log_rms) const;
  DeltaFault fault_of(size_t idx,
                      const std::vector<std::string>& sites,
                      const std::vector<bool>& has_trained,
                      const SliceGram& gram) const;

  std::map<std::string, RunningMedian> log_rms_;  // by site
  std::map<Pair, RunningMedian> log_ratio_;       // of the first's rms over the second's
};

}  // namespace pelago::sites
