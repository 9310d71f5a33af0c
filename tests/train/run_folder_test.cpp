#include "train/run_folder.h"

#include <doctest/doctest.h>

#include <nlohmann/json.hpp>
#include <sstream>

#include "base/files.h"
#include "chips/catalogue.h"
#include "train/scratch_folder.h"

namespace pelago::train {
namespace {

namespace fs = std::filesystem;

struct Setup {
  explicit Setup(const fs::path& dir, const std::string& job_more = "", int num_devices = 1) {
    write_file(dir / "job.toml.in",
               "name = \"test\"\nruns_dir = \"" + (dir / "runs").string() +
                   "\"\n[data]\ndir = \"corpus\"\n" + job_more);
    std::string devices;
    for (int i = 0; i < num_devices; ++i) devices += "[[site.device]]\ndevice = \"cpu\"\n";
    write_file(dir / "fleet.toml.in", "[[site]]\nname = \"room\"\n" + devices);
    job = plan::read_job(dir / "job.toml.in", {});
    fleet = plan::read_fleet(dir / "fleet.toml.in", chips::Catalogue::built_in());
  }
  plan::JobConfig job;
  plan::FleetConfig fleet;
};

TEST_CASE("an existing run is neither overwritten nor mixed up without being told") {
  const ScratchFolder scratch("run-exists");
  const Setup setup(scratch.path());
  const RunFolder run = RunFolder::open(setup.job, setup.fleet, RunStart::kNew);
  CHECK(fs::is_directory(run.site_dir("room") / "checkpoints"));
  CHECK_THROWS_AS(RunFolder::open(setup.job, setup.fleet, RunStart::kNew), Failure);
  write_file(run.path() / "metrics.jsonl", "old\n");
  CHECK_NOTHROW(RunFolder::open(setup.job, setup.fleet, RunStart::kResume));
  CHECK(fs::exists(run.path() / "metrics.jsonl"));
  CHECK_NOTHROW(RunFolder::open(setup.job, setup.fleet, RunStart::kFresh));
  CHECK_FALSE(fs::exists(run.path() / "metrics.jsonl"));
}

TEST_CASE("--resume needs a run, and --fresh deletes nothing but a run") {
  const ScratchFolder scratch("run-absent");
  const Setup setup(scratch.path());
  CHECK_THROWS_AS(RunFolder::open(setup.job, setup.fleet, RunStart::kResume), Failure);
  const fs::path precious = scratch.path() / "runs" / "test" / "thesis.txt";
  fs::create_directories(precious.parent_path());
  write_file(precious, "ten years");
  CHECK_THROWS_AS(RunFolder::open(setup.job, setup.fleet, RunStart::kFresh), Failure);
  CHECK(fs::exists(precious));
}

TEST_CASE("a run is resumed only with its own model, data and fleet, and the difference is named") {
  const ScratchFolder scratch("run-other");
  const Setup setup(scratch.path());
  RunFolder::open(setup.job, setup.fleet, RunStart::kNew);
  const auto message_of = [](const Setup& other) -> std::string {
    try {
      RunFolder::open(other.job, other.fleet, RunStart::kResume);
    } catch (const Failure& failure) {
      CHECK(failure.exit_code() == kExitUsage);
      return failure.what();
    }
    return "";
  };
  const Setup shorter(scratch.path(), "sequence_length = 128\n");
  CHECK(message_of(shorter).find("data.sequence_length is 256 in this run and 128") !=
        std::string::npos);
  const Setup smaller(scratch.path(), "[model]\npreset = \"1m\"\n");
  CHECK(message_of(smaller).find(": model.") != std::string::npos);
  const Setup wider(scratch.path(), "", 2);
  CHECK(message_of(wider).find("site room with cpu, cpu") != std::string::npos);
  const Setup muon(scratch.path(), "[train]\noptimizer = \"muon\"\n");
  CHECK(message_of(muon).find("train.optimizer is adamw in this run and muon in the job given") !=
        std::string::npos);
  const Setup faster(scratch.path(), "[train]\nlr = 1e-3\n");
  CHECK(message_of(faster).empty());  // how to train may change
}

TEST_CASE("what is recorded is one JSON object a line, with its time") {
  const ScratchFolder scratch("run-records");
  const Setup setup(scratch.path());
  const RunFolder run = RunFolder::open(setup.job, setup.fleet, RunStart::kNew);
  run.record_event("ready", R"({"site":"room"})");
  run.record_event("bare", "{}");
  StepReport report;
  report.site = "room";
  report.step = 3;
  run.record_step(report);
  run.record_evaluation({.site = "room", .step = 3, .loss = 1, .bits_per_byte = 2, .tokens = 9});
  std::istringstream events(read_text_file(run.path() / "events.jsonl"));
  std::string line;
  std::getline(events, line);
  const auto event = nlohmann::json::parse(line);
  CHECK(event.at("event") == "ready");
  CHECK(event.at("site") == "room");
  CHECK(event.at("time").get<double>() > 1.7e9);
  std::istringstream metrics(read_text_file(run.path() / "metrics.jsonl"));
  std::getline(metrics, line);
  CHECK(nlohmann::json::parse(line).at("kind") == "step");
  CHECK(step_report_from_json(line).step == 3);
  std::getline(metrics, line);
  CHECK(nlohmann::json::parse(line).at("kind") == "evaluation");
  CHECK(evaluation_report_from_json(line).bits_per_byte == 2);
}

}  // namespace
}  // namespace pelago::train
