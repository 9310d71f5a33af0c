// The dashboard as a command, and beside a run: it starts, tells where, ends, and a run neither
// needs it nor notices it.
#include <doctest/doctest.h>

#include "cli/program.h"
#include "cli/small_run.h"

namespace pelago::testing {
namespace {

constexpr double kStartsWithin_s = 60;  // of a machine that runs other tests

/// "37123" of a dashboard that has said where it listens; empty if it never did.
std::string port_of(Program& dashboard) {
  const auto has_said = [&] { return dashboard.out_so_far().ends_with("\n"); };
  if (!dashboard.wait_for(has_said, kStartsWithin_s)) return "";
  const auto said = nlohmann::json::parse(dashboard.out_so_far(), nullptr, false);
  const std::string url = said.is_object() ? said.value("url", "") : "";
  const size_t colon = url.rfind(':');
  return colon == std::string::npos ? "" : url.substr(colon + 1, url.size() - colon - 2);
}

Program start_dashboard(const fs::path& folder) {
  return Program(folder, {"dashboard", "runs/test", "--port", "0", "--json"});
}

TEST_CASE("a dashboard ends by SIGTERM with exit code 0, and a second one cannot have its port") {
  const Scratch scratch("dashboard");
  write_all(scratch.path() / "runs/test/plan.json", "{}");
  Program dashboard = start_dashboard(scratch.path());
  const std::string port = port_of(dashboard);
  REQUIRE(!port.empty());
  const Ended second = run(scratch.path(), {"dashboard", "runs/test", "--port", port});
  CHECK(second.exit_code != 0);
  CHECK(contains(second.err, port));
  dashboard.signal(SIGTERM);
  CHECK(dashboard.wait().exit_code == 0);
  CHECK(std::distance(fs::directory_iterator(scratch.path() / "runs/test"),
                      fs::directory_iterator()) == 1);
}

TEST_CASE("a dashboard of no run is refused, and the run that was meant is named") {
  const Scratch scratch("no-dashboard");
  write_all(scratch.path() / "runs/two-sites/plan.json", "{}");
  const Ended ended = run(scratch.path(), {"dashboard", "runs/two-site"});
  CHECK(ended.exit_code == 2);
  CHECK(contains(ended.err, "runs/two-site: not a run folder"));
  CHECK(contains(ended.err, "did you mean runs/two-sites?"));
}

TEST_CASE("a run shows itself while it lasts; where it cannot, it goes on all the same") {
  const Scratch scratch("web");
  prepare(scratch.path());
  const Ended shown =
      run(scratch.path(), train("one.toml", {"--web", "0", "--set", "train.steps=4"}));
  CHECK(shown.exit_code == 0);
  CHECK(contains(shown.err, "\ndashboard: http://127.0.0.1:"));
  CHECK(processes_in(scratch.path()).empty());
  Program dashboard = start_dashboard(scratch.path());
  const std::string port = port_of(dashboard);
  const Ended hidden =
      run(scratch.path(), train("one.toml", {"--web", port, "--fresh", "--set", "train.steps=4"}));
  CHECK(hidden.exit_code == 0);
  CHECK(contains(hidden.err, "\nno dashboard ("));
  CHECK(contains(hidden.err, port));
  dashboard.signal(SIGTERM);
  CHECK(dashboard.wait().exit_code == 0);
}

}  // namespace
}  // namespace pelago::testing
