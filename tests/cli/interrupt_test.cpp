// Ctrl-C at any moment: nobody is left behind, nothing is half made, and the exit code tells work
// that was kept (0) from work that was not (130).
#include <doctest/doctest.h>

#include "cli/small_run.h"

namespace pelago::testing {
namespace {

constexpr int kInterrupted = 130;

void pause_ms(int milliseconds) {
  std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds));
}

TEST_CASE("Ctrl-C while a dataset is built leaves it absent or whole") {
  const Scratch scratch("stop-data");
  std::string text;
  for (int copy = 0; copy < 8; ++copy) {
    write_corpus(scratch.path());
    for (int file = 0; file < 60; ++file) {
      text += read_all(scratch.path() / "corpus" / fmt::format("part_{}.h", file));
      text += fmt::format("copy {} of {}\n", copy, file);
    }
    write_all(scratch.path() / "corpus" / fmt::format("long_{}.h", copy), text);
  }
  bool was_stopped = false;
  for (const int delay_ms : {10, 60, 120, 200, 300, 450}) {
    INFO(delay_ms);
    fs::remove_all(scratch.path() / "d");
    Program program(scratch.path(),
                    {"data", "build", "--from", "corpus", "--glob", "*.h", "--out", "d"});
    pause_ms(delay_ms);
    program.signal(SIGINT);
    const Ended ended = program.wait();
    INFO(ended.err);
    const bool is_whole = fs::exists(scratch.path() / "d" / "dataset.json");
    CHECK(ended.exit_code == (is_whole ? 0 : kInterrupted));
    CHECK(is_whole == fs::exists(scratch.path() / "d"));
    CHECK(half_made(scratch.path()).empty());
    was_stopped = was_stopped || !is_whole;
  }
  CHECK(was_stopped);
}

TEST_CASE("Ctrl-C while devices are measured ends the measuring and leaves nothing") {
  const Scratch scratch("stop-probe");
  prepare(scratch.path());
  fs::create_directories(scratch.path() / "tmp");
  const ProgramOptions own_tmp{.environment = {"TMPDIR=" + (scratch.path() / "tmp").string()}};
  for (const std::string command : {"probe", "plan", "train"}) {
    INFO(command);
    // Two devices in all, a few seconds each: the signal comes while the first is measured. On a
    // busy machine it may come later, and then says less.
    const auto stop = [&] {
      Program program(scratch.path(), {command, "job.toml", "--fleet", "two.toml"}, own_tmp);
      REQUIRE(program.wait_for(
          [&] { return contains(program.err_so_far(), "probing device=emulated:nvidia"); }, 120));
      program.signal(SIGINT);
      return program.wait();
    };
    Ended ended = stop();
    for (int more = 0; more < 4 && contains(ended.err, "probing device=emulated:huawei"); ++more) {
      CHECK(ended.exit_code == kInterrupted);
      ended = stop();
    }
    INFO(ended.err);
    CHECK(ended.exit_code == kInterrupted);
    CHECK_FALSE(contains(ended.err, "probing device=emulated:huawei"));
    CHECK(processes_in(scratch.path()).empty());
    CHECK(fs::is_empty(scratch.path() / "tmp"));
    CHECK_FALSE(fs::exists(scratch.path() / "probe.json"));
    CHECK_FALSE(fs::exists(scratch.path() / "runs" / "test"));  // it never began
  }
}

TEST_CASE(
    "Ctrl-C at any moment of a start leaves no process, and a run that can go on or is not there") {
  const Scratch scratch("stop-start");
  prepare(scratch.path());
  const fs::path run_dir = scratch.path() / "runs" / "test";
  for (const std::string fleet : {"one.toml", "two.toml"}) {
    for (const int delay_ms : {100, 600, 1500}) {
      INFO(fleet);
      INFO(delay_ms);
      fs::remove_all(run_dir);
      Program program(scratch.path(), train(fleet, {"--set", "emulation.slowdown=1000"}));
      pause_ms(delay_ms);
      program.signal(SIGINT);
      const Ended ended = program.wait();
      INFO(ended.err);
      CHECK((ended.exit_code == 0 || ended.exit_code == kInterrupted));
      CHECK(processes_in(scratch.path()).empty());
      CHECK(half_made(scratch.path()).empty());
      CHECK(contains(ended.err, "stopped with a checkpoint") == (ended.exit_code == 0));
      if (ended.exit_code != 0) continue;
      const Ended resumed = run(scratch.path(), train(fleet, {"--resume"}));
      INFO(resumed.err);
      CHECK(resumed.exit_code == 0);
    }
  }
}

/// Sends the second signal as soon as the first is answered by these words: two at once would count
/// as one. On a busy machine the run may have ended well before the second; then once more.
void check_that_two_end_it(const Scratch& scratch,
                           const std::string& fleet,
                           const std::string& site,
                           size_t num_processes,
                           const std::string& answer) {
  const fs::path run_dir = scratch.path() / "runs" / "test";
  Ended ended;
  for (int attempt = 0; attempt < 5; ++attempt) {
    fs::remove_all(run_dir);
    Program program(scratch.path(),
                    train(fleet, {"--set", "train.steps=400", "--set", "emulation.slowdown=4000"}));
    REQUIRE(program.wait_for([&] { return reached(run_dir, site, 2); }, 120));
    REQUIRE(processes_in(scratch.path()).size() >= num_processes);
    program.signal(SIGINT);
    REQUIRE(program.wait_for([&] { return contains(program.err_so_far(), answer); }, 120));
    program.signal(SIGINT);
    ended = program.wait();
    CHECK(processes_in(scratch.path()).empty());
    if (!(ended.exit_code == 0 && contains(ended.err, "stopped with a checkpoint"))) break;
  }
  INFO(ended.err);
  CHECK(ended.exit_code == kInterrupted);
}

TEST_CASE("Ctrl-C twice ends everything at once and leaves no process") {
  const Scratch scratch("interrupt");
  prepare(scratch.path());
  // The launcher, two agents, two workers.
  check_that_two_end_it(scratch, "two.toml", "lingang", 5, "stop requested");
}

TEST_CASE("Ctrl-C twice ends a site alone at once and leaves no process") {
  const Scratch scratch("stop-twice");
  prepare(scratch.path());
  check_that_two_end_it(scratch, "one.toml", "room", 1, "stopping");
}

/// The ledger's account of a site in a run's last summary, in sequences.
nlohmann::json account_of(const fs::path& run_dir, const std::string& site) {
  nlohmann::json account;
  std::ifstream events(run_dir / "events.jsonl");
  for (std::string line; std::getline(events, line);) {
    const auto json = nlohmann::json::parse(line, nullptr, false);
    if (json.is_discarded() || json.value("event", "") != "summary") continue;
    for (const auto& each : json["ledger"]) {
      if (each["site"] == site) account = each;
    }
  }
  return account;
}

pid_t agent_of(const fs::path& folder, const std::string& site) {
  for (const pid_t pid : processes_in(folder)) {
    const std::string line = read_all(fmt::format("/proc/{}/cmdline", pid));
    if (contains(line, "/tokens/" + site + ".token")) return pid;
  }
  return 0;
}

/// Kills guizhou's agent before the first checkpoint, and stops the run before the next one has
/// caught up.
Ended stop_without_guizhou(const fs::path& folder) {
  const fs::path run_dir = folder / "runs" / "test";
  Program program(folder,
                  train("two.toml",
                        {"--set",
                         "train.steps=60",
                         "--set",
                         "train.checkpoint_every_steps=1000",
                         "--set",
                         "sites.grace_s=2",
                         "--set",
                         "emulation.slowdown=2000"}));
  REQUIRE(program.wait_for([&] { return reached(run_dir, "guizhou", 6); }, 120));
  const pid_t first = agent_of(folder, "guizhou");
  REQUIRE(first > 0);
  ::kill(first, SIGKILL);
  pid_t next = 0;
  const auto is_back = [&] {
    next = agent_of(folder, "guizhou");
    return next > 0 && next != first;
  };
  REQUIRE(program.wait_for(is_back, 120));
  ::kill(next, SIGSTOP);  // it takes its time to catch up
  program.signal(SIGINT);
  const fs::path checkpoints = run_dir / "sites" / "lingang" / "checkpoints";
  const auto is_saved = [&] {
    return fs::exists(checkpoints) && !fs::is_empty(checkpoints) && half_made(checkpoints).empty();
  };
  CHECK(program.wait_for(is_saved, 120));
  ::kill(next, SIGCONT);
  return program.wait();
}

TEST_CASE("a stop while one site has no checkpoint yet keeps the others', and that site joins") {
  const Scratch scratch("stop-catching-up");
  prepare(scratch.path());
  const fs::path run_dir = scratch.path() / "runs" / "test";
  const Ended ended = stop_without_guizhou(scratch.path());
  INFO(ended.err);
  CHECK(ended.exit_code == 0);
  CHECK(contains(ended.err, "site guizhou had no checkpoint yet, and will join the others"));
  CHECK(contains(ended.err, "--resume"));
  const int64_t stopped_at = static_cast<int64_t>(loss_curve(run_dir, "lingang").size());
  REQUIRE(stopped_at < 60);
  const nlohmann::json before = account_of(run_dir, "guizhou");
  const auto curve = loss_curve(run_dir, "lingang");

  const Ended resumed = run(scratch.path(), train("two.toml", {"--resume"}));
  INFO(resumed.err);
  CHECK(resumed.exit_code == 0);
  CHECK(contains(resumed.err,
                 fmt::format("site without checkpoint site=guizhou step={}", stopped_at)));
  CHECK(contains(resumed.err, "caught up"));
  // Nothing is done again: the steps before the stop have the losses that they had.
  const auto whole = loss_curve(run_dir, "lingang");
  REQUIRE(whole.size() == 60);
  CHECK(std::equal(curve.begin(), curve.end(), whole.begin()));
  for (const char* site : {"lingang", "guizhou"}) {
    const nlohmann::json after = account_of(run_dir, site);
    CHECK(after["repeated"] == 0);
    CHECK(after["lost"] == 0);
  }
  CHECK(account_of(run_dir, "guizhou")["spent"] > before["spent"]);
  CHECK(processes_in(scratch.path()).empty());
}

TEST_CASE("Ctrl-C while a model is exported leaves it absent or whole") {
  const Scratch scratch("stop-export");
  prepare(scratch.path());
  REQUIRE(run(scratch.path(), train("one.toml", {"--set", "train.steps=2"})).exit_code == 0);
  for (const int delay_ms : {50, 150, 200, 250, 300, 350, 400, 500, 700}) {
    INFO(delay_ms);
    fs::remove_all(scratch.path() / "m");
    Program program(scratch.path(), {"export", "runs/test", "--out", "m"});
    pause_ms(delay_ms);
    program.signal(SIGINT);
    const Ended ended = program.wait();
    INFO(ended.err);
    const bool is_whole = fs::exists(scratch.path() / "m" / "tokenizer_config.json");
    CHECK((ended.exit_code == 0 || ended.exit_code == kInterrupted));
    CHECK((ended.exit_code != 0 || is_whole));
    CHECK(is_whole == fs::exists(scratch.path() / "m"));
    CHECK(contains(ended.err, "nothing was written") <= !is_whole);
    CHECK(half_made(scratch.path()).empty());
  }
}

}  // namespace
}  // namespace pelago::testing
