// A site that becomes slower in the middle of a run: the others take over a part of its share.
#include <doctest/doctest.h>

#include "cli/small_run.h"

namespace pelago::testing {
namespace {

// From its three-thousandth operator on, at step 20 or so, guizhou takes three times as long.
constexpr const char* kOneSlows = R"(
[emulation]
slowdown = 250
[[site]]
name = "lingang"
[[site.device]]
device = "emulated:a100"
[[site]]
name = "guizhou"
[[site.device]]
device = "emulated:a100"
faults = ["slow=3@op=3000"]
[[link]]
between = ["lingang", "guizhou"]
bandwidth_mbit_s = 200
rtt_ms = 5
emulate = true
)";

TEST_CASE("a site that becomes slower gets a smaller share, and every token stands in the ledger") {
  const Scratch scratch("unequal");
  prepare(scratch.path());
  write_all(scratch.path() / "slows.toml", kOneSlows);
  const Ended ended = run(scratch.path(),
                          train("slows.toml",
                                {"--set",
                                 "train.steps=48",
                                 "--set",
                                 "train.batch_sequences=16",
                                 "--set",
                                 "train.checkpoint_every_steps=0",
                                 "--set",
                                 "train.eval_every_steps=0",
                                 "--set",
                                 "sites.inner_steps=4"}));
  INFO(ended.err);
  REQUIRE(ended.exit_code == 0);
  const Ended shown = run(scratch.path(), {"status", "runs/test", "--json"});
  const auto status = nlohmann::json::parse(shown.out);
  INFO(status.dump());
  REQUIRE_FALSE(status["shares"].empty());
  const auto now = status["shares"]["sequences"].get<std::vector<int64_t>>();
  CHECK(now[0] > now[1]);
  const int64_t batch = now[0] + now[1];
  int64_t spent = 0;
  for (const auto& account : status["ledger"]) {
    spent += account["spent"].get<int64_t>();
    for (const char* what : {"partly", "repeated", "lost", "unread"}) {
      CAPTURE(what);
      CHECK(account[what].get<int64_t>() == 0);
    }
  }
  CHECK(spent == 48 * batch * 32);
  // What the workers really trained on is what the ledger says they did.
  std::map<int64_t, int64_t> tokens;  // by step
  std::istringstream lines(read_all(scratch.path() / "runs" / "test" / "metrics.jsonl"));
  for (std::string line; std::getline(lines, line);) {
    const auto step = nlohmann::json::parse(line);
    if (step.contains("ranks"))
      tokens[step["step"].get<int64_t>()] += step["tokens"].get<int64_t>();
  }
  CHECK(tokens.size() == 48);
  for (const auto& [step, counted] : tokens) {
    CAPTURE(step);
    CHECK(counted == batch * 32);
  }
  CHECK(contains(run(scratch.path(), {"status", "runs/test"}).out, "shares from data step"));
}

}  // namespace
}  // namespace pelago::testing
