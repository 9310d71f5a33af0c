#include <rapidcheck.h>

#include <algorithm>
#include <cmath>

#include "plan/cost/memory.h"
#include "plan/fixtures.h"

namespace pelago::plan {
namespace {

constexpr const char* kTwoSites = R"(
[emulation]
slowdown = 3000
[[site]]
name = "lingang"
[[site.device]]
device = "emulated:nvidia-a100-80g-sxm"
[[site.device]]
device = "emulated:nvidia-h20"
[[site]]
name = "guizhou"
[[site.device]]
device = "emulated:huawei-910b2"
count = 2
[[link]]
between = ["lingang", "guizhou"]
bandwidth_mbit_s = 200
rtt_ms = 30
)";

/// Figures for every device of the fleet, all of this host load.
Probe probe_of(const JobConfig& job, const FleetConfig& fleet, double host_busy_ratio) {
  Probe probe;
  probe.job_hash = probe_hash(job, fleet);
  for (const FleetSite& site : fleet.sites) {
    for (const FleetDevice& device : site.devices) {
      DeviceProfile& profile = probe.devices[device.device];
      profile =
          profile_of({.sequence_s = 0.05, .step_s = 0.01, .host_busy_ratio = host_busy_ratio});
      profile.device = device.device;
    }
  }
  return probe;
}

bool warns(const Plan& plan, std::string_view part) {
  return std::any_of(plan.warnings.begin(), plan.warnings.end(), [&](const std::string& warning) {
    return warning.find(part) != std::string::npos;
  });
}

TEST_CASE("shares add up through sites and devices, and samples of sites do not overlap") {
  const Plan plan = make_plan(job_of_batch(40), fleet_from(kTwoSites), catalogue(), nullptr, 2);
  REQUIRE(plan.sites.size() == 2);
  int64_t sum = 0;
  for (const SitePlan& site : plan.sites) {
    CHECK(site.first_sequence == sum);
    int64_t site_sum = 0;
    for (const PipelinePlan& pipeline : site.pipelines) site_sum += pipeline.sequences;
    CHECK(site_sum == site.batch_sequences);
    sum += site_sum;
  }
  CHECK(sum == plan.batch_sequences);
  CHECK(plan.batch_sequences >= 36);
  CHECK(plan.batch_sequences <= 44);
}

TEST_CASE("an exact batch is not moved, whatever would be faster") {
  for (const int64_t batch : {37, 40, 41}) {
    CAPTURE(batch);
    JobConfig job = job_of_batch(batch);
    job.train.exact_batch = true;
    CHECK(make_plan(job, fleet_from(kTwoSites), catalogue(), nullptr, 2).batch_sequences == batch);
  }
}

TEST_CASE("the faster chip of the catalogue gets the larger share, and the plan says unmeasured") {
  // A model so large that arithmetic outweighs the starts of operators, and a batch so large that
  // it outweighs the reduction.
  JobConfig job = job_of_batch(8000);
  job.train.microbatch_sequences = 32;
  job.model = model::preset("350m");
  const Plan plan = make_plan(job, fleet_from(kTwoSites), catalogue(), nullptr, 2);
  const auto& lingang = plan.sites[0];
  CHECK(lingang.pipelines[0].sequences > lingang.pipelines[1].sequences);
  CHECK(!lingang.devices[0].measured);
  contains(to_table(plan), "from the catalogue, not measured");
}

TEST_CASE("the slowdown stretches an emulated chip's step and leaves the shares alone") {
  const JobConfig job = job_of_batch(80);
  const Plan once =
      make_plan(job, fleet_from(kTwoSites, {"emulation.slowdown=1000"}), catalogue(), nullptr, 2);
  const Plan thrice = make_plan(job, fleet_from(kTwoSites), catalogue(), nullptr, 2);
  CHECK(thrice.sites[0].predicted_step_s / once.sites[0].predicted_step_s ==
        doctest::Approx(3).epsilon(0.01));
  CHECK(thrice.sites[0].batch_sequences == once.sites[0].batch_sequences);
}

TEST_CASE("a share is cut into the fewest equal microbatches that the limit allows") {
  CHECK(rc::check([] {
    JobConfig job = job_of_batch(*rc::gen::inRange<int64_t>(3, 200));
    job.train.microbatch_sequences = *rc::gen::inRange<int64_t>(1, 20);
    const auto profile = [] {
      return profile_of({.sequence_s = *rc::gen::inRange(1, 100) / 1e3,
                         .step_s = *rc::gen::inRange(0, 100) / 1e3});
    };
    const ProbedFleet probed = probed_fleet(job, {profile(), profile(), profile()});
    const Plan plan = make_plan(job, probed.fleet, catalogue(), &probed.probe, 2);
    for (const PipelinePlan& device : plan.sites[0].pipelines) {
      const int64_t most = job.train.microbatch_sequences;
      const int64_t count = (device.sequences + device.microbatch - 1) / device.microbatch;
      RC_ASSERT(device.microbatch >= 1);
      RC_ASSERT(device.microbatch <= most);
      RC_ASSERT(count == (device.sequences + most - 1) / most);
    }
  }));
}

TEST_CASE("steps are taken from the job, else as many as fit into its minutes") {
  JobConfig job = job_of_batch(20);
  const ProbedFleet probed = probed_fleet(job, {profile_of({.sequence_s = 0.1, .step_s = 0})});
  job.train.minutes = 1;
  job.train.steps = 0;
  const Plan timed = make_plan(job, probed.fleet, catalogue(), &probed.probe, 2);
  CHECK(timed.steps == static_cast<int64_t>(60 / timed.sites[0].predicted_step_s));
  job.train.steps = 7;
  CHECK(make_plan(job, probed.fleet, catalogue(), &probed.probe, 2).steps == 7);
}

TEST_CASE("a single site exchanges nothing and needs no line") {
  const JobConfig job = job_of_batch(20);
  const ProbedFleet probed = probed_fleet(job, {profile_of({.sequence_s = 0.1, .step_s = 0})});
  const Plan plan = make_plan(job, probed.fleet, catalogue(), &probed.probe, 2);
  CHECK(plan.exchange.fragments == 0);
  CHECK(plan.predicted_line_mbit_s == 0);
}

TEST_CASE("a device that slows all others keeps one sequence and is named") {
  JobConfig job = job_of_batch(20);
  const ProbedFleet probed = probed_fleet(job,
                                          {profile_of({.sequence_s = 0.01, .step_s = 0}),
                                           profile_of({.sequence_s = 5.0, .step_s = 0})});
  const Plan plan = make_plan(job, probed.fleet, catalogue(), &probed.probe, 2);
  CHECK(plan.sites[0].pipelines[1].sequences == 1);
  CHECK(warns(plan, "cuda:1 of site \"here\" holds the others back"));
}

TEST_CASE("a batch smaller than the fleet is refused with the number that would do") {
  JobConfig job = job_of_batch(3);
  const std::string message =
      refusal([&] { make_plan(job, fleet_from(kTwoSites), catalogue(), nullptr, 2); });
  contains(message, "train.batch_sequences = 3 is too small for");
  const int64_t enough = std::stoll(message.substr(message.rfind("set it to ") + 10));
  job.train.batch_sequences = enough;
  CHECK(make_plan(job, fleet_from(kTwoSites), catalogue(), nullptr, 2).batch_sequences >= 4);
}

TEST_CASE("a probe of another job, or without a device, is refused") {
  const JobConfig job = job_of_batch(20);
  ProbedFleet probed = probed_fleet(job, {profile_of({.sequence_s = 0.1, .step_s = 0})});
  JobConfig other = job;
  other.data.sequence_length = 64;
  contains(refusal([&] { make_plan(other, probed.fleet, catalogue(), &probed.probe, 2); }),
           "the probe was made for another");
  probed.probe.devices.clear();
  contains(refusal([&] { make_plan(job, probed.fleet, catalogue(), &probed.probe, 2); }),
           "the probe has no figures for cuda:0 of site \"here\"; run `pelago probe` again");
}

TEST_CASE(
    "the hash of a probe moves with model, length, microbatch, dtype, slowdown and optimizer "
    "alone") {
  const JobConfig job = small_job();
  const FleetConfig fleet = fleet_from(kTwoSites);
  const std::string hash = probe_hash(job, fleet);
  const auto changed = [&](auto&& change) {
    JobConfig other = job;
    FleetConfig other_fleet = fleet;
    change(other, other_fleet);
    return probe_hash(other, other_fleet) != hash;
  };
  CHECK(changed([](JobConfig& j, FleetConfig&) { j.model.vocab_size += 1; }));
  CHECK(changed([](JobConfig& j, FleetConfig&) { j.data.sequence_length += 1; }));
  CHECK(changed([](JobConfig& j, FleetConfig&) { j.train.microbatch_sequences += 1; }));
  CHECK(changed([](JobConfig& j, FleetConfig&) { j.train.dtype = "f32"; }));
  CHECK(changed([](JobConfig& j, FleetConfig&) { j.train.optimizer = "muon"; }));
  CHECK(changed([](JobConfig&, FleetConfig& f) { f.emulation_slowdown += 1; }));
  CHECK(!changed([](JobConfig& j, FleetConfig&) { j.train.lr *= 2; }));
  CHECK(!changed([](JobConfig& j, FleetConfig&) { j.name = "other"; }));
}

TEST_CASE("a real device of unknown kind without a probe is refused; its kind is enough to plan") {
  const std::string fleet = "[[site]]\nname='a'\n[[site.device]]\ndevice='cuda:0'\n";
  contains(refusal([&] { make_plan(small_job(), fleet_from(fleet), catalogue(), nullptr, 2); }),
           "the pace of cuda:0 is not known: run `pelago probe`");
  const Plan plan =
      make_plan(small_job(), fleet_from(fleet + "chip = 'h20'\n"), catalogue(), nullptr, 2);
  CHECK(plan.sites[0].devices[0].memory_bytes > 90e9);
}

TEST_CASE("a processor that nobody measured gets a plan that says so") {
  const Plan plan = make_plan(small_job(),
                              fleet_from("[[site]]\nname='a'\n[[site.device]]\ndevice='cpu'\n"),
                              catalogue(),
                              nullptr,
                              2);
  CHECK(!plan.sites[0].devices[0].measured);
  CHECK(plan.sites[0].devices[0].predicted_tokens_s > 0);
}

TEST_CASE(
    "a model larger than a site is refused with what it has, the gap and a preset that fits") {
  JobConfig job = small_job();
  job.model = model::preset("8b");
  const FleetConfig fleet = fleet_from(kTwoSites, {"emulation.memory_gib=4"});
  const std::string message = refusal([&] { make_plan(job, fleet, catalogue(), nullptr, 2); });
  contains(message, "site \"lingang\" (1 x emulated:");
  contains(message, "has 8.00 GiB, and this model of");
  contains(message, "GiB are missing; the largest preset that fits is model.preset = \"");
  const size_t quote = message.rfind("preset = \"") + 10;
  job.model = model::preset(message.substr(quote, message.size() - quote - 1));
  for (const SitePlan& site : make_plan(job, fleet, catalogue(), nullptr, 2).sites) {
    for (const DevicePlan& device : site.devices) {
      CHECK(device.predicted_memory.total() <= device.memory_bytes);
    }
  }
}

TEST_CASE("a model larger than a site is refused with what the site would have to have") {
  JobConfig job = small_job();
  job.model = model::preset("1b");
  const auto plan_with = [&](int64_t more) {
    const FleetConfig fleet = fleet_from(
        fmt::format("[[site]]\nname = 'a'\n[[site.device]]\ndevice = 'emulated:a100'\ncount = {}\n"
                    "[emulation]\nslowdown = 1000\nmemory_gib = 6\n",
                    2 + more));
    return make_plan(job, fleet, catalogue(), nullptr, 2);
  };
  const std::string message = refusal([&] { plan_with(0); });
  contains(message, " GiB are missing; it would fit with ");
  const size_t at = message.find("it would fit with ") + 18;
  CHECK(plan_with(std::stoll(message.substr(at))).predicted_tokens_s > 0);
}

TEST_CASE("a site too small for every preset is refused with the advice to leave it out") {
  const FleetConfig fleet = fleet_from(kTwoSites, {"emulation.memory_gib=0.001"});
  contains(refusal([&] { make_plan(small_job(), fleet, catalogue(), nullptr, 2); }),
           "not even the smallest preset would fit: take this site out");
}

TEST_CASE("a microbatch that does not fit is cut until it does, and the plan says so") {
  JobConfig job = job_of_batch(400);
  job.train.microbatch_sequences = 100;
  job.train.recompute = "never";
  job.train.slice_optimizer = "never";
  const StageShape whole{
      .num_blocks = job.model.num_hidden_layers, .has_embedding = true, .has_head = true};
  const double bytes =
      stage_memory(sizes_of(job.model, 128), whole, {.microbatch = 30}).total() / 0.97 + 100;
  const FleetConfig fleet =
      fleet_from(kTwoSites, {fmt::format("emulation.memory_gib={}", bytes / (1 << 30))});
  const Plan plan = make_plan(job, fleet, catalogue(), nullptr, 2);
  for (const SitePlan& site : plan.sites) {
    for (const DevicePlan& device : site.devices) {
      CHECK(device.predicted_memory.total() <= device.memory_bytes);
    }
  }
  CHECK(warns(plan, "has memory for 30 sequences at once"));
}

TEST_CASE("bf16 on a chip without it is refused with the remedy") {
  JobConfig job = small_job();
  job.train.dtype = "bf16";
  const FleetConfig fleet = fleet_from(
      "[emulation]\nslowdown=9\n[[site]]\nname='a'\n[[site.device]]\ndevice='emulated:910a'\n");
  contains(refusal([&] { make_plan(job, fleet, catalogue(), nullptr, 2); }),
           "emulated:huawei-910a has no bf16: set train.dtype = \"auto\"");
}

TEST_CASE("an emulated fleet faster than the host is refused with the slowdown that would do") {
  const JobConfig job = job_of_batch(40);
  const FleetConfig fleet = fleet_from(kTwoSites);
  const Probe probe = probe_of(job, fleet, 0.675);
  const std::string message = refusal([&] { make_plan(job, fleet, catalogue(), &probe, 2); });
  contains(message, "the emulated chips need 2.7 processors, this machine has 2");
  contains(message, "set emulation.slowdown to at least 4800 (is 3000)");
}

TEST_CASE("the slowdown that a refusal names is accepted when the load falls with it") {
  CHECK(rc::check([] {
    const JobConfig job = job_of_batch(40);
    const FleetConfig fleet = fleet_from(kTwoSites);
    const double ratio = *rc::gen::inRange(45, 100) / 100.0;
    const Probe probe = probe_of(job, fleet, ratio);
    const std::string message = refusal([&] { make_plan(job, fleet, catalogue(), &probe, 2); });
    const double slowdown = std::stod(message.substr(message.find("at least ") + 9));
    FleetConfig slower = fleet;
    slower.emulation_slowdown = slowdown;
    const Probe again = probe_of(job, slower, ratio * fleet.emulation_slowdown / slowdown);
    RC_ASSERT(make_plan(job, slower, catalogue(), &again, 2).host_load <= 0.85 * 2 + 1e-9);
  }));
}

TEST_CASE(
    "a processor that carries more than itself is named, though the host as a whole bears it") {
  const JobConfig job = job_of_batch(40);
  FleetConfig fleet = fleet_from(kTwoSites);
  for (FleetSite& site : fleet.sites) {
    for (FleetDevice& device : site.devices) device.cores = {0};
  }
  const Probe probe = probe_of(job, fleet, 0.4);
  const Plan plan = make_plan(job, fleet, catalogue(), &probe, 2);
  CHECK(plan.host_load == doctest::Approx(1.6).epsilon(0.02));
  CHECK(warns(plan, "processor 0 carries the work of 1."));
}

TEST_CASE("two sites send the quantised fragment once each in the time between exchanges") {
  JobConfig job = job_of_batch(40);
  const FleetConfig fleet = fleet_from(kTwoSites);
  const Probe probe = probe_of(job, fleet, 0.1);
  const Plan plan = make_plan(job, fleet, catalogue(), &probe, 2);
  // 4 bits and a scale for 128 values, coded by their frequencies: 0.42 byte a parameter, once in H
  // steps.
  const double bits = 8 * 0.42 * static_cast<double>(plan.num_parameters);
  const double round_s = 24 * plan.sites[0].predicted_step_s;
  CHECK(plan.predicted_line_mbit_s == doctest::Approx(bits / round_s / 1e6).epsilon(0.02));
}

TEST_CASE("a line slower than the exchanges is named, with an H that it can carry") {
  const JobConfig job = job_of_batch(40);
  const FleetConfig fleet = fleet_from(kTwoSites, {});
  FleetConfig thin = fleet;
  thin.links[0].bandwidth_mbit_s = 1;
  const Probe probe = probe_of(job, thin, 0.1);
  const Plan plan = make_plan(job, thin, catalogue(), &probe, 2);
  CHECK(warns(plan, "the line lingang - guizhou needs"));
  CHECK(!warns(make_plan(job, fleet, catalogue(), &probe, 2), "the line"));
}

TEST_CASE("a line that cannot hide behind tau steps is named, with a tau that hides it") {
  const JobConfig job = job_of_batch(40);
  FleetConfig far = fleet_from(kTwoSites);
  far.links[0].rtt_ms = 900;
  const Probe probe = probe_of(job, far, 0.1);
  CHECK(warns(make_plan(job, far, catalogue(), &probe, 2), "set sites.overlap_steps = 3"));
}

TEST_CASE("ten thousand devices are planned, and the batch with them") {
  JobConfig job = job_of_batch(80'000);
  FleetConfig fleet = fleet_from(kTwoSites);
  fleet.sites[0].devices.resize(5000, fleet.sites[0].devices[0]);
  fleet.sites[1].devices.resize(5000, fleet.sites[1].devices[0]);
  const Plan plan = make_plan(job, fleet, catalogue(), nullptr, 2);
  CHECK(plan.batch_sequences >= 72'000);
}

}  // namespace
}  // namespace pelago::plan
