#include "plan/planner/search/layout.h"

#include <algorithm>
#include <cmath>
#include <queue>

#include "plan/planner/reduction.h"
#include "plan/planner/search/balance.h"
#include "plan/planner/search/enumerate.h"
#include "plan/planner/site_run.h"

namespace pelago::plan {

namespace {

constexpr int64_t kDevicesFew = 24;        // up to so many, every layout is looked at...
constexpr int64_t kLayoutsMax = 20'000;    // ... unless there are more than this
constexpr int64_t kPlayedThroughFew = 96;  // of the best by the closed form, few devices
constexpr int64_t kPlayedThroughMany = 12;
constexpr int64_t kSequencesPlayed = 400'000;  // in all of them together

/// What a more intricate layout must gain to be worth its moving parts.
double handicap(const Layout& layout) {
  double share = 0;
  for (const LayoutPart& part : layout.parts) {
    if (num_stages(part.composition) > 1) share = 0.005;
  }
  for (const int64_t width : layout.options.widths) {
    if (width > 1) return share + 0.01;
  }
  return share + (layout.slices_optimizer ? 0.005 : 0);
}

struct Estimate {
  Layout layout;
  std::vector<double> shares;  // of each part's pipelines
  double sequences_a_second = 0;
  bool operator<(const Estimate& other) const {
    return sequences_a_second > other.sequences_a_second;
  }
};

/// Sequences that a pipeline ends within this time, in any of its shapes; at least one.
double sequences_within(const std::vector<PipelineShape>& shapes, double seconds) {
  double most = 1;
  for (const PipelineShape& shape : shapes) {
    const auto microbatch = static_cast<double>(shape.pace.microbatch_max);
    const double first_s = shape.pace.latency.at(microbatch) + shape.pace.step_s;
    const double sequences =
        seconds >= first_s
            ? microbatch * (1 + (seconds - first_s) / shape.pace.period_s(microbatch))
            : (seconds - shape.pace.step_s - shape.pace.latency.fixed_s) /
                  shape.pace.latency.sequence_s;
    most = std::max(most, sequences);
  }
  return most;
}

std::optional<Estimate> estimate(ShapeBook& book, const std::vector<LayoutPart>& parts) {
  const SiteProblem& problem = book.problem();
  Estimate estimate{.layout = {parts, book.options()}, .shares = {}};
  estimate.layout.slices_optimizer = book.options().optimizer_share < 1;
  if (estimate.layout.num_pipelines() > problem.batch) return std::nullopt;
  std::vector<const std::vector<PipelineShape>*> shapes;
  double enough_s = 0;
  for (const LayoutPart& part : parts) {
    shapes.push_back(&book.shapes(part.composition));
    enough_s = std::max(enough_s, shapes.back()->front().pace.time_s(problem.batch));
  }
  const auto sequences_in = [&](double seconds) {
    double sum = 0;
    for (size_t i = 0; i < parts.size(); ++i) {
      sum += static_cast<double>(parts[i].count) * sequences_within(*shapes[i], seconds);
    }
    return sum;
  };
  double short_s = 0;
  constexpr int kBisections = 24;
  for (int i = 0; i < kBisections; ++i) {
    const double middle_s = (short_s + enough_s) / 2;
    (sequences_in(middle_s) >= static_cast<double>(problem.batch) ? enough_s : short_s) = middle_s;
  }
  // A pipeline that takes longer for a single sequence holds all others up.
  for (size_t i = 0; i < parts.size(); ++i) {
    enough_s = std::max(enough_s, fastest_for(*shapes[i], 1).pace.time_s(1));
    estimate.shares.push_back(sequences_within(*shapes[i], enough_s));
  }
  const double step_s = enough_s + estimate_reduction_s(book, estimate.layout);
  estimate.sequences_a_second =
      static_cast<double>(problem.batch) / step_s * (1 - handicap(estimate.layout));
  return estimate;
}

/// The best so far; the worst of them first.
class Shortlist {
 public:
  explicit Shortlist(size_t num_kept) : num_kept_(num_kept) {}
  void add(Estimate estimate) {
    if (kept_.size() == num_kept_ &&
        estimate.sequences_a_second <= kept_.top().sequences_a_second) {
      return;
    }
    kept_.push(std::move(estimate));
    if (kept_.size() > num_kept_) kept_.pop();
  }
  std::vector<Estimate> take() {
    std::vector<Estimate> all;
    for (; !kept_.empty(); kept_.pop()) all.push_back(kept_.top());
    return all;
  }

 private:
  size_t num_kept_;
  std::priority_queue<Estimate> kept_;
};

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

/// Plays the layout through with the best shares; its rate is then exact.
SiteLayout play_through(const SiteProblem& problem, const Estimate& estimate) {
  ShapeBook book(problem, estimate.layout.options);
  SetDealer dealer(problem, estimate.layout.options);
  SiteLayout layout;
  layout.slices_optimizer = estimate.layout.slices_optimizer;
  for (size_t i = 0; i < estimate.layout.parts.size(); ++i) {
    const LayoutPart& part = estimate.layout.parts[i];
    const auto share = std::max<int64_t>(1, std::llround(estimate.shares[i]));
    const PipelineShape& shape = fastest_for(book.shapes(part.composition), share);
    for (int64_t k = 0; k < part.count; ++k)
      layout.pipelines.push_back({shape, dealer.deal(shape)});
  }
  std::sort(layout.pipelines.begin(), layout.pipelines.end(), [](const auto& a, const auto& b) {
    return lowest_rank(a) < lowest_rank(b);
  });
  std::vector<Pace> paces;
  for (const SiteLayout::Pipeline& pipeline : layout.pipelines) {
    paces.push_back(pipeline.shape.pace);
  }
  const Balance balance =
      balance_batch(paces, {.asked = problem.batch, .is_fixed = problem.train.exact_batch});
  const SiteTime time = simulate_site(site_run(problem, layout, balance.sequences));
  layout.sequences_a_second = static_cast<double>(balance.batch) / time.step_s;
  return layout;
}

/// Widths to try: one for all kinds that can have it, and each kind alone.
std::vector<std::vector<int64_t>> widths_to_try(const SiteProblem& problem) {
  const size_t num_kinds = problem.kinds.size();
  const int64_t asked = problem.train.tensor_parallel;
  const auto can = [&](size_t kind, int64_t width) {
    return width == 1 ||
           (can_be_cut(problem.sizes, width) && !tensor_sets(problem.kinds[kind], width).empty());
  };
  if (asked > 0) {
    std::vector<int64_t> widths(num_kinds, asked);
    for (size_t kind = 0; kind < num_kinds; ++kind) {
      if (!can(kind, asked)) return {};
    }
    return {widths};
  }
  std::vector<std::vector<int64_t>> all = {std::vector<int64_t>(num_kinds, 1)};
  const auto add = [&](const std::vector<int64_t>& widths) {
    if (std::find(all.begin(), all.end(), widths) == all.end()) all.push_back(widths);
  };
  const bool tries_each_alone = num_kinds <= 3;
  for (const int64_t width : {2, 4, 8}) {
    std::vector<int64_t> together(num_kinds, 1);
    for (size_t kind = 0; kind < num_kinds; ++kind) {
      if (!can(kind, width)) continue;
      together[kind] = width;
      std::vector<int64_t> one(num_kinds, 1);
      one[kind] = width;
      if (tries_each_alone) add(one);
    }
    add(together);
  }
  return all;
}

void look_at(const SiteProblem& problem, const ShapeOptions& options, Shortlist& shortlist) {
  ShapeBook book(problem, options);
  Composition sets;
  for (size_t kind = 0; kind < problem.kinds.size(); ++kind) {
    sets.push_back(problem.kinds[kind].count / options.widths[kind]);
  }
  // A slice is as small as there are pipelines to share it.
  const auto num_pipelines_min = std::llround(1 / options.optimizer_share);
  const VisitLayout visit = [&](const std::vector<LayoutPart>& parts) {
    if (Layout{parts, options}.num_pipelines() < num_pipelines_min) return;
    if (auto estimated = estimate(book, parts)) shortlist.add(std::move(*estimated));
  };
  const bool is_done =
      num_stages(sets) <= kDevicesFew && visit_all_layouts(book, sets, kLayoutsMax, visit);
  if (!is_done) visit_bulk_layouts(book, sets, visit);
}

/// Numbers of pipelines that may share the optimizer's state: those that there are, or twice as
/// many and so on; without a layout to begin with, from two on.
std::vector<int64_t> slices_to_try(const SiteProblem& problem, const SiteLayout* whole) {
  std::vector<int64_t> slices;
  const int64_t most = std::min(problem.num_devices(), problem.batch);
  const auto first = whole == nullptr ? 2 : static_cast<int64_t>(whole->pipelines.size());
  const bool is_small = problem.num_devices() <= kDevicesFew / 2;
  for (int64_t count = std::max<int64_t>(first, 2); count <= most; count += is_small ? 1 : count) {
    slices.push_back(count);
  }
  return slices;
}

/// slices: numbers of pipelines that the optimizer's state is cut over; 1: it is not.
std::optional<SiteLayout> best_of(const SiteProblem& problem,
                                  const std::vector<std::vector<int64_t>>& all_widths,
                                  const std::vector<int64_t>& slices) {
  const int64_t most_played =
      problem.num_devices() <= kDevicesFew ? kPlayedThroughFew : kPlayedThroughMany;
  const auto num_played = static_cast<size_t>(
      std::clamp<int64_t>(kSequencesPlayed / std::max<int64_t>(problem.batch, 1), 1, most_played));
  std::vector<Estimate> estimates;
  for (const std::vector<int64_t>& widths : all_widths) {
    Shortlist shortlist(all_widths.size() == 1 ? num_played : (num_played + 2) / 3);
    for (const int64_t count : slices) {
      look_at(problem,
              {.widths = widths, .optimizer_share = 1 / static_cast<double>(count)},
              shortlist);
    }
    std::ranges::move(shortlist.take(), std::back_inserter(estimates));
  }
  std::sort(estimates.begin(), estimates.end());
  std::optional<SiteLayout> best;
  double best_rate = 0;
  for (const Estimate& estimate : estimates) {
    // The closed form is too hopeful rather than too sober: what it puts far behind stays there.
    constexpr double kHopeless = 0.7;
    if (estimate.sequences_a_second < kHopeless * best_rate) break;
    SiteLayout layout = play_through(problem, estimate);
    const double rate = layout.sequences_a_second * (1 - handicap(estimate.layout));
    if (rate <= best_rate) continue;
    best_rate = rate;
    best = std::move(layout);
  }
  return best;
}

/// Memory decided something that slicing the optimizer might change.
bool is_pressed(const SiteProblem& problem, const SiteLayout& layout) {
  for (const SiteLayout::Pipeline& pipeline : layout.pipelines) {
    if (pipeline.shape.stages.size() > 1) return true;
    if (pipeline.shape.stages.front().shape.recompute) return true;
    if (pipeline.shape.pace.microbatch_max < problem.train.microbatch_sequences) return true;
  }
  return false;
}

}  // namespace

int64_t Layout::num_pipelines() const {
  int64_t sum = 0;
  for (const LayoutPart& part : parts) sum += part.count;
  return sum;
}

std::optional<SiteLayout> find_layout(const SiteProblem& problem) {
  const std::string& slicing = problem.train.slice_optimizer;
  const std::vector<std::vector<int64_t>> widths = widths_to_try(problem);
  if (widths.empty()) return std::nullopt;
  std::optional<SiteLayout> whole;
  if (slicing != "always") {
    whole = best_of(problem, {widths.front()}, {1});
    const bool is_simple = whole && !is_pressed(problem, *whole);
    // Devices that hold the model alone and have work enough gain nothing by sharing it.
    if (is_simple && problem.batch >= 2 * problem.num_devices()) return whole;
    if (widths.size() > 1) whole = best_of(problem, widths, {1});
    if (slicing == "never" || is_simple) return whole;
  }
  const std::vector<int64_t> slices = slices_to_try(problem, whole ? &*whole : nullptr);
  std::optional<SiteLayout> sliced = best_of(problem, widths, slices);
  if (!sliced) return slicing == "always" ? best_of(problem, widths, {1}) : whole;
  constexpr double kWorthIt = 1.01;
  if (whole && sliced->sequences_a_second < kWorthIt * whole->sequences_a_second) return whole;
  return sliced;
}

std::optional<SiteLayout> keep_layout(const SiteProblem& problem, const SitePlan& site) {
  std::vector<size_t> kind_of_rank(site.devices.size());
  for (size_t kind = 0; kind < problem.kinds.size(); ++kind) {
    for (const std::vector<int>& node : problem.kinds[kind].nodes) {
      for (const int rank : node) kind_of_rank[static_cast<size_t>(rank)] = kind;
    }
  }
  SiteLayout layout;
  layout.slices_optimizer = site.slice_optimizer;
  layout.pipelines.resize(site.pipelines.size());
  for (size_t i = 0; i < site.pipelines.size(); ++i) {
    for (const StagePlan& stage : site.pipelines[i].stages) {
      layout.pipelines[i].ranks.push_back(stage.ranks);
    }
  }
  const SharedTraits traits = shared_traits(layout);
  for (size_t i = 0; i < site.pipelines.size(); ++i) {
    const PipelinePlan& pipeline = site.pipelines[i];
    std::vector<StageChoice> stages;
    for (const StagePlan& stage : pipeline.stages) {
      // The slowest of a stage's devices sets its pace.
      size_t slowest = kind_of_rank[static_cast<size_t>(stage.ranks.front())];
      for (const int rank : stage.ranks) {
        const size_t kind = kind_of_rank[static_cast<size_t>(rank)];
        if (problem.kinds[kind].profile.block_backward.sequence_s >
            problem.kinds[slowest].profile.block_backward.sequence_s) {
          slowest = kind;
        }
      }
      stages.push_back({slowest,
                        {.num_blocks = stage.last_block - stage.first_block,
                         .width = static_cast<int64_t>(stage.ranks.size()),
                         .has_embedding = &stage == &pipeline.stages.front(),
                         .has_head = &stage == &pipeline.stages.back(),
                         .recompute = stage.recompute},
                        stage.in_flight});
    }
    int64_t microbatch = std::max(problem.train.microbatch_sequences, pipeline.microbatch);
    while (microbatch > pipeline.microbatch && !fits(problem, stages, microbatch, traits)) {
      --microbatch;
    }
    layout.pipelines[i].shape = finish_shape(problem, std::move(stages), microbatch, traits);
  }
  return layout;
}

}  // namespace pelago::plan
