#include "plan/planner/search/layout.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <memory>
#include <queue>
#include <span>

#include "plan/planner/reduction.h"
#include "plan/planner/search/enumerate.h"
#include "plan/planner/search/few/division.h"
#include "plan/planner/search/few/variants.h"
#include "plan/planner/search/play/play_through.h"
#include "plan/planner/site_run.h"

namespace pelago::plan {

namespace {

constexpr int64_t kDevicesFew = 24;        // up to so many, every layout is looked at...
constexpr int64_t kLayoutsMax = 20'000;    // ... unless there are more than this
constexpr int64_t kPlayedThroughFew = 96;  // of the best by the closed form, few devices
constexpr int64_t kPlayedThroughMany = 12;
constexpr int64_t kSequencesPlayed = 400'000;  // in all of them together

/// What a more intricate layout must gain to be worth its moving parts: in all less than the
/// hundredth by which a plan may miss the best.
double handicap(const Layout& layout) {
  double share = 0;
  for (const LayoutPart& part : layout.parts) {
    if (num_stages(part.composition) > 1) share = 0.003;
  }
  for (const int64_t width : layout.options.widths) {
    if (width > 1) return share + 0.004;
  }
  return share + (layout.slices_optimizer ? 0.002 : 0);
}

/// What one shape's pace says of many microbatches of its largest size.
struct Filling {
  double microbatch = 1;
  double first_s = 0;  // until the first one has left, the optimizer included
  double period_s = 0;
  double step_s = 0, fixed_s = 0;  // of first_s, whatever the microbatch
  double sequence_s = 0;
};

/// The shapes of one part of a layout, for a search that asks often.
struct PartPace {
  double count = 0;
  const std::vector<PipelineShape>* shapes = nullptr;
  std::vector<Filling> fillings;

  PartPace(const LayoutPart& part, const std::vector<PipelineShape>& all)
      : count(static_cast<double>(part.count)), shapes(&all) {
    fillings.reserve(all.size());
    for (const PipelineShape& shape : all) {
      const Pace& pace = shape.pace;
      const auto microbatch = static_cast<double>(pace.microbatch_max);
      fillings.push_back({.microbatch = microbatch,
                          .first_s = pace.latency.at(microbatch) + pace.step_s,
                          .period_s = pace.period_s(microbatch),
                          .step_s = pace.step_s,
                          .fixed_s = pace.latency.fixed_s,
                          .sequence_s = pace.latency.sequence_s});
    }
  }

  /// Sequences that one pipeline ends within this time, in any of its shapes; at least one.
  double sequences_within(double seconds) const {
    double most = 1;
    for (const Filling& one : fillings) {
      const double sequences = seconds >= one.first_s
                                   ? one.microbatch * (1 + (seconds - one.first_s) / one.period_s)
                                   : (seconds - one.step_s - one.fixed_s) / one.sequence_s;
      most = std::max(most, sequences);
    }
    return most;
  }
};

/// None if there are more pipelines than sequences, or its rate is below least_rate for sure.
std::optional<Estimate> estimate(ShapeBook& book,
                                 const std::vector<LayoutPart>& parts,
                                 double least_rate) {
  const SiteProblem& problem = book.problem();
  Estimate estimate{.layout = {parts, book.options()}, .shares = {}};
  estimate.layout.slices_optimizer = book.options().optimizer_share < 1;
  if (estimate.layout.num_pipelines() > problem.batch) return std::nullopt;
  std::vector<PartPace> paces;
  paces.reserve(parts.size());
  for (const LayoutPart& part : parts) paces.emplace_back(part, book.shapes(part.composition));
  const auto sequences_in = [&](double seconds) {
    double sum = 0;
    for (const PartPace& pace : paces) sum += pace.count * pace.sequences_within(seconds);
    return sum;
  };
  const auto batch = static_cast<double>(problem.batch);
  const double keeps = 1 - handicap(estimate.layout);
  // Sums are rounded: what comes so near is looked at.
  constexpr double kNear = 1 - 1e-6;
  if (least_rate > 0 && sequences_in(batch / least_rate * keeps) < kNear * batch) {
    return std::nullopt;
  }
  double enough_s = 0;
  for (const PartPace& pace : paces) {
    enough_s = std::max(enough_s, pace.shapes->front().pace.time_s(problem.batch));
  }
  double short_s = 0;
  constexpr int kBisections = 24;
  for (int i = 0; i < kBisections; ++i) {
    const double middle_s = (short_s + enough_s) / 2;
    (sequences_in(middle_s) >= batch ? enough_s : short_s) = middle_s;
  }
  // A pipeline that takes longer for a single sequence holds all others up.
  for (const PartPace& pace : paces) {
    double one_s = std::numeric_limits<double>::infinity();
    for (const PipelineShape& shape : *pace.shapes) one_s = std::min(one_s, shape.pace.time_s(1));
    enough_s = std::max(enough_s, one_s);
    estimate.shares.push_back(pace.sequences_within(enough_s));
  }
  if (least_rate > 0 && batch / enough_s * keeps < kNear * least_rate) return std::nullopt;
  const double step_s = enough_s + estimate_reduction_s(book, estimate.layout);
  estimate.sequences_a_second = batch / step_s * keeps;
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
  /// What another must be better than to be kept; 0: anything is.
  double least_rate() const {
    return kept_.size() == num_kept_ ? kept_.top().sequences_a_second : 0;
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

/// Widths to try: one for all kinds that can have it, and each kind alone.
std::vector<std::vector<int64_t>> widths_to_try(const SiteProblem& problem) {
  const size_t num_kinds = problem.kinds.size();
  const int64_t asked = problem.train.tensor_parallel;
  const auto can = [&](size_t kind, int64_t width) {
    if (!problem.kinds[kind].profile.allows(width)) return false;
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
  std::vector<int64_t> least;
  for (size_t kind = 0; kind < num_kinds; ++kind) {
    for (int64_t width = 1; width <= 8 && least.size() == kind; width *= 2) {
      if (can(kind, width)) least.push_back(width);
    }
    if (least.size() == kind) return {};
  }
  std::vector<std::vector<int64_t>> all = {least};
  const auto add = [&](const std::vector<int64_t>& widths) {
    if (std::find(all.begin(), all.end(), widths) == all.end()) all.push_back(widths);
  };
  const bool tries_each_alone = num_kinds <= 3;
  for (const int64_t width : {2, 4, 8}) {
    std::vector<int64_t> together = least;
    for (size_t kind = 0; kind < num_kinds; ++kind) {
      if (!can(kind, width)) continue;
      together[kind] = width;
      std::vector<int64_t> one = least;
      one[kind] = width;
      if (tries_each_alone) add(one);
    }
    add(together);
  }
  return all;
}

void look_at(ShapeBook& book, size_t division_idx, Shortlist& shortlist) {
  const SiteProblem& problem = book.problem();
  const ShapeOptions& options = book.options();
  Composition sets;
  for (size_t kind = 0; kind < problem.kinds.size(); ++kind) {
    sets.push_back(problem.kinds[kind].count / options.widths[kind]);
  }
  // A slice is as small as there are pipelines to share it.
  const auto num_pipelines_min = std::llround(1 / options.optimizer_share);
  const VisitLayout visit = [&](const std::vector<LayoutPart>& parts) {
    if (Layout{parts, options}.num_pipelines() < num_pipelines_min) return;
    auto estimated = estimate(book, parts, shortlist.least_rate());
    if (!estimated) return;
    estimated->division_idx = division_idx;
    shortlist.add(std::move(*estimated));
  };
  const bool is_done =
      num_stages(sets) <= kDevicesFew && visit_all_layouts(book, sets, kLayoutsMax, visit);
  if (!is_done) visit_bulk_layouts(book, sets, num_pipelines_min, visit);
}

/// Numbers of pipelines that may share the optimizer's state: of few devices any; else those that
/// there are, or twice as many and so on; without a layout to begin with, from two on.
std::vector<int64_t> slices_to_try(const SiteProblem& problem, const SiteLayout* whole) {
  std::vector<int64_t> slices;
  const int64_t most = std::min(problem.num_devices(), problem.batch);
  const bool is_small = problem.num_devices() <= kDevicesFew / 2;
  const auto first =
      whole == nullptr || is_small ? 2 : static_cast<int64_t>(whole->pipelines.size());
  for (int64_t count = std::max<int64_t>(first, 2); count <= most; count += is_small ? 1 : count) {
    slices.push_back(count);
  }
  return slices;
}

/// Shape books by division and slices: what was thought out once serves every layout. Of one list
/// of divisions, which outlives it.
class Library {
 public:
  ShapeBook& book(const Division& division, size_t division_idx, double optimizer_share) {
    auto& one = books_[{division_idx, optimizer_share}];
    if (!one) {
      const bool is_few = division.problem.num_devices() <= kDevicesFewest;
      one = std::make_unique<ShapeBook>(
          division.problem, ShapeOptions{division.widths, optimizer_share, /*is_thorough=*/is_few});
    }
    return *one;
  }

 private:
  std::map<std::pair<size_t, double>, std::unique_ptr<ShapeBook>> books_;
};

/// slices: numbers of pipelines that the optimizer's state is cut over; 1: it is not.
std::optional<SiteLayout> best_of(const SiteProblem& problem,
                                  std::span<const Division> divisions,
                                  const std::vector<int64_t>& slices,
                                  Library& library) {
  const int64_t most_played =
      problem.num_devices() <= kDevicesFew ? kPlayedThroughFew : kPlayedThroughMany;
  const auto num_played = static_cast<size_t>(
      std::clamp<int64_t>(kSequencesPlayed / std::max<int64_t>(problem.batch, 1), 1, most_played));
  std::vector<Estimate> estimates;
  for (size_t i = 0; i < divisions.size(); ++i) {
    Shortlist shortlist(divisions.size() == 1 ? num_played : (num_played + 2) / 3);
    for (const int64_t count : slices) {
      look_at(library.book(divisions[i], i, 1 / static_cast<double>(count)), i, shortlist);
    }
    std::ranges::move(shortlist.take(), std::back_inserter(estimates));
  }
  std::sort(estimates.begin(), estimates.end());
  std::optional<SiteLayout> best;
  double best_rate = 0;
  for (const Estimate& estimate : estimates) {
    // The closed form is too hopeful rather than too sober: what it puts far behind stays there.
    constexpr double kHopeless = 0.8;
    if (estimate.sequences_a_second < kHopeless * best_rate) break;
    const Division& division = divisions[estimate.division_idx];
    SiteLayout layout = play_through(
        problem,
        division,
        library.book(division, estimate.division_idx, estimate.layout.options.optimizer_share),
        estimate);
    const double rate = layout.sequences_a_second * (1 - handicap(estimate.layout));
    if (rate <= best_rate) continue;
    best_rate = rate;
    best = std::move(layout);
  }
  return best;
}

/// What to join the devices to: few of them in every way, else by widths_to_try(). The first has
/// single devices only, unless the job asks for a width.
std::vector<Division> divisions_to_try(const SiteProblem& problem) {
  constexpr size_t kDivisionsMax = 48;
  if (problem.num_devices() <= kDevicesFewest && problem.train.tensor_parallel == 0) {
    return all_divisions(problem, kDivisionsMax);
  }
  std::vector<Division> divisions;
  for (const std::vector<int64_t>& widths : widths_to_try(problem)) {
    divisions.push_back(uniform_division(problem, widths));
  }
  return divisions;
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
  const std::vector<Division> divisions = divisions_to_try(problem);
  if (divisions.empty()) return std::nullopt;
  Library library;
  std::optional<SiteLayout> whole;
  if (slicing != "always") {
    whole = best_of(problem, std::span(divisions).first(1), {1}, library);
    const bool is_simple = whole && !is_pressed(problem, *whole);
    // Devices that hold the model alone and have work enough gain nothing by sharing it.
    if (is_simple && problem.batch >= 4 * problem.num_devices()) return whole;
    if (divisions.size() > 1) whole = best_of(problem, divisions, {1}, library);
    if (slicing == "never") return whole;
  }
  const std::vector<int64_t> slices = slices_to_try(problem, whole ? &*whole : nullptr);
  std::optional<SiteLayout> sliced = best_of(problem, divisions, slices, library);
  if (!sliced) return slicing == "always" ? best_of(problem, divisions, {1}, library) : whole;
  constexpr double kWorthIt = 1.003;
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
