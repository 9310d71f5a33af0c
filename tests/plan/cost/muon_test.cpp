// What Muon costs a plan: products of whole matrices in every update, and room for them.
#include "plan/cost/device/operators.h"
#include "plan/cost/memory.h"
#include "plan/cost/plan_costs.h"
#include "plan/fixtures.h"

namespace pelago::plan {
namespace {

JobConfig job_with(const std::string& optimizer, const std::string& preset = "350m") {
  return job_from(
      fmt::format("[model]\npreset = '{}'\n[data]\ndir = 'corpus'\n"
                  "sequence_length = 128\n[train]\noptimizer = '{}'\n",
                  preset,
                  optimizer));
}

/// The longest update of a rank of the plan's first site.
double update_s(const Plan& plan, const JobConfig& job) {
  double most_s = 0;
  for (const PipelineRun& pipeline : run_of_plan(plan, job, 0).pipelines) {
    for (const StageCosts& stage : pipeline.stages) most_s = std::max(most_s, stage.update_s);
  }
  return most_s;
}

TEST_CASE("Muon's plan neither slices the optimizer nor cuts blocks, where AdamW's would") {
  // Three H20 with memory for their model and little more.
  const FleetConfig fleet = fleet_from(
      "[emulation]\nslowdown = 1000\nmemory_gib = 4.6\n[[site]]\nname = 'a'\n"
      "[[site.device]]\ndevice = 'emulated:h20'\ncount = 3\n");
  JobConfig adamw = job_with("adamw"), muon = job_with("muon");
  for (JobConfig* job : {&adamw, &muon}) {
    job->train.recompute = "never";
    job->train.microbatch_sequences = 2;
  }
  JobConfig sliced = adamw;
  sliced.train.pipeline = "never";
  CHECK(make_plan(sliced, fleet, catalogue(), nullptr, 2).sites[0].slice_optimizer);
  const Plan plan = make_plan(muon, fleet, catalogue(), nullptr, 2);
  CHECK(plan.optimizer == "muon");
  CHECK(!plan.sites[0].slice_optimizer);
  for (const PipelinePlan& pipeline : plan.sites[0].pipelines) {
    for (const StagePlan& stage : pipeline.stages) CHECK(stage.ranks.size() == 1);
  }
  CHECK(plan_from_json(to_json(plan), "plan.json").optimizer == "muon");
}

TEST_CASE("what Muon takes longer is that of its products") {
  const FleetConfig fleet =
      fleet_from("[[site]]\nname = 'a'\n[[site.device]]\ndevice = 'cuda:0'\nchip = 'a100'\n");
  const JobConfig adamw = job_with("adamw"), muon = job_with("muon");
  const Plan with_adamw = make_plan(adamw, fleet, catalogue(), nullptr, 2);
  const Plan with_muon = make_plan(muon, fleet, catalogue(), nullptr, 2);
  const double more_s = update_s(with_muon, muon) - update_s(with_adamw, adamw);
  const double flop_s = catalogue().find("a100").training_gemm_tflops() * 1e12;
  const double products_s =
      static_cast<double>(muon.model.num_hidden_layers) * muon_flops(sizes_of(muon, 128)) / flop_s;
  CHECK(more_s > products_s);
  CHECK(more_s < 3 * products_s);  // and what is read and written besides
  CHECK(with_muon.predicted_tokens_s < with_adamw.predicted_tokens_s);
}

TEST_CASE("Muon's arithmetic is that of three products in each of five iterations") {
  ModelSizes sizes = sizes_of(job_with("muon", "10m"), 128);
  double flops = 0;
  for (const BlockMatrix& matrix : block_matrices(sizes)) {
    const double r = std::min(matrix.rows, matrix.columns);
    const double c = std::max(matrix.rows, matrix.columns);
    flops += matrix.count * 5 * (2 * 2 * r * r * c + 2 * r * r * r);
  }
  CHECK(muon_flops(sizes) == doctest::Approx(flops));
  double values = 0;
  for (const BlockMatrix& matrix : block_matrices(sizes)) {
    values += matrix.count * matrix.rows * matrix.columns;
  }
  const double norms =
      2 * sizes.hidden + (sizes.has_qk_norm ? 2 * sizes.query / sizes.query_heads : 0);
  CHECK(values + norms == block_values(sizes, 1));
}

TEST_CASE("a stage has room for Muon's largest matrix while it is stepped") {
  const ModelSizes sizes = sizes_of(job_with("muon", "1b"), 128);
  const StageShape shape{.num_blocks = 1};
  const StageLoad without{.microbatch = 1};
  StageLoad with = without;
  with.has_muon = true;
  ModelSizes short_text = sizes;
  short_text.tokens = 1;  // so that activations hide nothing
  const double small = std::min(sizes.hidden, sizes.feed_forward);
  const double needed = 4 * (sizes.hidden * sizes.feed_forward + small * small);
  const MemoryPlan memory = stage_memory(short_text, shape, with);
  CHECK(memory.buffers + memory.activations >= needed);
  CHECK(stage_memory(short_text, shape, without).buffers <= memory.buffers);
}

}  // namespace
}  // namespace pelago::plan
