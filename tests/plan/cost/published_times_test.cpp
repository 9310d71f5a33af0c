// Plans of somebody else's runs, by their own profile, beside the times they published: OPT-350M on
// nodes of four GH200, tensor parallel over a node (Sailor, github.com/eth-easl/sailor at cf2c8e3,
// MIT licence). Nothing here is fitted: docs/SIMULATION.md says what each row is off by, and why.
#include <fmt/format.h>

#include <cmath>

#include "plan/cost/device/layer_times.h"
#include "plan/fixtures.h"

namespace pelago::plan {
namespace {

/// Seconds forward, backward and of the update, as the profile has them: of the embedding, the
/// first block, all further ones and the head.
struct MicrobatchTimes {
  int microbatch;
  const char *embedding, *first_block, *further_block, *head;
};
constexpr MicrobatchTimes kOfFour[] = {
    {1,
     "[0.000967, 2e-06, 0.000447]",
     "[0.002561, 0.001938, 0.000447]",
     "[0.002381, 0.001719, 0.000447]",
     "[0.002405, 0.001663, 0.000447]"},
    {2,
     "[0.000456, 2e-06, 0.000429]",
     "[0.00153, 0.001821, 0.000429]",
     "[0.001509, 0.001846, 0.000429]",
     "[0.001632, 0.001493, 0.000429]"},
    {4,
     "[0.00063, 2e-06, 0.000472]",
     "[0.001857, 0.003312, 0.000472]",
     "[0.0018, 0.00332, 0.000472]",
     "[0.002424, 0.002579, 0.000472]"},
    {8,
     "[0.000922, 1e-06, 0.000479]",
     "[0.003021, 0.006469, 0.000479]",
     "[0.002683, 0.00647, 0.000479]",
     "[0.004014, 0.005944, 0.000479]"},
};

std::string profile_of_four() {
  std::string json;
  for (const MicrobatchTimes& times : kOfFour) {
    json += fmt::format("{}\"{}\": {{\"4\": {{\"0\": {}, \"1\": {}",
                        json.empty() ? "{" : ", ",
                        times.microbatch,
                        times.embedding,
                        times.first_block);
    for (int block = 2; block <= 24; ++block) {
      json += fmt::format(", \"{}\": {}", block, times.further_block);
    }
    json += fmt::format(", \"25\": {}}}}}", times.head);
  }
  return json + "}";
}

struct Row {
  size_t nodes;
  const char* blocks_by_stage;
  size_t num_pipelines;
  int64_t microbatch, batch;
  double measured_s;
  double documented_error;  // in percent
};
constexpr Row kRows[] = {
    {1, "[24]", 1, 1, 1, 0.0736, 14.8},
    {1, "[24]", 1, 1, 32, 2.281, 14.2},
    {2, "[11, 13]", 1, 8, 32, 0.657, -4.6},
    {2, "[24]", 2, 2, 32, 0.805, -15.5},
    {4, "[4, 7, 7, 6]", 1, 1, 64, 1.602, -4.2},
    {4, "[11, 13]", 2, 1, 64, 1.445, 3.2},
    {4, "[24]", 4, 4, 128, 1.235, -16.0},
};

/// In percent of what was measured.
double error_of(const Row& row) {
  const std::filesystem::path examples =
      std::filesystem::path(__FILE__).parent_path() / "../../../examples/profiles";
  const JobConfig job = read_job(examples / "opt-350m.job.toml",
                                 {fmt::format("train.blocks_by_stage={}", row.blocks_by_stage),
                                  fmt::format("train.microbatch_sequences={}", row.microbatch),
                                  fmt::format("train.batch_sequences={}", row.batch)});
  FleetConfig fleet = read_fleet(examples / "gh200.fleet.toml", catalogue());
  fleet.sites[0].devices.resize(4 * row.nodes);
  const TempFolder folder;
  const LayerTimes times =
      read_layer_times({"gh200=" + folder.write("opt-350-GH-96.json", profile_of_four()).string()},
                       job,
                       fleet,
                       catalogue());
  const Plan plan = make_plan(job, fleet, catalogue(), &times.probe, 2);
  REQUIRE(plan.sites[0].pipelines.size() == row.num_pipelines);
  REQUIRE(plan.sites[0].pipelines[0].microbatch == row.microbatch);
  return 100 * (plan.sites[0].predicted_step_s / row.measured_s - 1);
}

TEST_CASE("plans by Sailor's profile of GH200 are off from its times by what the docs say") {
  double sum = 0;
  for (const Row& row : kRows) {
    const double error = error_of(row);
    CAPTURE(row.nodes);
    CAPTURE(row.blocks_by_stage);
    CAPTURE(row.batch);
    CHECK(std::abs(error - row.documented_error) < 0.1);
    sum += std::abs(error);
  }
  CHECK(sum / std::size(kRows) < 10.5);
}

TEST_CASE("an update that was timed with two blocks takes longer with all of them") {
  const std::string path = "../../../examples/profiles/opt-350m.job.toml";
  const JobConfig job = read_job(std::filesystem::path(__FILE__).parent_path() / path,
                                 {"train.microbatch_sequences=1"});
  const FleetConfig fleet = fleet_from(
      "[[site]]\nname = 'a'\n[[site.device]]\ndevice = 'cuda:0'\ncount = 4\nprofile = 'gh200'\n");
  const TempFolder folder;
  const auto update_parameter_s = [&](const std::string& json) {
    const LayerTimes times = read_layer_times(
        {"gh200=" + folder.write("gh200.json", json).string()}, job, fleet, catalogue());
    return times.probe.devices.at("cuda:0").cuts.at(0).update_parameter_s;
  };
  const std::string copied = profile_of_four();
  // A quarter of the vocabulary and of two blocks of 12.6 million parameters.
  CHECK(update_parameter_s(copied) ==
        doctest::Approx(0.000447 / ((50272 * 1024 + 2 * 12.6e6) / 4)).epsilon(0.01));
  // If a third block was measured for itself, all were.
  std::string measured = copied;
  const std::string third = "\"3\": [0.002381";
  measured.replace(measured.find(third), third.size(), "\"3\": [0.002382");
  CHECK(update_parameter_s(measured) ==
        doctest::Approx(0.000447 / ((50272 * 1024 + 24 * 12.6e6) / 4)).epsilon(0.01));
}

const char* const kTwoStages =
    "[model]\npreset = '2m'\n[data]\ndir = 'c'\nsequence_length = 128\n[train]\n"
    "batch_sequences = 8\nexact_batch = true\nmicrobatch_sequences = 4\npipeline = 'always'\n";

TEST_CASE("microbatches are just as large as the job asks, though smaller ones fill a pipeline") {
  const JobConfig free = job_from(kTwoStages);
  const ProbedFleet two = probed_fleet(free, {profile_of({}), profile_of({})});
  const auto microbatch = [&](const JobConfig& job) {
    const Plan plan = make_plan(job, two.fleet, catalogue(), &two.probe, 2);
    REQUIRE(plan.sites[0].pipelines.size() == 1);
    REQUIRE(plan.sites[0].pipelines[0].stages.size() == 2);
    return plan.sites[0].pipelines[0].microbatch;
  };
  CHECK(microbatch(free) < 4);
  CHECK(microbatch(job_from(kTwoStages, {"train.exact_microbatch=true"})) == 4);
}

TEST_CASE("microbatches of just so many sequences that find no memory are refused by name") {
  const std::string fleet =
      "[emulation]\nslowdown = 1000\nmemory_gib = {}\n[[site]]\nname = 'a'\n"
      "[[site.device]]\ndevice = 'emulated:a100'\ncount = 2\n";
  const std::vector<std::string> many = {
      "train.microbatch_sequences=64", "train.batch_sequences=128", "train.recompute='never'"};
  std::vector<std::string> just_many = many;
  just_many.push_back("train.exact_microbatch=true");
  const FleetConfig small = fleet_from(fmt::format(fmt::runtime(fleet), 0.1));
  CHECK(make_plan(job_from(kTwoStages, many), small, catalogue(), nullptr, 2)
            .sites[0]
            .pipelines[0]
            .microbatch < 64);
  CHECK(contains(
      refusal([&] { make_plan(job_from(kTwoStages, just_many), small, catalogue(), nullptr, 2); }),
      "no memory for microbatches of just 64 sequences"));
}

}  // namespace
}  // namespace pelago::plan
