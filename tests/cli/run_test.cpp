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
