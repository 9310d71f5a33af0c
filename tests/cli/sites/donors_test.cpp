// A site that comes back fetches the state from the others while they train, and one of them dies.
#include <doctest/doctest.h>

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

/// The place of the nth such event; events.size() if it has not come.
size_t place_of(const std::vector<Event>& events,
                const std::string& name,
                const std::string& site,
                int nth = 1) {
  size_t place = 0;
  while (place < events.size() &&
         !(events[place].name == name && events[place].site == site && --nth == 0)) {
    ++place;
  }
  return place;
}

pid_t agent_of(const fs::path& folder, const std::string& site) {
  for (const pid_t pid : processes_in(folder)) {
    const std::string line = read_all(fmt::format("/proc/{}/cmdline", pid));
    if (line.find("/tokens/" + site + ".token") != std::string::npos) return pid;
  }
  return 0;
}

/// Whether the donor died before it had given a leaf, or when all leaves had been given.
enum class Death { kTooSoon, kOnTheWay, kTooLate };

struct Killed {
  Death death;
  nlohmann::json caught_up;  // what c reported when it had all
};

/// Kills c, and a so long after c is back.
Killed kill_donor(const Scratch& scratch, double after_s) {
  const fs::path run_dir = scratch.path() / "runs" / "test";
  fs::remove_all(run_dir);
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
                         "--set",
                         "train.eval_every_steps=0"}));
  REQUIRE(program.wait_for([&] { return reached(run_dir, "c", 12); }, 120));
  const auto kill_agent = [&](const std::string& site) {
    const pid_t agent = agent_of(scratch.path(), site);
    REQUIRE(agent > 0);
    ::kill(agent, SIGKILL);
  };
  const auto has_come = [&](const char* name, const char* site, int nth) {
    return [&run_dir, name, site, nth] {
      const std::vector<Event> events = events_of(run_dir);
      return place_of(events, name, site, nth) < events.size();
    };
  };
  kill_agent("c");
  REQUIRE(program.wait_for(has_come("site_joined", "c", 2), 120));
  program.wait_for(has_come("caught_up", "c", 1), after_s);
  kill_agent("a");
  const bool was_on_the_way = !has_come("caught_up", "c", 1)();
  REQUIRE(program.wait_for(has_come("caught_up", "c", 1), 120));
  REQUIRE(program.wait_for(has_come("caught_up", "a", 1), 120));  // the other joiner of the two
  program.signal(SIGTERM);
  const Ended ended = program.wait();
  INFO(ended.err);
  // 130: a site that has not trained since it came had nothing to keep in a checkpoint.
  CHECK((ended.exit_code == 0 || ended.exit_code == 130));
  CHECK(processes_in(scratch.path()).empty());
  const std::vector<Event> events = events_of(run_dir);
  CHECK(place_of(events, "hash_differs", "c") == events.size());
  const nlohmann::json fields = events[place_of(events, "caught_up", "c")].fields;
  if (!was_on_the_way) return {.death = Death::kTooLate, .caught_up = fields};
  return {.death = fields["donors"].contains("a") ? Death::kOnTheWay : Death::kTooSoon,
          .caught_up = fields};
}

TEST_CASE("a donor that is killed while a site fetches from it is done without") {
  const Scratch scratch("donors");
  prepare(scratch.path());
  write_all(scratch.path() / "three.toml", kThinLines);
  // Of the 15 s some leaves have come after 10, not all. A busy machine begins later.
  double after_s = 10;
  Killed killed = kill_donor(scratch, after_s);
  for (int more = 0; more < 3 && killed.death != Death::kOnTheWay; ++more) {
    after_s *= killed.death == Death::kTooSoon ? 2 : 0.6;
    killed = kill_donor(scratch, after_s);
  }
  if (killed.death != Death::kOnTheWay) {
    MESSAGE("skipped: in four runs the donor died before it gave a leaf, or after the last");
    return;
  }
  CHECK(killed.caught_up["leaves_refused"] == 0);
  CHECK(killed.caught_up["donors"].contains("b"));
}

}  // namespace
}  // namespace pelago::testing
