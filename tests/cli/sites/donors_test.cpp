// A site that comes back fetches the state from the others while they train, and one of them dies.
#include <doctest/doctest.h>

#include <algorithm>

#include "cli/small_run.h"

namespace pelago::testing {
namespace {

/// The state of a model of 2.8 million parameters is 22 MB, half of which a site that comes back
/// has in its checkpoint: the rest takes two donors 11 s over these lines.
constexpr const char* kThinLines = R"(
[emulation]
slowdown = 2000
[[site]]
name = "a"
[[site.device]]
device = "emulated:a100"
[[site]]
name = "b"
[[site.device]]
device = "emulated:a100"
[[site]]
name = "c"
[[site.device]]
device = "emulated:a100"
[[link]]
between = ["a", "b"]
bandwidth_mbit_s = 4
rtt_ms = 20
emulate = true
[[link]]
between = ["b", "c"]
bandwidth_mbit_s = 4
rtt_ms = 20
emulate = true
[[link]]
between = ["a", "c"]
bandwidth_mbit_s = 4
rtt_ms = 20
emulate = true
)";

struct Event {
  std::string name, site;
  nlohmann::json fields;
};

std::vector<Event> events_of(const fs::path& run_dir) {
  std::vector<Event> events;
  std::ifstream in(run_dir / "events.jsonl");
  for (std::string line; std::getline(in, line);) {
    const auto json = nlohmann::json::parse(line, nullptr, false);
    if (json.is_discarded()) continue;
    events.push_back({json.value("event", ""), json.value("site", ""), json});
  }
  return events;
}

/// The nth such event; null if it has not come.
const Event* find(const std::vector<Event>& events,
                  const std::string& name,
                  const std::string& site,
                  int nth = 1) {
  for (const Event& event : events) {
    if (event.name == name && event.site == site && --nth == 0) return &event;
  }
  return nullptr;
}

/// Whether this donor has given a leaf to c.
bool has_given(const std::vector<Event>& events, const std::string& donor) {
  return std::any_of(events.begin(), events.end(), [&](const Event& event) {
    return event.name == "catching_up" && event.site == "c" &&
           event.fields["donors"].contains(donor);
  });
}

pid_t agent_of(const fs::path& folder, const std::string& site) {
  for (const pid_t pid : processes_in(folder)) {
    const std::string line = read_all(fmt::format("/proc/{}/cmdline", pid));
    if (line.find("/tokens/" + site + ".token") != std::string::npos) return pid;
  }
  return 0;
}

TEST_CASE("a donor that is killed while a site fetches from it is done without") {
  const Scratch scratch("donors");
  prepare(scratch.path());
  write_all(scratch.path() / "three.toml", kThinLines);
  const fs::path run_dir = scratch.path() / "runs" / "test";
  Program program(scratch.path(),
                  train("three.toml",
                        {"--set",
                         "model.hidden_size=256",
                         "--set",
                         "model.intermediate_size=1024",
                         "--set",
                         "model.num_hidden_layers=2",
                         "--set",
                         "train.steps=400",
                         "--set",
                         "train.batch_sequences=12",
                         "--set",
                         "sites.grace_s=3",
                         "--set",  // so that a site which has just come back has one when it stops
                         "train.checkpoint_every_steps=4",
                         "--set",
                         "train.eval_every_steps=0"}));
  REQUIRE(program.wait_for([&] { return reached(run_dir, "c", 12); }, 120));
  const auto kill_agent = [&](const std::string& site) {
    const pid_t agent = agent_of(scratch.path(), site);
    REQUIRE(agent > 0);
    ::kill(agent, SIGKILL);
  };
  const auto has_come = [&](const char* name, const char* site, int nth = 1) {
    return [&run_dir, name, site, nth] {
      return find(events_of(run_dir), name, site, nth) != nullptr;
    };
  };
  kill_agent("c");
  REQUIRE(program.wait_for(has_come("site_joined", "c", 2), 120));
  REQUIRE(program.wait_for([&] { return has_given(events_of(run_dir), "a"); }, 120));
  kill_agent("a");
  REQUIRE_FALSE(has_come("caught_up", "c")());  // it died on the way
  REQUIRE(program.wait_for(has_come("caught_up", "c"), 120));
  REQUIRE(program.wait_for(has_come("caught_up", "a"), 120));  // the other joiner of the two
  program.signal(SIGTERM);
  const Ended ended = program.wait();
  INFO(ended.err);
  CHECK(ended.exit_code == 0);
  CHECK(processes_in(scratch.path()).empty());
  const std::vector<Event> events = events_of(run_dir);
  CHECK(find(events, "hash_differs", "c") == nullptr);
  const nlohmann::json caught_up = find(events, "caught_up", "c")->fields;
  CHECK(caught_up["leaves_refused"] == 0);
  CHECK(caught_up["donors"].contains("b"));
}

}  // namespace
}  // namespace pelago::testing
