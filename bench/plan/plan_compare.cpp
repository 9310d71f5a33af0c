// Is a plan better than what one would set up by hand? On twenty sites of unlike chips: the planner
// against equal stages and shares, stages and shares in proportion to the chips' pace, and the best
// single brand by itself. The by-hand ways are given the best of all widths, depths, microbatches,
// recomputing and slicing that fit; all are played by the same costs.
#include <algorithm>
#include <cmath>

#include "bench/plan/plan_fleets.h"
#include "bench/report.h"
#include "plan/cost/device/profile.h"
#include "plan/planner/site_run.h"

namespace pelago::bench {
namespace {

struct Example {
  std::string model;
  std::vector<Stock> stocks;
  int64_t batch;
};

std::vector<Example> examples() {
  return {{"7b", {{"a100", 8}, {"h20", 8}}, 128},
          {"7b", {{"a100", 4}, {"910b", 4}}, 32},
          {"7b", {{"a100", 8}, {"h20", 8}, {"910b", 8}}, 128},
          {"7b", {{"h800", 8}, {"910b", 16}}, 256},
          {"7b", {{"4090", 8}, {"a100", 8}}, 64},
          {"7b", {{"4090", 16}, {"h20", 8}}, 64},
          {"7b", {{"a100", 2}, {"h20", 2}}, 16},
          {"13b", {{"a100", 8}, {"h20", 8}}, 64},
          {"13b", {{"910b", 16}, {"h20", 8}}, 128},
          {"13b", {{"h100", 8}, {"a100", 16}}, 256},
          {"13b", {{"a100", 8}, {"910b", 8}, {"4090", 8}}, 64},
          {"13b", {{"h20", 4}, {"910b", 4}}, 32},
          {"34b", {{"h20", 16}, {"910b", 16}}, 128},
          {"34b", {{"a100", 16}, {"h20", 8}}, 64},
          {"34b", {{"h800", 16}, {"a100", 16}, {"910b", 32}}, 256},
          {"34b", {{"h100", 8}, {"h20", 24}}, 128},
          {"70b", {{"h20", 32}, {"910b", 32}}, 128},
          {"70b", {{"h100", 32}, {"a100", 32}}, 256},
          {"70b", {{"a100", 64}, {"h20", 32}, {"910b", 64}}, 512},
          {"100b", {{"h100", 64}, {"h20", 64}}, 512}};
}

plan::SiteProblem problem_of(const plan::JobConfig& job,
                             const std::vector<Stock>& stocks,
                             const chips::Catalogue& catalogue) {
  const plan::FleetConfig fleet = bench::fleet_of({stocks}, catalogue);
  std::vector<plan::SiteDevice> devices;
  for (const plan::FleetDevice& device : fleet.sites[0].devices) {
    devices.push_back(
        {device.device,
         device.node,
         plan::profile_device(fleet.sites[0].name, device, job, fleet, catalogue, nullptr, 8),
         plan::device_memory_bytes(device, fleet, catalogue)});
  }
  return plan::make_problem(
      devices, plan::sizes_of(job, job.data.sequence_length), job.train, job.train.batch_sequences);
}

/// Whole numbers in proportion to the weights, at least one each.
std::vector<int64_t> in_proportion(const std::vector<double>& weights, int64_t total) {
  double sum = 0;
  for (const double weight : weights) sum += weight;
  std::vector<int64_t> parts;
  int64_t left = total;
  for (const double weight : weights) {
    parts.push_back(std::max<int64_t>(
        1, static_cast<int64_t>(std::floor(static_cast<double>(total) * weight / sum))));
    left -= parts.back();
  }
  while (left != 0) {
    // Who is furthest from what is due gives or gets one.
    size_t furthest = 0;
    double most = -1e300;
    for (size_t i = 0; i < weights.size(); ++i) {
      const double due = static_cast<double>(total) * weights[i] / sum;
      const double off = (left > 0 ? 1 : -1) * (due - static_cast<double>(parts[i]));
      if (off > most && (left > 0 || parts[i] > 1)) {
        most = off;
        furthest = i;
      }
    }
    parts[furthest] += left > 0 ? 1 : -1;
    left -= left > 0 ? 1 : -1;
  }
  return parts;
}

struct Grid {
  int64_t width = 1, depth = 1, microbatch = 1;
  bool slices = false, recompute = false, is_proportional = false;
};

/// Sequences a second; 0 if it does not fit.
double rate_of(const plan::SiteProblem& problem, const Grid& grid) {
  std::vector<std::pair<size_t, std::vector<int>>> sets;
  for (size_t kind = 0; kind < problem.kinds.size(); ++kind) {
    for (auto& set : plan::tensor_sets(problem.kinds[kind], grid.width))
      sets.emplace_back(kind, set);
  }
  const auto num_sets = static_cast<int64_t>(sets.size());
  const int64_t count = num_sets / grid.depth;
  if (num_sets * grid.width != problem.num_devices() || num_sets % grid.depth != 0 ||
      count > problem.batch || (grid.slices && count == 1)) {
    return 0;
  }
  const plan::SharedTraits traits{
      .optimizer_share = grid.slices ? 1 / static_cast<double>(count) : 1,
      .is_scattered = grid.width > 1};
  plan::SiteLayout layout;
  layout.slices_optimizer = grid.slices;
  std::vector<double> paces;
  for (int64_t i = 0; i < count; ++i) {
    std::vector<double> weights;
    std::vector<plan::StageChoice> stages;
    plan::SiteLayout::Pipeline pipeline;
    for (int64_t s = 0; s < grid.depth; ++s) {
      const auto& [kind, ranks] = sets[static_cast<size_t>(i * grid.depth + s)];
      const plan::DeviceProfile& profile = problem.kinds[kind].profile;
      weights.push_back(1 / (profile.block_forward.sequence_s + profile.block_backward.sequence_s));
      stages.push_back({kind, {.width = grid.width, .recompute = grid.recompute}});
      pipeline.ranks.push_back(ranks);
    }
    double pace = 0;
    for (const double weight : weights) pace += weight;
    paces.push_back(grid.is_proportional ? pace : 1);
    if (!grid.is_proportional) weights.assign(weights.size(), 1);
    const std::vector<int64_t> blocks = in_proportion(weights, problem.sizes.num_blocks);
    for (size_t s = 0; s < stages.size(); ++s) stages[s].shape.num_blocks = blocks[s];
    stages.front().shape.has_embedding = stages.back().shape.has_head = true;
    if (!plan::fits(problem, stages, grid.microbatch, traits)) return 0;
    pipeline.shape = plan::finish_shape(problem, stages, grid.microbatch, traits);
    layout.pipelines.push_back(std::move(pipeline));
  }
  const std::vector<int64_t> shares = in_proportion(paces, problem.batch);
  const double step_s = plan::simulate_site(plan::site_run(problem, layout, shares)).step_s;
  return static_cast<double>(problem.batch) / step_s;
}

double best_by_hand(const plan::SiteProblem& problem, bool is_proportional) {
  double best = 0;
  for (const int64_t width : {1, 2, 4, 8}) {
    if (width > 1 && !plan::can_be_cut(problem.sizes, width)) continue;
    for (int64_t depth = 1; depth <= problem.sizes.num_blocks; ++depth) {
      for (const int64_t microbatch : {1, 2, 4, 8}) {
        for (const int choice : {0, 1, 2, 3}) {
          best = std::max(best,
                          rate_of(problem,
                                  {.width = width,
                                   .depth = depth,
                                   .microbatch = microbatch,
                                   .slices = choice % 2 == 1,
                                   .recompute = choice >= 2,
                                   .is_proportional = is_proportional}));
        }
      }
    }
  }
  return best;
}

double best_brand(const plan::JobConfig& job,
                  const std::vector<Stock>& stocks,
                  const chips::Catalogue& catalogue) {
  double best = 0;
  for (const Stock& stock : stocks) {
    const auto layout = plan::find_layout(problem_of(job, {stock}, catalogue));
    if (layout) best = std::max(best, layout->sequences_a_second);
  }
  return best;
}

}  // namespace
}  // namespace pelago::bench

int main(int argc, char** argv) {
  using namespace pelago;
  using namespace pelago::bench;
  bench::Program program(
      "plan_compare", "Is a plan better than what one would set up by hand?", {"sites"});
  return program.run(argc, argv, [&](bench::Report& report) {
    const chips::Catalogue catalogue = chips::Catalogue::built_in();
    std::vector<double> gains, over_equal, over_proportional, over_brand;
    for (const Example& example : examples()) {
      plan::JobConfig job = bench::large_job(example.model, example.batch);
      job.train.exact_batch = true;
      const plan::SiteProblem problem = problem_of(job, example.stocks, catalogue);
      const auto layout = plan::find_layout(problem);
      const double ours = layout ? layout->sequences_a_second : 0;
      const double equal = best_by_hand(problem, false);
      const double proportional = best_by_hand(problem, true);
      const double brand = best_brand(job, example.stocks, catalogue);
      const double other = std::max({equal, proportional, brand, 1e-9});
      gains.push_back(ours / other);
      if (equal > 0) over_equal.push_back(ours / equal);
      if (proportional > 0) over_proportional.push_back(ours / proportional);
      if (brand > 0) over_brand.push_back(ours / brand);
      std::string stocks;
      for (const auto& [chip, count] : example.stocks) stocks += fmt::format(" {}x{}", count, chip);
      fmt::print(stderr,
                 "{}{}: {:.4g} sequences/s; equal {:.4g}, in proportion {:.4g}, one brand {:.4g}\n",
                 example.model,
                 stocks,
                 ours,
                 equal,
                 proportional,
                 brand);
    }
    report.metrics["median_gain_over_best_other_ratio"] = bench::median(gains);
    report.metrics["median_over_equal_ratio"] = bench::median(over_equal);
    report.metrics["median_over_proportional_ratio"] = bench::median(over_proportional);
    report.metrics["median_over_one_brand_ratio"] = bench::median(over_brand);
    report.ratio = *std::min_element(gains.begin(), gains.end());
    report.target = 1;
    report.notes.push_back(
        "ratio is the planner over the best other way, on the worst of 20 sites");
  });
}
