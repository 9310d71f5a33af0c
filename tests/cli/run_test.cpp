// Whole runs with real processes: the same bits twice, the same bits after a kill, nothing left
// behind.
#include <doctest/doctest.h>

#include <functional>

#include "cli/small_run.h"

namespace pelago::testing {
namespace {

TEST_CASE("the same seed, plan and chips give the same losses bit for bit, and a resumed run too") {
  const Scratch scratch("same");
  prepare(scratch.path());
  const fs::path run_dir = scratch.path() / "runs" / "test";
  const Ended first = run(scratch.path(), train("one.toml"));
  INFO(first.err);
  REQUIRE(first.exit_code == 0);
  const auto curve = loss_curve(run_dir, "room");
  REQUIRE(curve.size() == 24);
  CHECK(std::stod(curve.back()) < std::stod(curve.front()));
  CHECK(fs::exists(run_dir / "model" / "model.safetensors"));

  // Killed between a checkpoint and the end; on a busy machine the run may be over first.
  const fs::path saved = run_dir / "sites" / "room" / "checkpoints" / "step-8" / "manifest.json";
  int exit_code = 0;
  for (int attempt = 0; attempt < 5 && exit_code == 0; ++attempt) {
    fs::remove_all(run_dir);
    Program second(scratch.path(), train("one.toml"));
    REQUIRE(
        second.wait_for([&] { return reached(run_dir, "room", 13) && fs::exists(saved); }, 120));
    ::kill(-second.pid(), SIGKILL);
    exit_code = second.wait().exit_code;
  }
  REQUIRE(exit_code == 128 + SIGKILL);  // the fault fired
  const Ended third = run(scratch.path(), train("one.toml", {"--resume"}));
  INFO(third.err);
  REQUIRE(third.exit_code == 0);
  CHECK(loss_curve(run_dir, "room") == curve);
}

TEST_CASE("plan --compare lays what every rank took beside what was foretold, and leaves nothing") {
  const Scratch scratch("compare");
  prepare(scratch.path());
  fs::create_directories(scratch.path() / "temporary");
  const ProgramOptions here{.environment = {"TMPDIR=" + (scratch.path() / "temporary").string()}};
  const std::vector<std::string> words = {"plan", "job.toml", "--fleet", "two.toml", "--no-probe"};
  std::vector<std::string> compare = words;
  compare.insert(compare.end(), {"--compare", "--steps", "2", "--json"});
  const Ended ended = run(scratch.path(), compare, here);
  INFO(ended.err);
  REQUIRE(ended.exit_code == 0);
  // An exchange every fourth step: whole rounds of them are measured.
  CHECK(contains(ended.out, "\"steps\": 4"));
  for (const std::string part : {"forward", "backward", "reduce", "optimizer", "line"}) {
    CHECK(contains(ended.out, "\"" + part + "\": {"));
  }
  CHECK(contains(ended.out, "\"site\": \"guizhou\""));
  CHECK(fs::is_empty(scratch.path() / "temporary"));
  CHECK_FALSE(fs::exists(scratch.path() / "runs"));
  CHECK(processes_in(scratch.path()).empty());

  std::vector<std::string> steps_alone = words;
  steps_alone.insert(steps_alone.end(), {"--steps", "2"});
  const Ended refused = run(scratch.path(), steps_alone, here);
  CHECK(refused.exit_code == 2);
  CHECK(contains(refused.err, "--steps is of --compare"));
}

TEST_CASE("a run trains on the chips that its plan names and says which stay free") {
  const Scratch scratch("free");
  prepare(scratch.path());
  const fs::path run_dir = scratch.path() / "runs" / "test";
  const auto num_devices = [&] {
    size_t count = 0;
    const auto plan = nlohmann::json::parse(read_all(run_dir / "plan.json"));
    for (const auto& site : plan["sites"]) {
      count += site["devices"].size();
    }
    return count;
  };
  // By the job's own word, one of two chips of a site.
  const Ended spared =
      run(scratch.path(),
          train("one.toml", {"--set", "plan.keep_free=[\"h20=1\"]", "--set", "train.steps=4"}));
  INFO(spared.err);
  REQUIRE(spared.exit_code == 0);
  CHECK(contains(spared.err, "left free by this plan: 1 of 1 H20 96GB in site room\n"));
  CHECK(num_devices() == 1);
  CHECK(loss_curve(run_dir, "room").size() == 4);

  // By a plan's, the whole of one site of two; and the run goes on with that plan.
  const Ended planned = run(scratch.path(),
                            {"plan",
                             "job.toml",
                             "--fleet",
                             "two.toml",
                             "--no-probe",
                             "--keep-free",
                             "910b=1",
                             "--set",
                             "train.steps=60",
                             "--out",
                             "plan.json"});
  INFO(planned.err);
  REQUIRE(planned.exit_code == 0);
  const std::vector<std::string> longer = {"--set", "train.steps=60"};
  std::vector<std::string> by_plan = longer;
  by_plan.insert(by_plan.end(), {"--fresh", "--plan", "plan.json"});
  Program first(scratch.path(), train("two.toml", by_plan));
  REQUIRE(first.wait_for([&] { return reached(run_dir, "lingang", 6); }, 120));
  first.signal(SIGTERM);
  const Ended stopped = first.wait();
  INFO(stopped.err);
  REQUIRE(stopped.exit_code == 0);
  CHECK(contains(stopped.err, "left free by this plan: 1 of 1 Ascend 910B"));
  REQUIRE(loss_curve(run_dir, "lingang").size() < 60);  // it did stop on the way
  std::vector<std::string> resume = longer;
  resume.emplace_back("--resume");
  const Ended ended = run(scratch.path(), train("two.toml", resume));
  INFO(ended.err);
  CHECK(ended.exit_code == 0);
  CHECK(num_devices() == 1);
  CHECK(loss_curve(run_dir, "lingang").size() == 60);
  CHECK(loss_curve(run_dir, "guizhou").empty());
}

TEST_CASE("sites probed each by itself are planned by all their probes together") {
  const Scratch scratch("site-probes");
  prepare(scratch.path());
  const auto probe = [&](const std::string& site, const std::string& out) {
    return run(scratch.path(),
               {"probe", "job.toml", "--fleet", "two.toml", "--site", site, "--out", out});
  };
  for (const std::string site : {"lingang", "guizhou"}) {
    const Ended ended = probe(site, site + ".json");
    INFO(ended.err);
    REQUIRE(ended.exit_code == 0);
    const auto json = nlohmann::json::parse(read_all(scratch.path() / (site + ".json")));
    REQUIRE(json["devices"].size() == 1);
    CHECK(json["devices"].begin().key().starts_with(site + "/emulated:"));
  }
  const Ended unknown = probe("lhasa", "lhasa.json");
  CHECK(unknown.exit_code == 2);
  CHECK(contains(unknown.err, "--site lhasa: two.toml has no such site"));
  CHECK_FALSE(fs::exists(scratch.path() / "lhasa.json"));

  const auto plan = [&](const std::string& first, const std::string& second) {
    return run(
        scratch.path(),
        {"plan", "--probe", first, "--probe", second, "job.toml", "--fleet", "two.toml", "--json"});
  };
  const Ended both = plan("lingang.json", "guizhou.json");
  INFO(both.err);
  REQUIRE(both.exit_code == 0);
  const auto json = nlohmann::json::parse(both.out);
  for (const auto& site : json["sites"]) CHECK(site["devices"][0]["measured"] == true);
  const Ended twice = plan("lingang.json", "lingang.json");
  CHECK(twice.exit_code == 2);
  CHECK(contains(twice.err, "is in a --probe before it too"));
}

TEST_CASE("what fresh memory happens to hold decides nothing: other junk in it, the same losses") {
  const Scratch scratch("perturb");
  prepare(scratch.path());
  const fs::path run_dir = scratch.path() / "runs" / "test";
  std::vector<std::vector<std::string>> curves;
  for (const std::string junk : {"85", "170"}) {  // every byte 01010101, 10101010
    fs::remove_all(run_dir);
    const Ended ended =
        run(scratch.path(), train("two.toml"), {.environment = {"MALLOC_PERTURB_=" + junk}});
    INFO(ended.err);
    REQUIRE(ended.exit_code == 0);
    curves.push_back(loss_curve(run_dir, "lingang"));
    curves.push_back(loss_curve(run_dir, "guizhou"));
  }
  REQUIRE(curves[0].size() == 24);
  CHECK(curves[0] == curves[2]);
  CHECK(curves[1] == curves[3]);
}

TEST_CASE("SIGTERM saves a checkpoint and leaves, and a resumed run ends with the same losses") {
  const Scratch scratch("term");
  prepare(scratch.path());
  const fs::path run_dir = scratch.path() / "runs" / "test";
  REQUIRE(run(scratch.path(), train("two.toml")).exit_code == 0);
  const auto lingang = loss_curve(run_dir, "lingang");
  const auto guizhou = loss_curve(run_dir, "guizhou");
  REQUIRE(lingang.size() == 24);
  CHECK(fs::exists(run_dir / "model" / "model.safetensors"));

  Ended stopped;
  for (int attempt = 0; attempt < 5; ++attempt) {
    fs::remove_all(run_dir);
    Program second(scratch.path(), train("two.toml"));
    REQUIRE(second.wait_for([&] { return reached(run_dir, "lingang", 6); }, 120));
    second.signal(SIGTERM);
    stopped = second.wait();
    CHECK(stopped.exit_code == 0);
    if (loss_curve(run_dir, "lingang").size() < 24) break;  // else the run was over first
  }
  INFO(stopped.err);
  CHECK(stopped.err.find("--resume") != std::string::npos);
  REQUIRE(loss_curve(run_dir, "lingang").size() < 24);  // it did stop on the way
  const Ended third = run(scratch.path(), train("two.toml", {"--resume"}));
  INFO(third.err);
  REQUIRE(third.exit_code == 0);
  CHECK(loss_curve(run_dir, "lingang") == lingang);
  CHECK(loss_curve(run_dir, "guizhou") == guizhou);
  CHECK(processes_in(scratch.path()).empty());
}

/// Kills guizhou's agent in a run of so many steps. Whether it came back before the run was over: a
/// busy machine may take long to start it.
bool comes_back(const Scratch& scratch, size_t num_steps) {
  const fs::path run_dir = scratch.path() / "runs" / "test";
  fs::remove_all(run_dir);
  Program program(
      scratch.path(),
      train(
          "two.toml",
          {"--set", fmt::format("train.steps={}", num_steps), "--set", "emulation.slowdown=400"}));
  REQUIRE(program.wait_for([&] { return reached(run_dir, "guizhou", 20); }, 120));
  pid_t victim = 0;
  for (const pid_t pid : processes_in(scratch.path())) {
    const std::string line = read_all(fmt::format("/proc/{}/cmdline", pid));
    const bool is_agent = contains(line, std::string("agent\0--run-dir", 15));
    if (is_agent && contains(line, "guizhou")) victim = pid;
  }
  REQUIRE(victim != 0);
  ::kill(victim, SIGKILL);
  const size_t before = loss_curve(run_dir, "lingang").size();
  const Ended ended = program.wait();
  INFO(ended.err);
  CHECK(ended.exit_code == 0);
  CHECK(before < num_steps);  // it was killed on the way
  CHECK(loss_curve(run_dir, "lingang").size() == num_steps);
  CHECK(processes_in(scratch.path()).empty());
  return num_joins(run_dir, "guizhou") >= 2;
}

TEST_CASE("a site that is killed is left out, comes back, and the run ends") {
  const Scratch scratch("killed");
  prepare(scratch.path());
  CHECK((comes_back(scratch, 120) || comes_back(scratch, 480) || comes_back(scratch, 1920)));
}

TEST_CASE("a trained model generates the same text for the same seed and stops where it is told") {
  const Scratch scratch("generate");
  prepare(scratch.path());
  REQUIRE(run(scratch.path(), train("one.toml")).exit_code == 0);
  const std::vector<std::string> ask = {"generate",
                                        "runs/test/model",
                                        "--prompt",
                                        "static inline",
                                        "--max-tokens",
                                        "24",
                                        "--seed",
                                        "5"};
  const Ended once = run(scratch.path(), ask);
  INFO(once.err);
  REQUIRE(once.exit_code == 0);
  CHECK(once.out.rfind("static inline", 0) == 0);
  CHECK(run(scratch.path(), ask).out == once.out);
  auto stopping = ask;
  stopping.insert(stopping.end(), {"--stop", "n", "--json"});
  const auto json = nlohmann::json::parse(run(scratch.path(), stopping).out);
  CHECK(json["text"].get<std::string>().find('n') == std::string::npos);
  const Ended exported =
      run(scratch.path(), {"export", "runs/test", "--out", "folder", "--dtype", "f32"});
  INFO(exported.err);
  CHECK(exported.exit_code == 0);
  CHECK(nlohmann::json::parse(read_all(scratch.path() / "folder" / "config.json"))["model_type"] ==
        "qwen3");
  const Ended status = run(scratch.path(), {"status", "runs/test", "--json"});
  CHECK(nlohmann::json::parse(status.out)["steps"] == 24);
}

}  // namespace
}  // namespace pelago::testing
