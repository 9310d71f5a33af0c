#include <algorithm>

#include "plan/fixtures.h"
#include "plan/planner/sharing/share_batch.h"

namespace pelago::plan {
namespace {

constexpr const char* kFour = R"(
[emulation]
slowdown = 1000
[[site]]
name = "here"
[[site.device]]
device = "emulated:nvidia-a100-80g-sxm"
count = 2
[[site.device]]
device = "emulated:nvidia-h20"
count = 2
)";

JobConfig job_of_size(const std::string& preset, int64_t batch_sequences) {
  JobConfig job = small_job();
  job.model = model::preset(preset);
  job.train.batch_sequences = batch_sequences;
  return job;
}

int64_t sum_of_shares(const SitePlan& site) {
  int64_t sum = 0;
  for (const PipelinePlan& pipeline : site.pipelines) sum += pipeline.sequences;
  return sum;
}

TEST_CASE("a site that loses a device keeps its batch, and its plan can be read back") {
  const JobConfig job = job_of_size("2m", 64);
  const Plan plan = make_plan(job, fleet_from(kFour), catalogue(), nullptr, 2);
  const size_t lost[] = {1};
  const Plan changed = replan_site(plan, job, 0, lost, {});
  REQUIRE(changed.sites[0].devices.size() == 3);
  CHECK(changed.sites[0].devices[1].device == "emulated:nvidia-h20");
  CHECK(changed.batch_sequences == plan.batch_sequences);
  CHECK(sum_of_shares(changed.sites[0]) == plan.sites[0].batch_sequences);
  CHECK(to_json(plan_from_json(to_json(changed), "plan.json")) == to_json(changed));
  CHECK(!has_same_stages(plan.sites[0], changed.sites[0]));
}

TEST_CASE("a device that became slower gets a smaller share, and its stages stay") {
  JobConfig job = job_of_size("2m", 64);
  job.train.pipeline = "never";
  const Plan plan = make_plan(job, fleet_from(kFour), catalogue(), nullptr, 2);
  REQUIRE(plan.sites[0].pipelines.size() == 4);
  const double factors[] = {1, 2.5, 1, 1};
  const Plan changed = replan_site(plan, job, 0, {}, factors);
  CHECK(has_same_stages(plan.sites[0], changed.sites[0]));
  CHECK(changed.sites[0].pipelines[1].sequences < plan.sites[0].pipelines[1].sequences);
  CHECK(sum_of_shares(changed.sites[0]) == plan.sites[0].batch_sequences);
}

TEST_CASE("nothing lost and nothing slower leaves the stages as they are") {
  const JobConfig job = job_of_size("350m", 64);
  const Plan plan = make_plan(job, fleet_from(kFour), catalogue(), nullptr, 2);
  const Plan same = replan_site(plan, job, 0, {}, {});
  CHECK(has_same_stages(plan.sites[0], same.sites[0]));
}

TEST_CASE("what is left and too small is refused with what it would have to hold") {
  JobConfig job = job_of_size("350m", 64);
  job.train.microbatch_sequences = 1;
  const FleetConfig fleet = fleet_from(kFour, {"emulation.memory_gib=2.5"});
  const Plan plan = make_plan(job, fleet, catalogue(), nullptr, 2);
  const size_t lost[] = {0, 1, 2};
  std::string message;
  try {
    replan_site(plan, job, 0, lost, {});
  } catch (const Failure& failure) {
    message = failure.what();
    CHECK(failure.exit_code() == kExitFailed);
  }
  contains(message, "site \"here\": the model of 352.4 M parameters does not fit the 1 devices");
}

constexpr const char* kThreeSites = R"(
[emulation]
slowdown = 1000
[[site]]
name = "a"
[[site.device]]
device = "emulated:nvidia-a100-80g-sxm"
count = 2
[[site]]
name = "b"
[[site.device]]
device = "emulated:nvidia-h20"
[[site]]
name = "c"
[[site.device]]
device = "emulated:nvidia-h20"
[[link]]
between = ["a", "b"]
[[link]]
between = ["b", "c"]
[[link]]
between = ["a", "c"]
)";

TEST_CASE("sites that share the batch anew keep their stages, and no sample is in two sites") {
  JobConfig job = job_of_size("2m", 64);
  job.train.pipeline = "never";
  const Plan plan = make_plan(job, fleet_from(kThreeSites), catalogue(), nullptr, 2);
  const int64_t batch = plan.batch_sequences;
  const int64_t sequences[] = {batch - 12, 5, 7};
  const double factors[] = {1, 3};
  const Plan changed = share_batch(plan, job, sequences, 0, factors);
  int64_t first = 0;
  for (size_t i = 0; i < 3; ++i) {
    CAPTURE(i);
    CHECK(has_same_stages(plan.sites[i], changed.sites[i]));
    CHECK(changed.sites[i].batch_sequences == sequences[i]);
    CHECK(sum_of_shares(changed.sites[i]) == sequences[i]);
    CHECK(changed.sites[i].first_sequence == first);
    first += sequences[i];
  }
  CHECK(changed.sites[0].pipelines[1].sequences < changed.sites[0].pipelines[0].sequences);
  CHECK(to_json(plan_from_json(to_json(changed), "plan.json")) == to_json(changed));
  const int64_t back[] = {
      plan.sites[0].batch_sequences, plan.sites[1].batch_sequences, plan.sites[2].batch_sequences};
  const Plan again = share_batch(changed, job, back, 0, {});
  for (size_t i = 0; i < 3; ++i) CHECK(sum_of_shares(again.sites[i]) == back[i]);
  const int64_t too_few[] = {1, batch - 2, 1};  // site a has two pipelines
  CHECK_THROWS_AS(share_batch(plan, job, too_few, 0, {}), Failure);
}

}  // namespace
}  // namespace pelago::plan
