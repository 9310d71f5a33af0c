#include "plan/planner/search/enumerate.h"

#include <algorithm>
#include <functional>
#include <set>

namespace pelago::plan {

namespace {

/// What the job allows of a pipeline's depth.
bool is_allowed(const SiteProblem& problem,
                const Composition& composition,
                const Composition& sets) {
  const int64_t depth = num_stages(composition);
  const TrainConfig& train = problem.train;
  if (depth > problem.sizes.num_blocks) return false;
  if (train.stages > 0) return depth == train.stages;
  if (train.pipeline == "never") return depth == 1;
  if (train.pipeline == "always") return depth > 1 || num_stages(sets) == 1;
  return true;
}

bool works(ShapeBook& book, const Composition& composition, const Composition& sets) {
  return is_allowed(book.problem(), composition, sets) && !book.shapes(composition).empty();
}

class Partitions {
 public:
  Partitions(ShapeBook& book, const Composition& sets, int64_t most, const VisitLayout& visit)
      : book_(book), sets_(sets), visits_left_(most), visit_(visit) {
    list_compositions(Composition(sets.size(), 0), 0);
    // The deepest first: what is left becomes small soon.
    std::sort(compositions_.begin(), compositions_.end(), [](const auto& a, const auto& b) {
      return std::pair(num_stages(a), a) > std::pair(num_stages(b), b);
    });
  }

  bool run() {
    if (is_too_many_) return false;
    fill(0, sets_);
    return !is_too_many_;
  }

 private:
  static constexpr size_t kCompositionsMax = 3000;

  void list_compositions(Composition composition, size_t kind_idx) {
    if (compositions_.size() > kCompositionsMax) is_too_many_ = true;
    if (is_too_many_) return;
    if (kind_idx == sets_.size()) {
      if (num_stages(composition) > 0 && works(book_, composition, sets_)) {
        compositions_.push_back(composition);
      }
      return;
    }
    const int64_t most =
        std::min(sets_[kind_idx], book_.problem().sizes.num_blocks - num_stages(composition));
    for (int64_t count = 0; count <= most; ++count) {
      composition[kind_idx] = count;
      list_compositions(composition, kind_idx + 1);
    }
  }

  /// Shares out what is left among compositions from first_idx on.
  void fill(size_t first_idx, const Composition& left) {
    if (is_too_many_) return;
    if (num_stages(left) == 0) {
      is_too_many_ = visits_left_-- == 0;
      if (!is_too_many_) visit_(parts_);
      return;
    }
    for (size_t i = first_idx; i < compositions_.size(); ++i) {
      const Composition& composition = compositions_[i];
      int64_t most = INT64_MAX;
      for (size_t kind_idx = 0; kind_idx < left.size(); ++kind_idx) {
        if (composition[kind_idx] == 0) continue;
        most = std::min(most, left[kind_idx] / composition[kind_idx]);
      }
      Composition rest = left;
      for (int64_t count = 1; count <= most; ++count) {
        for (size_t k = 0; k < rest.size(); ++k) rest[k] -= composition[k];
        parts_.push_back({composition, count});
        fill(i + 1, rest);
        parts_.pop_back();
        if (is_too_many_) return;
      }
    }
  }

  ShapeBook& book_;
  const Composition& sets_;
  int64_t visits_left_;
  const VisitLayout& visit_;
  std::vector<Composition> compositions_;
  std::vector<LayoutPart> parts_;
  bool is_too_many_ = false;
};

/// Sequences a second of each device, when there is more than enough to do.
double rate_of(ShapeBook& book, const Composition& composition) {
  double rate = 0;
  for (const PipelineShape& shape : book.shapes(composition)) {
    const int64_t microbatch = shape.pace.microbatch_max;
    const int64_t share = microbatch * 4 * num_stages(composition);
    rate = std::max(rate, static_cast<double>(share) / shape.pace.time_s(share));
  }
  return rate / static_cast<double>(num_stages(composition));
}

Composition alone(size_t num_kinds, size_t kind_idx, int64_t depth) {
  Composition composition(num_kinds, 0);
  composition[kind_idx] = depth;
  return composition;
}

/// The depth at which a kind alone is fastest; 0 if it cannot hold the model.
int64_t best_depth(ShapeBook& book, const Composition& sets, size_t kind_idx) {
  constexpr int64_t kDepthsTried = 8;
  const int64_t most = std::min(sets[kind_idx], book.problem().sizes.num_blocks);
  int64_t best = 0;
  int64_t num_working = 0;
  double best_rate = 0;
  for (int64_t depth = 1; depth <= most && num_working < kDepthsTried; ++depth) {
    const Composition composition = alone(sets.size(), kind_idx, depth);
    if (!works(book, composition, sets)) continue;
    num_working += 1;
    const double rate = rate_of(book, composition);
    if (rate > 1.01 * best_rate) {
      best = depth;
      best_rate = rate;
    }
  }
  return best;
}

/// The mixed composition as often as it goes, but `fewer` times; then each kind alone.
std::vector<LayoutPart> fill_in_bulk(const Composition& mixed,
                                     int64_t fewer,
                                     const std::vector<int64_t>& depths,
                                     Composition& left) {
  std::vector<LayoutPart> parts;
  if (!mixed.empty()) {
    int64_t count = INT64_MAX;
    for (size_t kind = 0; kind < left.size(); ++kind) {
      if (mixed[kind] > 0) count = std::min(count, left[kind] / mixed[kind]);
    }
    count -= fewer;
    for (size_t kind = 0; kind < left.size(); ++kind) left[kind] -= count * mixed[kind];
    if (count > 0) parts.push_back({mixed, count});
  }
  for (size_t kind = 0; kind < left.size(); ++kind) {
    if (depths[kind] == 0 || left[kind] < depths[kind]) continue;
    parts.push_back({alone(left.size(), kind, depths[kind]), left[kind] / depths[kind]});
    left[kind] %= depths[kind];
  }
  return parts;
}

/// Whether a layout with this composition can have so many pipelines at all.
bool can_have_pipelines(const Composition& mixed,
                        int64_t num_pipelines_min,
                        const std::vector<int64_t>& depths,
                        const Composition& sets) {
  if (num_pipelines_min <= 1) return true;
  for (const int64_t fewer : {0, 1}) {
    Composition left = sets;
    int64_t count = num_stages(left) > 0 ? 1 : 0;  // the remainders may become a pipeline
    for (const LayoutPart& part : fill_in_bulk(mixed, fewer, depths, left)) count += part.count;
    if (count >= num_pipelines_min) return true;
  }
  return false;
}

/// Compositions of several kinds on a grid that grows coarser.
std::vector<Composition> mixed_compositions(ShapeBook& book,
                                            const Composition& sets,
                                            int64_t num_pipelines_min,
                                            const std::vector<int64_t>& depths) {
  const std::vector<int64_t> grid =
      sets.size() <= 2 ? std::vector<int64_t>{0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48}
                       : std::vector<int64_t>{0, 1, 2, 4, 8, 16, 32};
  std::vector<Composition> mixed;
  const std::function<void(Composition, size_t)> list = [&](Composition composition, size_t kind) {
    if (num_stages(composition) > book.problem().sizes.num_blocks) return;
    if (kind == sets.size()) {
      const auto num_kinds = std::count_if(
          composition.begin(), composition.end(), [](int64_t count) { return count > 0; });
      // Shapes cost more than counting: first what they would be for.
      if (num_kinds > 1 && can_have_pipelines(composition, num_pipelines_min, depths, sets) &&
          works(book, composition, sets)) {
        mixed.push_back(composition);
      }
      return;
    }
    for (const int64_t count : grid) {
      if (count > sets[kind]) break;
      composition[kind] = count;
      list(composition, kind + 1);
    }
  };
  constexpr size_t kKindsMax = 4;  // more would be too many to list; they then go alone
  if (sets.size() <= kKindsMax) list(Composition(sets.size(), 0), 0);
  return mixed;
}

/// Finds a place for the devices that no pipeline took: a pipeline of their own, or a deeper one in
/// place of another. False if there is none.
bool add_remainder(ShapeBook& book,
                   const Composition& sets,
                   const Composition& left,
                   std::vector<LayoutPart>& parts) {
  if (num_stages(left) == 0) return true;
  if (works(book, left, sets)) {
    parts.push_back({left, 1});
    return true;
  }
  for (size_t i = 0; i < parts.size(); ++i) {
    Composition larger = parts[i].composition;
    for (size_t kind = 0; kind < left.size(); ++kind) larger[kind] += left[kind];
    if (!works(book, larger, sets)) continue;
    if (--parts[i].count == 0) parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(i));
    parts.push_back({std::move(larger), 1});
    return true;
  }
  return false;
}

}  // namespace

bool visit_all_layouts(ShapeBook& book,
                       const Composition& sets,
                       int64_t most,
                       const VisitLayout& visit) {
  return Partitions(book, sets, most, visit).run();
}

void visit_bulk_layouts(ShapeBook& book,
                        const Composition& sets,
                        int64_t num_pipelines_min,
                        const VisitLayout& visit) {
  std::vector<int64_t> depths;
  for (size_t kind = 0; kind < sets.size(); ++kind) depths.push_back(best_depth(book, sets, kind));
  std::vector<Composition> mixed = mixed_compositions(book, sets, num_pipelines_min, depths);
  mixed.emplace_back();  // none
  for (const Composition& composition : mixed) {
    // With one pipeline fewer, what is left may make better ones.
    for (const int64_t fewer : {0, 1}) {
      if (fewer > 0 && composition.empty()) continue;
      Composition left = sets;
      std::vector<LayoutPart> parts = fill_in_bulk(composition, fewer, depths, left);
      if (add_remainder(book, sets, left, parts) && !parts.empty()) visit(parts);
    }
  }
}

}  // namespace pelago::plan
