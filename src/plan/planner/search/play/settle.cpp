#include "plan/planner/search/play/settle.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "plan/planner/search/few/variants.h"
#include "plan/planner/site_run.h"

namespace pelago::plan {

namespace {

class Settling {
 public:
  Settling(const SiteProblem& problem, SiteLayout& layout, std::span<int64_t> shares)
      : problem_(problem),
        layout_(layout),
        shares_(shares),
        run_(site_run(problem, layout, shares)),
        best_s_(simulate_site(run_).step_s) {
    for (size_t i = 0; i < shares.size(); ++i) {
      sizes_.push_back(layout.pipelines[i].shape.pace.best_microbatch(shares[i]));
    }
    for (size_t i = 0; i < layout.pipelines.size(); ++i) {
      for (size_t stage = 0; stage < layout.pipelines[i].ranks.size(); ++stage) {
        stages_.emplace_back(i, stage);
      }
    }
  }

  /// Each pipeline in the microbatches that suit the site best.
  void settle_sizes() {
    for (size_t i = 0; i < shares_.size(); ++i) try_sizes(i);
  }

  /// A sequence from one pipeline to another, or the shares of two exchanged. True if something was
  /// gained.
  bool move_shares() {
    for (size_t from = 0; from < shares_.size(); ++from) {
      for (size_t to = 0; to < shares_.size(); ++to) {
        if (from == to) continue;
        const int64_t more = shares_[from] - shares_[to];
        if (shares_[from] >= 2 && move(from, to, 1)) return true;
        if (more > 1 && move(from, to, more)) return true;
      }
    }
    return false;
  }

  /// Two sets of devices of one kind and width in different nodes exchanged. True if something was
  /// gained.
  bool exchange_devices() {
    for (size_t a = 0; a < stages_.size(); ++a) {
      for (size_t b = a + 1; b < stages_.size(); ++b) {
        if (!differs_by_node_only(stages_[a], stages_[b])) continue;
        std::swap(ranks_of(stages_[a]), ranks_of(stages_[b]));
        const SiteRun before = std::move(run_);
        run_ = site_run(problem_, layout_, shares_);
        for (size_t i = 0; i < shares_.size(); ++i) cut(i);
        const double step_s = simulate_site(run_).step_s;
        if (step_s < kBetter * best_s_) {
          best_s_ = step_s;
          return true;
        }
        std::swap(ranks_of(stages_[a]), ranks_of(stages_[b]));
        run_ = before;
      }
    }
    return false;
  }

  /// Makes the paces of the layout say what was found.
  void write() {
    for (size_t i = 0; i < shares_.size(); ++i) {
      Pace& pace = layout_.pipelines[i].shape.pace;
      if (pace.best_microbatch(shares_[i]) == sizes_[i]) continue;
      while (static_cast<int64_t>(pace.played.size()) < shares_[i]) {
        const auto next = static_cast<int64_t>(pace.played.size()) + 1;
        pace.played.push_back({pace.time_s(next) - pace.step_s, pace.best_microbatch(next)});
      }
      pace.played[static_cast<size_t>(shares_[i] - 1)].microbatch = sizes_[i];
    }
  }

 private:
  // Less is not worth a share or a size that looks odd.
  static constexpr double kBetter = 0.999;
  using Stage = std::pair<size_t, size_t>;  // pipeline, stage

  std::vector<int>& ranks_of(const Stage& stage) {
    return layout_.pipelines[stage.first].ranks[stage.second];
  }
  bool differs_by_node_only(const Stage& a, const Stage& b) {
    const StageChoice& one = layout_.pipelines[a.first].shape.stages[a.second];
    const StageChoice& other = layout_.pipelines[b.first].shape.stages[b.second];
    if (one.kind_idx != other.kind_idx || one.shape.width != other.shape.width) return false;
    const Kind& kind = problem_.kinds[one.kind_idx];
    return kind.node_of.at(ranks_of(a).front()) != kind.node_of.at(ranks_of(b).front());
  }

  bool move(size_t from, size_t to, int64_t count) {
    const std::vector<int64_t> before = sizes_;
    const double before_s = best_s_;
    shares_[from] -= count;
    shares_[to] += count;
    for (const size_t i : {from, to}) {
      sizes_[i] = layout_.pipelines[i].shape.pace.best_microbatch(shares_[i]);
    }
    best_s_ = std::numeric_limits<double>::infinity();
    cut(to);
    try_sizes(from);
    try_sizes(to);
    if (best_s_ < kBetter * before_s) return true;
    shares_[from] += count;
    shares_[to] -= count;
    sizes_ = before;
    best_s_ = before_s;
    cut(from);
    cut(to);
    return false;
  }

  void cut(size_t i) {
    run_.pipelines[i].sequences = cut_microbatches(shares_[i], std::min(sizes_[i], shares_[i]));
  }
  void try_sizes(size_t i) {
    int64_t best = std::min(sizes_[i], shares_[i]);
    const Pace& pace = layout_.pipelines[i].shape.pace;
    std::vector<int64_t> sizes = even_cuts(shares_[i], pace);
    // With a small last microbatch the next reduction may begin sooner.
    const int64_t largest = pace.is_exact ? 0 : std::min(shares_[i], pace.microbatch_max);
    for (int64_t size = largest; size >= 1; --size) sizes.push_back(size);
    for (const int64_t size : sizes) {
      run_.pipelines[i].sequences = cut_microbatches(shares_[i], size);
      const double step_s = simulate_site(run_).step_s;
      if (step_s >= kBetter * best_s_) continue;
      best_s_ = step_s;
      best = size;
    }
    sizes_[i] = best;
    cut(i);
  }

  const SiteProblem& problem_;  // outlives this, as do layout and shares
  SiteLayout& layout_;
  std::span<int64_t> shares_;
  std::vector<Stage> stages_;
  std::vector<int64_t> sizes_;
  SiteRun run_;
  double best_s_;
};

bool is_few(const SiteProblem& problem, std::span<const int64_t> shares) {
  int64_t batch = 0;
  for (const int64_t share : shares) batch += share;
  return problem.num_devices() <= kDevicesFewest && batch <= kSequencesOfFew;
}

constexpr int kMovesMax = 6;

}  // namespace

void settle_shares(const SiteProblem& problem, SiteLayout& layout, std::span<int64_t> shares) {
  if (!is_few(problem, shares)) return;
  Settling settling(problem, layout, shares);
  settling.settle_sizes();
  for (int move = 0; move < kMovesMax && settling.move_shares(); ++move) {
  }
  settling.write();
}

void settle_layout(const SiteProblem& problem, SiteLayout& layout, std::span<int64_t> shares) {
  if (!is_few(problem, shares)) return;
  Settling settling(problem, layout, shares);
  settling.settle_sizes();
  for (int move = 0; move < kMovesMax; ++move) {
    if (!settling.move_shares() && !settling.exchange_devices()) break;
  }
  settling.write();
}

}  // namespace pelago::plan
