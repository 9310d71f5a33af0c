// Times of layers that somebody measured, in the place of a probe.
#include "plan/cost/device/layer_times.h"

#include <fmt/format.h>

#include "plan/fixtures.h"

namespace pelago::plan {
namespace {

constexpr int64_t kBlocks = 4;

JobConfig layer_job(const std::vector<std::string>& overrides = {}) {
  return job_from(fmt::format("[model]\npreset = '10m'\nnum_hidden_layers = {}\n[data]\ndir = 'c'\n"
                              "sequence_length = 128\n[train]\nbatch_sequences = 8\n"
                              "exact_batch = true\nmicrobatch_sequences = 4\n",
                              kBlocks),
                  overrides);
}

FleetConfig two_devices(const std::string& more = "") {
  return fleet_from("[[site]]\nname = 'a'\n[[site.device]]\ndevice = 'cuda:0'\nprofile = 'x'\n" +
                    more);
}
const std::string kSecond = "[[site.device]]\ndevice = 'cuda:1'\nprofile = 'x'\n";

/// A block takes 1 ms a sequence forward and 2 ms backward, the ends half a block each, the update
/// 5 ms; over two devices 0.6 of that.
std::string layers_of(double factor, const std::string& but_layer = "", int64_t count = kBlocks) {
  std::string text;
  for (int64_t layer = 0; layer <= count + 1; ++layer) {
    const double share = layer == 0 || layer == count + 1 ? 0.5 : 1;
    if (std::to_string(layer) == but_layer) continue;
    text += fmt::format("{}\"{}\": [{}, {}, 0.005]",
                        text.empty() ? "" : ", ",
                        layer,
                        0.001 * share * factor,
                        0.002 * share * factor);
  }
  return "{" + text + "}";
}
std::string layer_file() {
  std::string text;
  for (const int64_t microbatch : {1, 2, 4}) {
    const auto sequences = static_cast<double>(microbatch);
    text += fmt::format("{}\"{}\": {{\"1\": {}, \"2\": {}}}",
                        text.empty() ? "" : ", ",
                        microbatch,
                        layers_of(sequences),
                        layers_of(0.6 * sequences));
  }
  return "{" + text + "}";
}

Plan plan_by(const std::string& json, const JobConfig& job, const FleetConfig& fleet) {
  const TempFolder folder;
  const LayerTimes times =
      read_layer_times({"x=" + folder.write("x.json", json).string()}, job, fleet, catalogue());
  return make_plan(job, fleet, catalogue(), &times.probe, 2);
}

std::string refused(const std::string& json,
                    const std::string& name = "x=",
                    const std::vector<std::string>& overrides = {}) {
  const TempFolder folder;
  const std::string source = name + folder.write("x.json", json).string();
  return refusal(
      [&] { read_layer_times({source}, layer_job(overrides), two_devices(), catalogue()); });
}

TEST_CASE("a step by measured layers takes what they add up to") {
  const Plan plan = plan_by(layer_file(), layer_job(), two_devices());
  // Two microbatches of 4: 4 blocks and two half ones, at 3 ms a sequence, and one update.
  CHECK(plan.predicted_tokens_s * (2 * 5 * 4 * 0.003 + 0.005) == doctest::Approx(8 * 128));
  CHECK(plan.sites[0].devices[0].measured);
}

TEST_CASE("one device string that is two kinds of chip in two sites has each kind's times") {
  const FleetConfig fleet = fleet_from(
      "[[site]]\nname = 'a'\n[[site.device]]\ndevice = 'cuda:0'\nprofile = 'x'\n"
      "[[site]]\nname = 'b'\n[[site.device]]\ndevice = 'cuda:0'\nprofile = 'y'\n"
      "[[link]]\nbetween = ['a', 'b']\n");
  const TempFolder folder;
  const auto file = [&](const std::string& name, double factor) {
    const std::string json = "{\"4\": {\"1\": " + layers_of(factor) + "}}";
    return name + "=" + folder.write(name + ".json", json).string();
  };
  const JobConfig job = layer_job({"sites.across='rounds'"});
  const LayerTimes times = read_layer_times({file("x", 4), file("y", 12)}, job, fleet, catalogue());
  const Plan plan = make_plan(job, fleet, catalogue(), &times.probe, 2);
  CHECK(plan.sites[0].batch_sequences == 6);
  CHECK(plan.sites[1].batch_sequences == 2);
}

TEST_CASE("a set of two devices goes at the pace that was measured of two") {
  const JobConfig job = layer_job({"train.tensor_parallel=2"});
  const Plan plan = plan_by(layer_file(), job, two_devices(kSecond));
  REQUIRE(plan.sites[0].pipelines.size() == 1);
  CHECK(plan.sites[0].pipelines[0].predicted_step_s ==
        doctest::Approx(2 * 5 * 4 * 0.003 * 0.6).epsilon(0.001));
}

TEST_CASE("a width that nobody measured is not taken") {
  const std::string pairs = "{\"4\": {\"2\": " + layers_of(2.4) + "}}";
  const Plan plan = plan_by(pairs, layer_job(), two_devices(kSecond));
  CHECK(plan.sites[0].pipelines[0].stages[0].ranks.size() == 2);
  CHECK(plan_from_json(to_json(plan), "plan.json").profiles.begin()->second.cuts.size() == 1);
}

TEST_CASE("stages have the blocks that the job names") {
  const JobConfig job = layer_job({"train.blocks_by_stage=[1, 3]"});
  const Plan plan = plan_by(layer_file(), job, two_devices(kSecond));
  REQUIRE(plan.sites[0].pipelines.size() == 1);
  CHECK(plan.sites[0].pipelines[0].stages[0].last_block == 1);
  CHECK(contains(refusal([] { layer_job({"train.blocks_by_stage=[1, 4]"}); }),
                 "adds up to 5, and the model has 4 blocks"));
}

TEST_CASE("a microbatch that took longer than a larger one is levelled, and said so") {
  const TempFolder folder;
  const std::string json =
      "{\"2\": {\"1\": " + layers_of(9) + "}, \"4\": {\"1\": " + layers_of(4) + "}}";
  const JobConfig job = layer_job({"train.microbatch_sequences=2"});
  const LayerTimes times = read_layer_times(
      {"x=" + folder.write("x.json", json).string()}, job, two_devices(), catalogue());
  CHECK(times.probe.devices.at("cuda:0").block_forward.at(2) == doctest::Approx(0.004));
  REQUIRE(times.notes.size() == 1);
  CHECK(contains(times.notes[0], "a block of microbatch 2 takes 27 ms"));
}

TEST_CASE("a profile that lacks something is refused by name") {
  CHECK(contains(refused("{\"4\": {\"1\": " + layers_of(4, "3") + "}}"),
                 "microbatch 4, tensor_parallel 1: layer 3 is missing"));
  CHECK(contains(refused("{\"4\": {\"1\": " + layers_of(4, "", kBlocks + 1) + "}}"),
                 "layer 6 is one too many for a model of 4 blocks"));
  CHECK(contains(refused("{\"2\": {\"1\": " + layers_of(2) + "}}"),
                 "has no times of microbatch 4; it has 2"));
  CHECK(contains(refused(layer_file(), "x=", {"train.tensor_parallel=4"}),
                 "no times of tensor_parallel 4, which the job asks for; it has 1, 2"));
  CHECK(contains(refused(layer_file(), "y="),
                 "no times of cuda:0 (site \"a\"), which is a x: give --profile x=FILE"));
  CHECK(contains(refused(layer_file(), ""), "write --profile NAME="));
  CHECK(contains(refused("{\"sequence_length\": 64, \"chips\": {\"x\": {}}}"),
                 "sequence_length = 64, and the job has 128"));
}

TEST_CASE("a profile that is no profile is refused") {
  CHECK(contains(refused("{"), "not valid JSON"));
  CHECK(contains(refused("[]"), "must be an object"));
  CHECK(contains(refused("{\"four\": {}}"), "microbatch \"four\" must be a whole number"));
  CHECK(contains(refused("{\"4\": 1}"), "microbatch 4 must be an object"));
  std::string negative = layer_file();
  negative.replace(negative.find("0.002"), 5, "-0.02");
  CHECK(contains(refused(negative), "must be [forward_s, backward_s, update_s]"));
}

}  // namespace
}  // namespace pelago::plan
