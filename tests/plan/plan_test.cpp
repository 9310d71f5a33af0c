#include "plan/plan.h"

#include <rapidcheck.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "plan/fixtures.h"

namespace pelago::plan {
namespace {

using Json = nlohmann::ordered_json;

double any_figure() { return *rc::gen::inRange(0, 1'000'000) / 997.0; }
std::string any_word() {
  return *rc::gen::nonEmpty(rc::gen::container<std::string>(rc::gen::inRange('a', 'z')));
}

SitePlan any_site(const std::string& name, int64_t first_sequence) {
  SitePlan site;
  site.name = name;
  site.listen = any_word();
  site.bound_by = any_word();
  site.first_sequence = first_sequence;
  site.predicted_step_s = any_figure();
  const int num_devices = *rc::gen::inRange(1, 4);
  for (int i = 0; i < num_devices; ++i) {
    DevicePlan device;
    device.device = any_word();
    device.cores = {i, i + 3};
    device.predicted_step_s = any_figure();
    device.predicted_tokens_s = any_figure();
    device.predicted_memory = {.weights = any_figure(), .buffers = any_figure()};
    device.memory_bytes = any_figure();
    device.measured = *rc::gen::arbitrary<bool>();
    site.devices.push_back(device);
    PipelinePlan pipeline;
    pipeline.sequences = *rc::gen::inRange<int64_t>(1, 50);
    pipeline.microbatch = *rc::gen::inRange<int64_t>(1, pipeline.sequences + 1);
    pipeline.stages = {{.first_block = 0, .last_block = 4, .ranks = {i}}};
    site.batch_sequences += pipeline.sequences;
    site.pipelines.push_back(pipeline);
  }
  return site;
}

Plan any_plan() {
  Plan plan;
  plan.job_name = any_word();
  plan.steps = *rc::gen::inRange<int64_t>(1, 1'000'000);
  plan.sequence_length = *rc::gen::inRange<int64_t>(1, 10'000);
  plan.num_parameters = *rc::gen::inRange<int64_t>(1, INT64_MAX);
  plan.num_blocks = 4;
  for (const char* name : {"a", "b"}) {
    plan.sites.push_back(any_site(name, plan.batch_sequences));
    plan.batch_sequences += plan.sites.back().batch_sequences;
  }
  plan.links.push_back({.from = "a",
                        .to = "b",
                        .bandwidth_mbit_s = any_figure(),
                        .rtt_ms = any_figure(),
                        .emulate = *rc::gen::arbitrary<bool>()});
  plan.emulation_slowdown = any_figure();
  plan.emulation_memory_bytes = any_figure();
  plan.predicted_tokens_s = any_figure();
  plan.predicted_line_mbit_s = any_figure();
  plan.host_load = any_figure();
  plan.host_cores = any_figure();
  plan.profiles["a"].block_forward = {any_figure(), any_figure()};
  plan.warnings = {any_word(), "a \"quoted\" line\twith 5 % \xc3\xa9"};
  return plan;
}

Plan fixed_plan() {
  Plan plan;
  plan.job_name = "two-sites";
  plan.steps = 236;
  plan.batch_sequences = 5;
  plan.sequence_length = 128;
  plan.num_parameters = 10'600'000;
  plan.exchange.inner_steps = 24;
  plan.num_blocks = 2;
  DevicePlan device;
  device.device = "cpu";
  device.cores = {0};
  device.predicted_step_s = 0.5;
  PipelinePlan pipeline;
  pipeline.sequences = 3;
  pipeline.microbatch = 2;
  pipeline.stages = {{.first_block = 0, .last_block = 2, .ranks = {0}}};
  SitePlan site;
  site.name = "a";
  site.listen = "127.0.0.1";
  site.devices = {device};
  site.pipelines = {pipeline};
  site.batch_sequences = 3;
  site.predicted_step_s = 0.5;
  site.bound_by = "cpu compute";
  plan.sites.push_back(site);
  site.name = "b";
  site.first_sequence = 3;
  site.batch_sequences = 2;
  site.pipelines[0].sequences = 2;
  plan.sites.push_back(site);
  plan.links.push_back({.from = "a", .to = "b", .bandwidth_mbit_s = 200, .rtt_ms = 30});
  plan.warnings = {"something is odd"};
  return plan;
}

/// The refusal of the fixed plan after this change to its JSON.
std::string refusal_of_json(auto&& change) {
  Json json = Json::parse(to_json(fixed_plan()));
  change(json);
  return refusal([&] { plan_from_json(json.dump(), "plan.json"); });
}

TEST_CASE("a plan for Muon that cuts matrices is refused, one of whole matrices is not") {
  const auto refused = [](auto&& change) {
    return refusal_of_json([&](Json& json) {
      json["optimizer"] = "muon";
      change(json);
    });
  };
  CHECK(refused([](Json&) {}).empty());
  contains(refused([](Json& json) { json["optimizer"] = "mu"; }),
           "plan.json: optimizer = \"mu\" must be adamw or muon");
  contains(refused([](Json& json) { json["sites"][1]["slice_optimizer"] = true; }),
           "plan.json: sites[1]: slice_optimizer = true cuts matrices, which optimizer = \"muon\" "
           "needs whole: make it false");
  contains(refused([](Json& json) {
             json["sites"][0]["devices"].push_back(json["sites"][0]["devices"][0]);
             json["sites"][0]["pipelines"][0]["stages"][0]["ranks"] = {0, 1};
           }),
           "plan.json: sites[0].pipelines[0].stages[0]: its 2 ranks cut matrices, which optimizer "
           "= \"muon\" needs whole");
  Plan plan = fixed_plan();
  CHECK(to_json(plan).find("optimizer\": \"") == std::string::npos);  // as plans were before
  plan.optimizer = "muon";
  CHECK(plan_from_json(to_json(plan), "plan.json").optimizer == "muon");
}

TEST_CASE("what is written as JSON reads back as the same plan, figure for figure") {
  CHECK(rc::check([] {
    const Plan plan = any_plan();
    const std::string json = to_json(plan);
    const Plan again = plan_from_json(json, "plan.json");
    RC_ASSERT(to_json(again) == json);
    RC_ASSERT(again.sites[1].devices[0].predicted_step_s ==
              plan.sites[1].devices[0].predicted_step_s);
    RC_ASSERT(again.num_parameters == plan.num_parameters);
    RC_ASSERT(again.links[0].emulate == plan.links[0].emulate);
    RC_ASSERT(again.warnings == plan.warnings);
  }));
}

TEST_CASE("a plan that was made can be read back") {
  const FleetConfig fleet = fleet_from("[[site]]\nname='a'\n[[site.device]]\ndevice='cpu'\n");
  const Plan plan = make_plan(small_job(), fleet, catalogue(), nullptr, 2);
  CHECK(to_json(plan_from_json(to_json(plan), "plan.json")) == to_json(plan));
}

TEST_CASE("every field that is missing is named") {
  const Json whole = Json::parse(to_json(fixed_plan()));
  const std::vector<std::string> places = {"",
                                           "/sites/0",
                                           "/sites/0/devices/0",
                                           "/sites/0/devices/0/predicted_memory",
                                           "/sites/0/pipelines/0",
                                           "/sites/0/pipelines/0/stages/0",
                                           "/links/0",
                                           "/exchange"};
  for (const std::string& place : places) {
    const Json::json_pointer pointer(place);
    for (const auto& [key, value] : whole.at(pointer).items()) {
      const std::string message =
          refusal_of_json([&, name = key](Json& json) { json[pointer].erase(name); });
      contains(message, "plan.json");
      contains(message, fmt::format("field {} is missing", key));
    }
  }
}

TEST_CASE("an unknown field is named with its place and the nearest one") {
  contains(refusal_of_json([](Json& json) { json["stepz"] = 1; }),
           "plan.json: unknown field stepz; did you mean steps?");
  contains(refusal_of_json([](Json& json) { json["sites"][0]["devices"][0]["corez"] = 1; }),
           "plan.json: sites[0]: devices[0]: unknown field corez; did you mean cores?");
}

TEST_CASE("another version is refused") {
  contains(refusal_of_json([](Json& json) { json["version"] = 9; }),
           "plan.json: version = 9, but this pelago reads version 2; make the file again");
}

TEST_CASE("a field of the wrong kind is named with its value") {
  contains(refusal_of_json([](Json& json) { json["steps"] = -1; }),
           "plan.json: steps = -1 must be a whole number, 0 or more");
  contains(refusal_of_json([](Json& json) { json["steps"] = 1.5; }), "steps = 1.5 must be a whole");
  contains(refusal_of_json([](Json& json) { json["steps"] = "many"; }), "steps = \"many\" must be");
  contains(refusal_of_json([](Json& json) { json["job_name"] = 3; }),
           "job_name = 3 must be a string");
  contains(refusal_of_json([](Json& json) { json["sites"] = 3; }), "sites = 3 must be a list");
  contains(refusal_of_json([](Json& json) { json["sites"][0] = 3; }), "must be an object");
  contains(refusal_of_json([](Json& json) { json["host_load"] = nullptr; }),
           "host_load = null must");
  contains(refusal_of_json([](Json& json) { json["links"][0]["emulate"] = 1; }),
           "emulate = 1 must be true or false");
}

TEST_CASE("shares that do not add up are refused with both sums") {
  contains(refusal_of_json([](Json& json) { json["sites"][0]["pipelines"][0]["sequences"] = 2; }),
           "sites[0]: batch_sequences = 3, but the sequences of its pipelines add up to 2");
  contains(refusal_of_json([](Json& json) { json["batch_sequences"] = 6; }),
           "batch_sequences = 6, but its sites add up to 5");
  contains(refusal_of_json([](Json& json) { json["sites"][1]["first_sequence"] = 0; }),
           "sites[1]: first_sequence = 0 must be 3");
  contains(refusal_of_json([](Json& json) { json["sites"][0]["pipelines"][0]["sequences"] = 0; }),
           "sequences = 0 must be between 1");
  contains(refusal_of_json([](Json& json) { json["sites"][0]["pipelines"][0]["microbatch"] = 4; }),
           "microbatch = 4 must be between 1 and sequences = 3");
}

TEST_CASE("a plan whose parts do not fit together is refused") {
  contains(refusal_of_json([](Json& json) { json["sites"][1]["name"] = "a"; }),
           "a second site of the name \"a\"");
  contains(refusal_of_json([](Json& json) { json["links"][0]["to"] = "c"; }),
           "links[0]: \"c\" is no site of the plan");
  contains(refusal_of_json([](Json& json) { json["sites"] = Json::array(); }), "sites is empty");
  contains(refusal_of_json([](Json& json) { json["steps"] = 0; }), "steps = 0 must be 1 or more");
  contains(refusal_of_json([](Json& json) { json["exchange"]["inner_steps"] = 23; }),
           "inner_steps = 23 must be a multiple of fragments = 4");
  contains(refusal_of_json([](Json& json) { json["exchange"]["fragments"] = 0; }), "fragments = 0");
  contains(refusal_of_json([](Json& json) { json["exchange"]["overlap_steps"] = 6; }),
           "overlap_steps = 6 must be between 0 and 5");
  contains(refusal_of_json([](Json& json) { json["exchange"]["delta_bits"] = 3; }),
           "delta_bits = 3 must be 2, 4, 8 or 32");
  contains(refusal_of_json([](Json& json) { json["exchange"]["combine"] = "median"; }),
           "combine = \"median\" must be mean or direction");
}

/// The fixed plan's first site with a second device, in a stage of its own or beside the first.
Plan plan_of_two_devices() {
  Plan plan = fixed_plan();
  SitePlan& site = plan.sites[0];
  site.devices.push_back(site.devices[0]);
  StagePlan behind = site.pipelines[0].stages[0];
  site.pipelines[0].stages[0].last_block = 1;
  behind.first_block = 1;
  behind.ranks = {1};
  site.pipelines[0].stages.push_back(behind);
  return plan;
}

std::string refusal_of_two(auto&& change) {
  Plan plan = plan_of_two_devices();
  change(plan, plan.sites[0]);
  return refusal([&] { plan_from_json(to_json(plan), "plan.json"); });
}

TEST_CASE("a pipeline that lacks a block, or holds one twice, is refused") {
  CHECK(refusal_of_two([](Plan&, SitePlan&) {}).empty());
  contains(
      refusal_of_two([](Plan&, SitePlan& site) { site.pipelines[0].stages[1].first_block = 0; }),
      "plan.json: sites[0].pipelines[0].stages[1]: first_block = 0 must be 1: each block is "
      "held exactly once");
  contains(refusal_of_two([](Plan& plan, SitePlan&) { plan.num_blocks = 3; }),
           "its stages end with block 2, but the model has 3 blocks");
  contains(
      refusal_of_two([](Plan&, SitePlan& site) { site.pipelines[0].stages[0].last_block = 0; }),
      "last_block = 0 must be above first_block = 0");
  contains(refusal_of_two([](Plan&, SitePlan& site) { site.pipelines[0].stages.clear(); }),
           "a pipeline needs at least one stage");
}

TEST_CASE("a pipeline that holds blocks and gets no sequence is refused") {
  contains(refusal_of_two([](Plan&, SitePlan& site) { site.pipelines[0].sequences = 0; }),
           "pipelines[0]: sequences = 0 must be between 1 and the site's batch_sequences = 3: its "
           "devices hold blocks, so they need a share");
  contains(refusal_of_two([](Plan&, SitePlan& site) { site.pipelines[0].microbatch = 0; }),
           "microbatch = 0 must be between 1");
}

TEST_CASE("a rank in no stage, in two, or that does not exist, is refused") {
  contains(refusal_of_two([](Plan&, SitePlan& site) { site.pipelines[0].stages[1].ranks = {0}; }),
           "rank 0 (cpu) is in 2 stages; every device is in exactly one");
  contains(refusal_of_two([](Plan&, SitePlan& site) { site.pipelines[0].stages[1].ranks = {7}; }),
           "rank 7 does not exist: the site has 2 devices, counted from 0");
  contains(refusal_of_two([](Plan&, SitePlan& site) { site.pipelines[0].stages[1].ranks = {}; }),
           "a stage needs at least one rank");
}

TEST_CASE("a stage of unlike chips, or one wider than its node, is refused with both ranks") {
  const auto widen = [](SitePlan& site) {
    site.pipelines[0].stages.pop_back();
    site.pipelines[0].stages[0].last_block = 2;
    site.pipelines[0].stages[0].ranks = {0, 1};
  };
  CHECK(refusal_of_two([&](Plan&, SitePlan& site) { widen(site); }).empty());
  contains(refusal_of_two([&](Plan&, SitePlan& site) {
             widen(site);
             site.devices[1].device = "cuda:0";
           }),
           "unlike chips in one stage: cpu and cuda:0; a stage has one kind of chip");
  contains(refusal_of_two([&](Plan&, SitePlan& site) {
             widen(site);
             site.devices[1].node = "b";
           }),
           "the stage is wider than its node: rank 0 is in node \"\", rank 1 in \"b\"");
  contains(refusal_of_two([&](Plan& plan, SitePlan& site) {
             widen(site);
             plan.sequence_length = 129;
           }),
           "2 ranks must divide the sequence length 129");
}

TEST_CASE("text that is no JSON is refused by its name, however it is broken") {
  const std::string whole = to_json(fixed_plan());
  for (size_t length = 0; length < whole.size() - 2; length += 7) {
    const std::string message =
        refusal([&] { plan_from_json(whole.substr(0, length), "plan.json"); });
    CHECK(message.rfind("plan.json: not valid JSON", 0) == 0);
  }
  contains(refusal([] { plan_from_json(std::string(1000, '['), "plan.json"); }), "not valid JSON");
  contains(refusal([] { plan_from_json("[]", "plan.json"); }), "must be an object");
}

TEST_CASE("one changed byte gives a plan or a refusal, never anything else") {
  const std::string whole = to_json(fixed_plan());
  CHECK(rc::check([&] {
    std::string broken = whole;
    broken[*rc::gen::inRange<size_t>(0, whole.size())] = *rc::gen::arbitrary<char>();
    try {
      plan_from_json(broken, "plan.json");
    } catch (const Failure& failure) {
      RC_ASSERT(failure.exit_code() == kExitUsage);
    }
  }));
}

TEST_CASE("a probe reads back as it was written, and one without a pace is refused") {
  const JobConfig job = small_job();
  const ProbedFleet probed =
      probed_fleet(job,
                   {profile_of({.sequence_s = 0.1, .step_s = 0.01}),
                    profile_of({.sequence_s = 0.3, .host_busy_ratio = 0.5})});
  const std::string json = to_json(probed.probe);
  const Probe again = probe_from_json(json, "probe.json");
  CHECK(to_json(again) == json);
  CHECK(again.devices.at("cuda:1").host_busy_ratio == 0.5);
  Json broken = Json::parse(json);
  broken["devices"]["cuda:0"]["block_forward"]["sequence_s"] = 0;
  contains(refusal([&] { probe_from_json(broken.dump(), "probe.json"); }),
           "probe.json: devices.cuda:0: block_forward and block_backward: sequence_s must be");
  broken["devices"]["cuda:0"].erase("block_forward");
  contains(refusal([&] { probe_from_json(broken.dump(), "probe.json"); }),
           "devices.cuda:0: field block_forward is missing");
}

TEST_CASE("the table shows every site and device, in columns that stand below each other") {
  const std::string table = to_table(fixed_plan());
  contains(table, "plan of \"two-sites\": 10.6 M parameters, sequences of 128 tokens");
  contains(table, "cpu compute");
  contains(table, "3 (60 %)");
  contains(table, "a - b: 0.0 of 200 Mbit/s each way");
  contains(table, "every 6 steps one of 4 fragments, merged 1 step later; 4 bits");
  contains(table, "warning    something is odd");
  CHECK(table.find("  \n") == std::string::npos);
}

}  // namespace
}  // namespace pelago::plan
