// Found against best: on small sites the planner must come within a hundredth of every plan that
// there is.
#include <fmt/format.h>

#include <cstdlib>
#include <random>

#include "plan/fixtures.h"
#include "plan/optimum/brute_force.h"
#include "plan/planner/search/balance.h"
#include "plan/planner/search/play/play_through.h"

namespace pelago::plan {
namespace {

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

std::vector<int64_t> shares_of(const SiteProblem& problem, SiteLayout layout) {
  std::vector<Pace> paces;
  for (const SiteLayout::Pipeline& pipeline : layout.pipelines)
    paces.push_back(pipeline.shape.pace);
  Balance balance = balance_batch(paces, {.asked = problem.batch, .is_fixed = true});
  settle_shares(problem, layout, balance.sequences);
  return balance.sequences;
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
    worst = std::max(worst, found_s / best_s - 1);
    CHECK_MESSAGE(found_s <= 1.01 * best_s,
                  fmt::format("seed {}: found {:.6f} ({}), best {:.6f} ({})",
                              seed,
                              found_s,
                              BruteForce::describe(*layout, shares_of(problem, *layout)),
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
  // PELAGO_SMALL_SITES=200 looks at as many as the release is judged by.
  const char* asked = std::getenv("PELAGO_SMALL_SITES");
  compare(1, asked != nullptr ? std::atoll(asked) : 20);
}

}  // namespace
}  // namespace pelago::plan
