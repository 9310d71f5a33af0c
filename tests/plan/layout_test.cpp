#include "plan/planner/search/layout.h"

#include <rapidcheck.h>

#include <algorithm>
#include <numeric>
#include <set>

#include "plan/fixtures.h"
#include "plan/planner/site_run.h"

namespace pelago::plan {
namespace {

constexpr double kGib = 1 << 30;

/// A device that needs so much for a block and has so much memory.
SiteDevice device_of(const std::string& name, double block_s, double memory_gib) {
  SiteDevice device;
  device.device = name;
  device.profile.device = name;
  device.profile.dtype = "bf16";
  device.profile.block_forward = {block_s / 100, block_s / 3};
  device.profile.block_backward = {block_s / 50, 2 * block_s / 3};
  device.profile.head = {block_s / 100, block_s / 2};
  device.profile.embedding = {block_s / 100, block_s / 50};
  device.profile.update_parameter_s = 1e-12;
  device.profile.host_byte_s = device.profile.group_byte_s = 1e-13;
  device.memory_bytes = memory_gib * kGib;
  return device;
}

ModelSizes sizes_of_preset(const std::string& name) {
  return sizes_of(model::preset(name), /*sequence_length=*/256);
}

void check_sound(const SiteProblem& problem, const SiteLayout& layout) {
  std::set<int> ranks;
  for (const SiteLayout::Pipeline& pipeline : layout.pipelines) {
    int64_t num_blocks = 0;
    for (size_t i = 0; i < pipeline.shape.stages.size(); ++i) {
      const StageChoice& stage = pipeline.shape.stages[i];
      num_blocks += stage.shape.num_blocks;
      RC_ASSERT(static_cast<int64_t>(pipeline.ranks[i].size()) == stage.shape.width);
      for (const int rank : pipeline.ranks[i]) RC_ASSERT(ranks.insert(rank).second);
      const double has = problem.kinds[stage.kind_idx].memory_bytes;
      const MemoryPlan memory = memory_of_stage(problem,
                                                pipeline.shape.stages,
                                                i,
                                                pipeline.shape.pace.microbatch_max,
                                                1000,
                                                shared_traits(layout));
      RC_ASSERT(memory.total() <= has);
    }
    RC_ASSERT(num_blocks == problem.sizes.num_blocks);
  }
  RC_ASSERT(static_cast<int64_t>(ranks.size()) == problem.num_devices());
}

TEST_CASE("whatever a site has, each device is used once, each block held, and all of it fits") {
  CHECK(rc::check([] {
    std::vector<SiteDevice> devices;
    const int num_devices = *rc::gen::inRange(1, 8);
    for (int i = 0; i < num_devices; ++i) {
      const int kind = *rc::gen::inRange(0, 3);
      devices.push_back(device_of(
          fmt::format("cuda{}:{}", kind, i), (kind + 1) / 1e2, *rc::gen::element(0.3, 0.6, 1.2)));
      devices.back().node = *rc::gen::element("a", "b");
    }
    TrainConfig train;
    train.recompute = *rc::gen::element("auto", "always", "never");
    train.slice_optimizer = *rc::gen::element("auto", "always", "never");
    const SiteProblem problem = make_problem(devices, sizes_of_preset("35m"), train, 64);
    const auto layout = find_layout(problem);
    if (layout) check_sound(problem, *layout);
  }));
}

TEST_CASE("a device that holds the model alone stays alone") {
  const std::vector<SiteDevice> devices(3, device_of("cuda:0", 0.01, 80));
  const auto layout = find_layout(make_problem(devices, sizes_of_preset("10m"), {}, 64));
  REQUIRE(layout);
  CHECK(layout->pipelines.size() == 3);
  CHECK(!layout->slices_optimizer);
}

TEST_CASE("a model too large for any device is cut over them, in proportion to their pace") {
  const double enough_gib =
      0.6 * 20 * static_cast<double>(model::preset("350m").num_parameters()) / kGib;
  const std::vector<SiteDevice> devices = {device_of("cuda:0", 0.01, enough_gib + 2),
                                           device_of("npu:0", 0.02, enough_gib + 2)};
  TrainConfig train;
  train.slice_optimizer = "never";
  const SiteProblem problem = make_problem(devices, sizes_of_preset("350m"), train, 64);
  const auto layout = find_layout(problem);
  REQUIRE(layout);
  REQUIRE(layout->pipelines.size() == 1);
  const auto& stages = layout->pipelines[0].shape.stages;
  REQUIRE(stages.size() == 2);
  const size_t fast = problem.kinds[stages[0].kind_idx].device == "cuda:0" ? 0 : 1;
  CHECK(stages[fast].shape.num_blocks > stages[1 - fast].shape.num_blocks);
}

TEST_CASE("the chip with more memory comes first, for early stages keep more microbatches") {
  const std::vector<SiteDevice> devices = {device_of("cuda:0", 0.01, 4.5),
                                           device_of("npu:0", 0.01, 6)};
  TrainConfig train;
  train.pipeline = "always";
  const SiteProblem problem = make_problem(devices, sizes_of_preset("350m"), train, 64);
  const auto layout = find_layout(problem);
  REQUIRE(layout);
  CHECK(layout->pipelines[0].ranks[0] == std::vector<int>{1});
}

TEST_CASE("the optimizer's state is sliced where the model fits no other way") {
  const double values = static_cast<double>(model::preset("350m").num_parameters());
  // Weights and gradients take 6 bytes a value, the optimizer 12: with a third of the latter 10.
  const double memory_gib = 12 * values / kGib + 0.4;
  const std::vector<SiteDevice> devices(3, device_of("cuda:0", 0.01, memory_gib));
  TrainConfig train;
  train.pipeline = "never";
  train.microbatch_sequences = 1;
  const auto layout = find_layout(make_problem(devices, sizes_of_preset("350m"), train, 64));
  REQUIRE(layout);
  CHECK(layout->slices_optimizer);
  train.slice_optimizer = "never";
  CHECK(!find_layout(make_problem(devices, sizes_of_preset("350m"), train, 64)));
}

TEST_CASE("a stage recomputes where memory demands it, unless the job forbids it") {
  TrainConfig train;
  train.pipeline = train.slice_optimizer = "never";
  train.microbatch_sequences = 1;
  JobConfig long_job;
  long_job.model = model::preset("10m");
  const ModelSizes sizes = sizes_of(long_job.model, 4096);
  const StageShape whole{.num_blocks = sizes.num_blocks, .has_embedding = true, .has_head = true};
  StageShape again = whole;
  again.recompute = true;
  const double plain = stage_memory(sizes, whole, {.has_fused_kernels = false}).total();
  const double saved = stage_memory(sizes, again, {.has_fused_kernels = false}).total();
  REQUIRE(saved < 0.9 * plain);
  const std::vector<SiteDevice> devices = {
      device_of("cuda:0", 0.01, (plain + saved) / 2 / 0.97 / kGib)};
  const auto layout = find_layout(make_problem(devices, sizes, train, 8));
  REQUIRE(layout);
  CHECK(layout->pipelines[0].shape.stages[0].shape.recompute);
  train.recompute = "never";
  CHECK(!find_layout(make_problem(devices, sizes, train, 8)));
}

TEST_CASE("tensor parallelism stays within a node and divides the heads") {
  std::vector<SiteDevice> devices(4, device_of("cuda:0", 0.01, 80));
  devices[0].node = devices[2].node = "a";
  devices[1].node = devices[3].node = "b";
  TrainConfig train;
  train.tensor_parallel = 2;
  const auto layout = find_layout(make_problem(devices, sizes_of_preset("350m"), train, 64));
  REQUIRE(layout);
  for (const SiteLayout::Pipeline& pipeline : layout->pipelines) {
    for (const std::vector<int>& ranks : pipeline.ranks) {
      REQUIRE(ranks.size() == 2);
      CHECK(ranks[1] - ranks[0] == 2);
    }
  }
  train.tensor_parallel = 4;
  CHECK(!find_layout(make_problem(devices, sizes_of_preset("350m"), train, 64)));
}

TEST_CASE("a number of stages that the job names is kept") {
  const std::vector<SiteDevice> devices(6, device_of("cuda:0", 0.01, 80));
  TrainConfig train;
  train.stages = 3;
  const auto layout = find_layout(make_problem(devices, sizes_of_preset("350m"), train, 64));
  REQUIRE(layout);
  for (const SiteLayout::Pipeline& pipeline : layout->pipelines) {
    CHECK(pipeline.shape.stages.size() == 3);
  }
}

TEST_CASE("three kinds of 256 devices are planned, and all of them are used") {
  std::vector<SiteDevice> devices;
  for (int i = 0; i < 256; ++i) {
    for (const auto& [name, block_s, memory_gib] :
         {std::tuple("cuda", 0.010, 80.0), {"npu", 0.011, 60.0}, {"mlu", 0.02, 44.0}}) {
      devices.push_back(device_of(fmt::format("{}:{}", name, i), block_s, memory_gib));
      devices.back().node = fmt::format("{}{}", name, i / 8);
    }
  }
  const SiteProblem problem = make_problem(devices, sizes_of_preset("8b"), {}, 4096);
  const auto layout = find_layout(problem);
  REQUIRE(layout);
  check_sound(problem, *layout);
}

}  // namespace
}  // namespace pelago::plan
