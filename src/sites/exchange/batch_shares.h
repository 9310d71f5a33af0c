// Who takes how many sequences of each step, once the run has shown how fast the sites really are.
// The plan shares the batch by probes; a chip that runs hot, a neighbour on its host or a lost
// device shifts the balance, and since all sites take part in each exchange, the whole run then
// goes at the pace of the slowest. A share is changed only when that would gain a good part of a
// step for several rounds in a row: each change moves the border between the sites' samples, and
// must be agreed by all at a round border. Pure: the same measurements give the same answer
// everywhere. Weights of an exchange are the tokens that arrived, so a change of shares needs no
// other care.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <vector>

namespace pelago::sites {

/// A site's work on a step in one round, the line not counted.
struct SitePace {
  int64_t sequences = 0;  // its present share
  double step_s = 0;      // median of the round; 0: not measured (the site was away)
  int64_t least = 1;      // sequences that it can work with: one for each of its pipelines
};

/// The same number of sequences in all, each further one given to the site that would be done first
/// with it; equal ones to the earlier site. A site's time is taken as proportional to its share. A
/// site that was not measured, or holds no sequence now, keeps what it has; every other one keeps
/// at least what it can work with.
std::vector<int64_t> fit_shares(std::span<const SitePace> paces);

/// Time of a step, which is that of the slowest site, with these shares in place of the present
/// ones.
double step_time_s(std::span<const SitePace> paces, std::span<const int64_t> shares);

struct ShareOptions {
  double gain_min = 0.05;  // of a step; below it the jitter of a step is larger than the gain
  int rounds = 3;  // in a row: a checkpoint or a neighbour's build lasts a round or two; 0: never
};

/// Watches the rounds and says when shares should change.
class ShareWatch {
 public:
  explicit ShareWatch(const ShareOptions& options) : options_(options) {}
  /// Once a round, sites in the run's order; their number may change, which begins anew. Returns
  /// new shares if they would have gained enough in each of the last rounds, by the medians of
  /// these rounds; it then begins anew, since the paces were those of the old shares.
  std::optional<std::vector<int64_t>> observe(std::span<const SitePace> paces);

 private:
  ShareOptions options_;
  std::deque<std::vector<SitePace>> rounds_;  // of equal shares, the newest last
};

}  // namespace pelago::sites
