// Found against best: on small sites the planner must come within a hundredth of every plan that
// there is.
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <limits>
#include <map>
#include <numeric>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "plan/fixtures.h"
#include "plan/planner/planner.h"
#include "plan/planner/search/balance.h"
#include "plan/planner/search/play/settle.h"
#include "plan/planner/site_run.h"

namespace pelago::plan {
namespace {

/// The best plan of a very small site by trying every one: every way to join its devices to stages,
/// stages to pipelines in any order, whichever node they are in, every cut of the blocks,
/// recomputing or not by stage, every microbatch, every share of the batch, the optimizer's state
/// sliced or not. The costs are the planner's own, played through by simulate_site(); only the
/// search is another.
class BruteForce {
 public:
  explicit BruteForce(const SiteProblem& problem) : problem_(problem) {}

  /// Seconds of a step with exactly problem.batch sequences; infinity if nothing fits.
  double best_step_s() {
    std::vector<Place> left;
    for (size_t kind = 0; kind < problem_.kinds.size(); ++kind) {
      for (size_t node = 0; node < problem_.kinds[kind].nodes.size(); ++node) {
        left.push_back({kind, node, problem_.kinds[kind].nodes[node]});
      }
    }
    make_stages(left, 0, 1);
    return best_s_;
  }
  /// The best plan in short, for messages: of each pipeline its share and microbatch, and of each
  /// stage kind x width @ first rank : blocks.
  const std::string& best() const { return best_; }
  static std::string describe(const SiteLayout& layout,
                              const std::vector<int64_t>& shares,
                              const std::vector<int64_t>& sizes) {
    std::string text = layout.slices_optimizer ? "sliced" : "whole";
    for (size_t i = 0; i < layout.pipelines.size(); ++i) {
      text += fmt::format(" | {} by {} of", shares[i], sizes[i]);
      for (const StageChoice& stage : layout.pipelines[i].shape.stages) {
        const auto stage_idx =
            static_cast<size_t>(&stage - layout.pipelines[i].shape.stages.data());
        text += fmt::format(" {}x{}@{}:{}{}",
                            stage.kind_idx,
                            stage.shape.width,
                            layout.pipelines[i].ranks[stage_idx].front(),
                            stage.shape.num_blocks,
                            stage.shape.recompute ? "r" : "");
      }
    }
    return text;
  }

 private:
  /// Devices of one kind in one node.
  struct Place {
    size_t kind_idx = 0, node_idx = 0;
    std::vector<int> ranks;
  };
  struct Set {
    size_t kind_idx = 0, node_idx = 0;
    std::vector<int> ranks;
    bool operator<(const Set& other) const {
      return std::tuple(kind_idx, ranks.size(), node_idx) <
             std::tuple(other.kind_idx, other.ranks.size(), other.node_idx);
    }
    bool is_like(const Set& other) const { return !(*this < other) && !(other < *this); }
  };
  using Pipeline = std::vector<Set>;
  /// One way to run one pipeline with one share, and its time without reductions.
  struct Choice {
    PipelineShape shape;
    std::vector<std::vector<int>> ranks;  // by stage
    int64_t microbatch = 1;
    double seconds = 0;
  };

  /// Joins the devices of each place to sets of 1, 2 or 4, which only grow, so that each way comes
  /// once.
  void make_stages(std::vector<Place>& left, size_t place_idx, size_t smallest) {
    if (place_idx == left.size()) {
      std::vector<Pipeline> pipelines;
      std::vector<Set> sets = sets_;
      std::stable_sort(sets.begin(), sets.end());
      share_out(sets, pipelines);
      return;
    }
    Place& place = left[place_idx];
    if (place.ranks.empty()) return make_stages(left, place_idx + 1, 1);
    for (size_t width = smallest; width <= std::min<size_t>(4, place.ranks.size()); width *= 2) {
      if (width > 1 && !can_be_cut(problem_.sizes, static_cast<int64_t>(width))) continue;
      const std::vector<int> before = place.ranks;
      const auto end = before.begin() + static_cast<std::ptrdiff_t>(width);
      sets_.push_back({place.kind_idx, place.node_idx, {before.begin(), end}});
      place.ranks.assign(end, before.end());
      make_stages(left, place_idx, width);
      left[place_idx].ranks = before;
      sets_.pop_back();
    }
  }

  /// Every way to cut the sets into pipelines, like sets told apart by nothing.
  void share_out(const std::vector<Set>& sets, std::vector<Pipeline>& pipelines) {
    if (sets.empty()) return try_pipelines(pipelines);
    std::vector<Set> rest(sets.begin() + 1, sets.end());
    take_with({sets.front()}, rest, 0, {}, pipelines);
  }
  /// The first pipeline has the first set, and of the others any.
  void take_with(const Pipeline& taken,
                 const std::vector<Set>& others,
                 size_t idx,
                 const std::vector<Set>& skipped,
                 std::vector<Pipeline>& pipelines) {
    if (idx == others.size()) {
      pipelines.push_back(taken);
      share_out(skipped, pipelines);
      pipelines.pop_back();
      return;
    }
    const bool like_skipped = !skipped.empty() && skipped.back().is_like(others[idx]);
    if (!like_skipped && static_cast<int64_t>(taken.size()) < problem_.sizes.num_blocks) {
      Pipeline more = taken;
      more.push_back(others[idx]);
      take_with(more, others, idx + 1, skipped, pipelines);
    }
    std::vector<Set> fewer = skipped;
    fewer.push_back(others[idx]);
    take_with(taken, others, idx + 1, fewer, pipelines);
  }

  void try_pipelines(const std::vector<Pipeline>& pipelines) {
    const auto count = static_cast<int64_t>(pipelines.size());
    if (count > problem_.batch) return;
    for (const bool slices : {false, true}) {
      if (slices && (count == 1 || problem_.train.slice_optimizer == "never")) continue;
      SharedTraits traits{.optimizer_share = slices ? 1 / static_cast<double>(count) : 1};
      for (const Pipeline& pipeline : pipelines) {
        for (const Set& set : pipeline) {
          traits.is_scattered = traits.is_scattered || set.ranks.size() > 1;
        }
      }
      choices_.clear();
      std::vector<int64_t> shares;
      share_batch_out(pipelines, traits, problem_.batch, shares);
    }
  }

  void share_batch_out(const std::vector<Pipeline>& pipelines,
                       const SharedTraits& traits,
                       int64_t left,
                       std::vector<int64_t>& shares) {
    const auto missing = static_cast<int64_t>(pipelines.size() - shares.size());
    if (missing == 0) {
      if (left == 0) combine(pipelines, traits, shares);
      return;
    }
    const int64_t least = missing == 1 ? left : 1;
    for (int64_t share = least; share <= left - (missing - 1); ++share) {
      shares.push_back(share);
      if (!choices_of(pipelines, shares.size() - 1, share, traits).empty() &&
          choices_of(pipelines, shares.size() - 1, share, traits).front().seconds < best_s_) {
        share_batch_out(pipelines, traits, left - share, shares);
      }
      shares.pop_back();
    }
  }

  void combine(const std::vector<Pipeline>& pipelines,
               const SharedTraits& traits,
               const std::vector<int64_t>& shares) {
    std::vector<const Choice*> chosen;
    const std::function<void(size_t)> choose = [&](size_t i) {
      if (i == pipelines.size()) return play(pipelines, traits, shares, chosen);
      for (const Choice& choice : choices_of(pipelines, i, shares[i], traits)) {
        if (choice.seconds >= best_s_) break;
        chosen.push_back(&choice);
        choose(i + 1);
        chosen.pop_back();
      }
    };
    choose(0);
  }

  void play(const std::vector<Pipeline>& pipelines,
            const SharedTraits& traits,
            const std::vector<int64_t>& shares,
            const std::vector<const Choice*>& chosen) {
    SiteLayout layout;
    layout.slices_optimizer = traits.optimizer_share < 1;
    for (size_t i = 0; i < pipelines.size(); ++i) {
      layout.pipelines.push_back({chosen[i]->shape, chosen[i]->ranks});
    }
    SiteRun run = site_run(problem_, layout, shares);
    for (size_t i = 0; i < chosen.size(); ++i) {
      run.pipelines[i].sequences = cut_microbatches(shares[i], chosen[i]->microbatch);
    }
    const double step_s = simulate_site(run).step_s;
    if (step_s >= best_s_) return;
    best_s_ = step_s;
    std::vector<int64_t> sizes;
    for (const Choice* choice : chosen) sizes.push_back(choice->microbatch);
    best_ = describe(layout, shares, sizes);
  }

  /// In order of time.
  const std::vector<Choice>& choices_of(const std::vector<Pipeline>& pipelines,
                                        size_t pipeline_idx,
                                        int64_t share,
                                        const SharedTraits& traits) {
    const auto [found, is_new] = choices_.try_emplace({pipeline_idx, share});
    std::vector<Choice>& choices = found->second;
    if (!is_new) return choices;
    Pipeline order = pipelines[pipeline_idx];
    std::stable_sort(order.begin(), order.end());
    do {
      std::vector<StageChoice> stages;
      ranks_.clear();
      for (const Set& set : order) {
        stages.push_back({set.kind_idx, {.width = static_cast<int64_t>(set.ranks.size())}});
        ranks_.push_back(set.ranks);
      }
      stages.front().shape.has_embedding = true;
      stages.back().shape.has_head = true;
      cut_blocks(stages, 0, problem_.sizes.num_blocks, share, traits, choices);
    } while (std::next_permutation(order.begin(), order.end()));
    std::sort(choices.begin(), choices.end(), [](const Choice& a, const Choice& b) {
      return a.seconds < b.seconds;
    });
    return choices;
  }

  void cut_blocks(std::vector<StageChoice>& stages,
                  size_t idx,
                  int64_t left,
                  int64_t share,
                  const SharedTraits& traits,
                  std::vector<Choice>& choices) {
    if (idx == stages.size()) {
      if (left == 0) try_microbatches(stages, share, traits, choices);
      return;
    }
    const auto behind = static_cast<int64_t>(stages.size() - idx - 1);
    for (int64_t blocks = behind == 0 ? left : 1; blocks <= left - behind; ++blocks) {
      for (const bool recompute : {false, true}) {
        stages[idx].shape.num_blocks = blocks;
        stages[idx].shape.recompute = recompute;
        cut_blocks(stages, idx + 1, left - blocks, share, traits, choices);
      }
    }
  }

  void try_microbatches(const std::vector<StageChoice>& stages,
                        int64_t share,
                        const SharedTraits& traits,
                        std::vector<Choice>& choices) {
    const int64_t most = std::min(share, problem_.train.microbatch_sequences);
    for (int64_t microbatch = 1; microbatch <= most; ++microbatch) {
      if (!fits(problem_, stages, microbatch, traits)) return;
      Choice choice{finish_shape(problem_, stages, microbatch, traits), ranks_, microbatch, 0};
      const PipelineTime time =
          simulate_pipeline({choice.shape.costs, cut_microbatches(share, microbatch)});
      double update_s = 0;
      for (const StageCosts& stage : choice.shape.costs) {
        update_s = std::max(update_s, stage.update_s);
      }
      choice.seconds = time.end_s + update_s;
      choices.push_back(std::move(choice));
    }
  }

  const SiteProblem& problem_;  // outlives this
  std::vector<Set> sets_;
  std::vector<std::vector<int>> ranks_;  // of the stages looked at, in their order
  std::map<std::pair<size_t, int64_t>, std::vector<Choice>> choices_;
  double best_s_ = std::numeric_limits<double>::infinity();
  std::string best_;
};

using Random = std::mt19937_64;

double between(Random& random, double lo, double hi) {
  return lo + (hi - lo) * static_cast<double>(random() >> 11) * 0x1p-53;
}
int64_t whole_between(Random& random, int64_t lo, int64_t hi) {
  return lo + static_cast<int64_t>(random() % static_cast<uint64_t>(hi - lo + 1));
}

/// Up to six devices of up to three kinds, whose paces, links and memories differ by up to ten
/// times; some hold the model alone, some only together.
SiteProblem random_site(uint64_t seed) {
  Random random(seed);
  model::ModelConfig config = model::preset("35m");
  config.num_hidden_layers = whole_between(random, 2, 4);
  const ModelSizes sizes = sizes_of(config, 256);
  TrainConfig train;
  train.exact_batch = true;
  train.microbatch_sequences = whole_between(random, 1, 4);
  const double whole_bytes =
      stage_memory(
          sizes,
          {.num_blocks = config.num_hidden_layers, .has_embedding = true, .has_head = true},
          {.microbatch = 2})
          .total();
  std::vector<SiteDevice> devices;
  const int64_t num_devices = whole_between(random, 2, 6);
  const int64_t num_kinds = whole_between(random, 1, std::min<int64_t>(3, num_devices));
  std::vector<SiteDevice> kinds;
  for (int64_t kind = 0; kind < num_kinds; ++kind) {
    SiteDevice device;
    device.device = fmt::format("cuda{}", kind);
    DeviceProfile& profile = device.profile;
    profile.dtype = "bf16";
    const double block_s = between(random, 0.004, 0.03);
    const double start_s = block_s * between(random, 0, 0.4);
    profile.block_forward = {start_s, block_s};
    profile.block_backward = {2 * start_s, 2 * block_s};
    profile.head = {start_s, block_s * between(random, 0.1, 3)};
    profile.embedding = {start_s / 4, block_s / 20};
    profile.update_s = 1e-4;
    profile.update_parameter_s = between(random, 1e-11, 2e-10);
    profile.host_byte_s = 1 / between(random, 5e9, 25e9);
    profile.host_copy_s = 5e-6;
    profile.group_byte_s = 1 / between(random, 10e9, 200e9);
    profile.group_call_s = 2e-5;
    device.memory_bytes = whole_bytes * between(random, 0.35, 1.6);
    kinds.push_back(device);
  }
  const bool has_nodes = random() % 2 == 0;
  for (int64_t i = 0; i < num_devices; ++i) {
    SiteDevice device = kinds[static_cast<size_t>(i % num_kinds)];
    device.device += fmt::format(":{}", i);
    device.node = has_nodes ? fmt::format("node{}", i / 3) : "node";
    devices.push_back(std::move(device));
  }
  return make_problem(devices, sizes, train, whole_between(random, num_devices, 10));
}

/// The layout as a plan carries it out, with its shares.
struct CarriedOut {
  SiteLayout layout;
  std::vector<int64_t> shares, sizes;
  double step_s = 0;
};
CarriedOut carry_out(const SiteProblem& problem, const SiteLayout& layout) {
  PlannedSite planned{problem, layout};
  CarriedOut out;
  out.shares = balance_batch(planned.paces(), {.asked = problem.batch, .is_fixed = true}).sequences;
  settle_shares(problem, planned.layout, out.shares);
  out.step_s = simulate_site(site_run(problem, planned.layout, out.shares)).step_s;
  for (size_t i = 0; i < out.shares.size(); ++i) {
    out.sizes.push_back(microbatch_for(planned.layout, i, out.shares[i]));
  }
  out.layout = std::move(planned.layout);
  return out;
}

/// Of so many seeds from first on.
void compare(uint64_t first, int64_t count) {
  int64_t num_found = 0;
  double worst = 0;
  for (uint64_t seed = first; seed < first + static_cast<uint64_t>(count); ++seed) {
    CAPTURE(seed);
    const SiteProblem problem = random_site(seed);
    const auto layout = find_layout(problem);
    BruteForce brute(problem);
    const double best_s = brute.best_step_s();
    const double found_s = layout ? static_cast<double>(problem.batch) / layout->sequences_a_second
                                  : std::numeric_limits<double>::infinity();
    CHECK(std::isfinite(found_s) == std::isfinite(best_s));
    if (!layout) continue;
    num_found += 1;
    const CarriedOut carried = carry_out(problem, *layout);
    worst = std::max({worst, found_s / best_s - 1, carried.step_s / best_s - 1});
    CHECK_MESSAGE(std::max(found_s, carried.step_s) <= 1.01 * best_s,
                  fmt::format("seed {}: found {:.6f}, carried out {:.6f} ({}), best {:.6f} ({})",
                              seed,
                              found_s,
                              carried.step_s,
                              BruteForce::describe(carried.layout, carried.shares, carried.sizes),
                              best_s,
                              brute.best()));
  }
  MESSAGE(fmt::format("{} of {} sites hold the model; worst {:.2f} % from the best",
                      num_found,
                      count,
                      100 * worst));
  CHECK(2 * num_found > count);
}

TEST_CASE("on small sites no plan is a hundredth better than the one found") {
  // PELAGO_SMALL_SITES=1000 looks at more than the release is judged by.
  const char* asked = std::getenv("PELAGO_SMALL_SITES");
  compare(1, asked != nullptr ? std::atoll(asked) : 200);
}

}  // namespace
}  // namespace pelago::plan
