#include "plan/planner/search/play/play_through.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>

#include "plan/planner/search/balance.h"
#include "plan/planner/search/few/variants.h"
#include "plan/planner/search/play/settle.h"
#include "plan/planner/site_run.h"

namespace pelago::plan {

namespace {

/// Hands out the sets of devices of each kind, in order.
class SetDealer {
 public:
  SetDealer(const SiteProblem& problem, const ShapeOptions& options) {
    for (size_t kind = 0; kind < problem.kinds.size(); ++kind) {
      sets_.push_back(tensor_sets(problem.kinds[kind], options.widths[kind]));
    }
    next_.assign(sets_.size(), 0);
  }
  std::vector<std::vector<int>> deal(const PipelineShape& shape) {
    std::vector<std::vector<int>> ranks;
    for (const StageChoice& stage : shape.stages) {
      ranks.push_back(sets_[stage.kind_idx][next_[stage.kind_idx]++]);
    }
    return ranks;
  }

 private:
  std::vector<std::vector<std::vector<int>>> sets_;
  std::vector<size_t> next_;
};

int lowest_rank(const SiteLayout::Pipeline& pipeline) {
  int lowest = pipeline.ranks.front().front();
  for (const std::vector<int>& stage : pipeline.ranks) lowest = std::min(lowest, stage.front());
  return lowest;
}

/// The shapes of a thorough search for given shares, and the shares for these shapes.
Balance settle_shapes(ShapeBook& book,
                      const std::vector<const Composition*>& compositions,
                      const BatchRange& range,
                      SiteLayout& layout,
                      Balance balance) {
  constexpr double kNear = 1.2;  // of estimates
  constexpr int kTurns = 2;
  for (int turn = 0; turn < kTurns; ++turn) {
    std::vector<Pace> paces;
    for (size_t i = 0; i < layout.pipelines.size(); ++i) {
      PipelineShape& shape = layout.pipelines[i].shape;
      shape = fastest_played(book.shapes(*compositions[i]), balance.sequences[i], kNear);
      play_shares(shape, std::min(range.hi(), balance.sequences[i] + kTurns));
      paces.push_back(shape.pace);
    }
    balance = balance_batch(paces, range);
  }
  for (SiteLayout::Pipeline& pipeline : layout.pipelines) {
    play_shares(pipeline.shape, range.hi());
  }
  return balance;
}

/// The order of stages may have become another than that of the ranks dealt.
void deal_again(const SiteProblem& problem, const ShapeOptions& options, SiteLayout& layout) {
  SetDealer dealer(problem, options);
  for (SiteLayout::Pipeline& pipeline : layout.pipelines) {
    pipeline.ranks = dealer.deal(pipeline.shape);
  }
}

/// Sets of unlike widths are of one kind again, whose links they share; then the site is played.
void rate_layout(const SiteProblem& site,
                 const Division& division,
                 SiteLayout& layout,
                 std::span<int64_t> shares) {
  for (SiteLayout::Pipeline& pipeline : layout.pipelines) {
    for (StageChoice& stage : pipeline.shape.stages) {
      stage.kind_idx = division.kind_of[stage.kind_idx];
    }
  }
  settle_layout(site, layout, shares);
  const SiteTime time = simulate_site(site_run(site, layout, shares));
  int64_t batch = 0;
  for (const int64_t share : shares) batch += share;
  layout.sequences_a_second = static_cast<double>(batch) / time.step_s;
}

}  // namespace

SiteLayout play_through(const SiteProblem& site,
                        const Division& division,
                        ShapeBook& book,
                        const Estimate& estimate) {
  const SiteProblem& problem = division.problem;
  SetDealer dealer(problem, estimate.layout.options);
  SiteLayout layout;
  layout.slices_optimizer = estimate.layout.slices_optimizer;
  std::vector<std::pair<SiteLayout::Pipeline, const Composition*>> dealt;
  for (size_t i = 0; i < estimate.layout.parts.size(); ++i) {
    const LayoutPart& part = estimate.layout.parts[i];
    const auto share = std::max<int64_t>(1, std::llround(estimate.shares[i]));
    const PipelineShape& shape = fastest_for(book.shapes(part.composition), share);
    for (int64_t k = 0; k < part.count; ++k) {
      dealt.push_back({{shape, dealer.deal(shape)}, &part.composition});
    }
  }
  std::sort(dealt.begin(), dealt.end(), [](const auto& a, const auto& b) {
    return lowest_rank(a.first) < lowest_rank(b.first);
  });
  std::vector<Pace> paces;
  std::vector<const Composition*> compositions;
  for (auto& [pipeline, composition] : dealt) {
    paces.push_back(pipeline.shape.pace);
    layout.pipelines.push_back(std::move(pipeline));
    compositions.push_back(composition);
  }
  const BatchRange range{.asked = problem.batch, .is_fixed = problem.train.exact_batch};
  Balance balance = balance_batch(paces, range);
  const bool is_thorough = estimate.layout.options.is_thorough && range.hi() <= kSequencesOfFew;
  std::vector<int64_t> shares = std::move(balance.sequences);
  if (is_thorough) {
    shares =
        settle_shapes(book, compositions, range, layout, {shares, balance.batch, balance.step_s})
            .sequences;
    deal_again(problem, estimate.layout.options, layout);
  }
  SiteLayout turned = layout;
  std::vector<int64_t> turned_shares = shares;
  rate_layout(site, division, layout, shares);
  if (!is_thorough || layout.pipelines.size() < 2) return layout;
  // Which of two pipelines of one composition has the larger share matters where nodes differ.
  std::reverse(turned.pipelines.begin(), turned.pipelines.end());
  std::reverse(turned_shares.begin(), turned_shares.end());
  deal_again(problem, estimate.layout.options, turned);
  rate_layout(site, division, turned, turned_shares);
  constexpr double kWorthTurning = 1.002;
  return turned.sequences_a_second > kWorthTurning * layout.sequences_a_second ? turned : layout;
}

}  // namespace pelago::plan
