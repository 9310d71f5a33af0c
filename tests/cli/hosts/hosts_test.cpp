// Sites that people start by hand, each in a folder of its own as on a host of its own: a
// coordinator, join tokens, and nothing shared but a port.
#include <doctest/doctest.h>

#include <memory>

#include "cli/small_run.h"

namespace pelago::testing {
namespace {

/// prepare()'s folder, with the dataset of two more "hosts" in it.
class Hosts {
 public:
  explicit Hosts(const std::string& name) : scratch_(name) {
    prepare(scratch_.path());
    for (const char* host : {"east", "west"}) fs::create_directories(path(host));
  }

  const fs::path& center() const { return scratch_.path(); }
  fs::path path(const std::string& host) const { return scratch_.path() / host; }
  fs::path run_dir() const { return center() / "runs" / "test"; }
  fs::path token(const std::string& site) const { return run_dir() / "tokens" / (site + ".token"); }

  std::unique_ptr<Program> coordinator(const std::vector<std::string>& more = {}) const {
    std::vector<std::string> arguments = {
        "coordinator", "job.toml", "--fleet", "two.toml", "--listen", "127.0.0.1:0"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return std::make_unique<Program>(center(), arguments);
  }

  /// Where the coordinator says that it waits.
  static std::string address_of(Program& coordinator) {
    const std::string before = "sites at ";
    const auto said = [&] { return coordinator.err_so_far().find(before) != std::string::npos; };
    REQUIRE(coordinator.wait_for(said, 120));
    const std::string words = coordinator.err_so_far();
    const size_t begin = words.find(before) + before.size();
    return words.substr(begin, words.find(';', begin) - begin);
  }

  std::vector<std::string> agent(const std::string& site, const std::string& address) const {
    return {"agent", "--join", address, "--token", token(site), "--data", center() / "data"};
  }

 private:
  Scratch scratch_;
};

TEST_CASE("two agents started by hand in folders of their own end as `train` does, bit for bit") {
  const Hosts hosts("hosts");
  REQUIRE(run(hosts.center(), train("two.toml")).exit_code == 0);
  const auto lingang = loss_curve(hosts.run_dir(), "lingang");
  const auto guizhou = loss_curve(hosts.run_dir(), "guizhou");
  const std::string model = read_all(hosts.run_dir() / "model" / "model.safetensors");
  fs::remove_all(hosts.run_dir());

  const auto coordinator = hosts.coordinator();
  const std::string address = Hosts::address_of(*coordinator);
  Program east(hosts.path("east"), hosts.agent("lingang", address));
  Program west(hosts.path("west"), hosts.agent("guizhou", address));
  const Ended at_center = coordinator->wait(), at_east = east.wait(), at_west = west.wait();
  INFO(at_center.err << at_east.err << at_west.err);
  REQUIRE(at_center.exit_code == 0);
  REQUIRE(at_east.exit_code == 0);
  REQUIRE(at_west.exit_code == 0);
  CHECK(loss_curve(hosts.run_dir(), "lingang") == lingang);
  CHECK(loss_curve(hosts.run_dir(), "guizhou") == guizhou);
  CHECK(processes_in(hosts.center()).empty());
  CHECK_FALSE(fs::exists(hosts.path("east") / "runs" / "test" / "certs" / "ca.key"));
  CHECK_FALSE(fs::exists(hosts.path("east") / "runs" / "test" / "certs" / "guizhou.pem"));

  for (const char* host : {"east", "west"}) {  // each host has the whole model
    const Ended exported = run(hosts.path(host), {"export", "runs/test", "--out", "model"});
    INFO(exported.err);
    REQUIRE(exported.exit_code == 0);
    CHECK((read_all(hosts.path(host) / "model" / "model.safetensors") == model));
  }
}

/// Kills guizhou in a run of so many steps and starts it again. Whether it was back before the run
/// was over: a busy machine may take long to start it.
bool comes_back_by_hand(size_t num_steps) {
  const Hosts hosts("hosts-back");
  const auto coordinator = hosts.coordinator(
      {"--set", fmt::format("train.steps={}", num_steps), "--set", "emulation.slowdown=400"});
  const std::string address = Hosts::address_of(*coordinator);
  Program east(hosts.path("east"), hosts.agent("lingang", address));
  auto west = std::make_unique<Program>(hosts.path("west"), hosts.agent("guizhou", address));
  REQUIRE(coordinator->wait_for([&] { return reached(hosts.run_dir(), "guizhou", 20); }, 120));
  ::kill(-west->pid(), SIGKILL);
  REQUIRE(west->wait().exit_code == 128 + SIGKILL);
  REQUIRE(loss_curve(hosts.run_dir(), "lingang").size() < num_steps);  // the fault fired on the way
  // The dataset's place is remembered.
  Program again(hosts.path("west"),
                {"agent", "--join", address, "--token", hosts.token("guizhou")});
  const Ended at_center = coordinator->wait();
  const Ended at_west = again.wait();
  INFO(at_center.err << at_west.err);
  CHECK(at_center.exit_code == 0);
  CHECK(east.wait().exit_code == 0);
  if (num_joins(hosts.run_dir(), "guizhou") < 2) return false;
  CHECK(at_west.exit_code == 0);
  CHECK(loss_curve(hosts.run_dir(), "guizhou").size() == num_steps);
  return true;
}

TEST_CASE("a site that is killed comes back with the same token, and the run ends") {
  CHECK((comes_back_by_hand(120) || comes_back_by_hand(480) || comes_back_by_hand(1920)));
}

TEST_CASE("a token that was used, has expired or is of another run is refused with one line") {
  const Hosts hosts("hosts-tokens");
  const auto coordinator = hosts.coordinator();
  const std::string address = Hosts::address_of(*coordinator);
  const auto refused = [&](const std::string& host, const std::vector<std::string>& arguments) {
    const Ended ended = run(hosts.path(host), arguments);
    INFO(ended.err);
    CHECK(ended.exit_code == 2);
    CHECK(std::count(ended.err.begin(), ended.err.end(), '\n') == 1);
    return ended.err;
  };
  // One agent waits for the other site, its token is used.
  Program east(hosts.path("east"), hosts.agent("lingang", address));
  REQUIRE(east.wait_for(
      [&] { return fs::exists(hosts.path("east") / "runs" / "test" / "certs" / "lingang.pem"); },
      120));
  CHECK(contains(refused("west", hosts.agent("lingang", address)), "was used by another"));
  fs::remove_all(hosts.path("west") / "runs");

  const std::string good = read_all(hosts.token("guizhou"));
  auto token = nlohmann::json::parse(good);
  token["secret"] = std::string(64, '0');
  write_all(hosts.token("guizhou"), token.dump());
  CHECK(contains(refused("west", hosts.agent("guizhou", address)), "secret is wrong"));
  token["id"] = "no such token";
  write_all(hosts.token("guizhou"), token.dump());
  CHECK(contains(refused("west", hosts.agent("guizhou", address)), "not of this run"));
  write_all(hosts.token("guizhou"), good.substr(0, good.size() / 2));
  CHECK(contains(refused("west", hosts.agent("guizhou", address)), "not a join token"));

  const Ended expired =
      run(hosts.center(), {"certs", "--run", "runs/test", "--token", "guizhou", "--hours", "1e-9"});
  REQUIRE(expired.exit_code == 0);
  CHECK(contains(refused("west", hosts.agent("guizhou", address)), "expired"));

  // A coordinator of another job: its authority is not the token's.
  auto stranger = nlohmann::json::parse(read_all(hosts.token("guizhou")));
  REQUIRE(run(hosts.center(), {"certs", "--out", "other", "--sites", "guizhou"}).exit_code == 0);
  stranger["authority"] = read_all(hosts.center() / "other" / "ca.pem");
  write_all(hosts.token("guizhou"), stranger.dump());
  fs::remove_all(hosts.path("west") / "runs");
  CHECK(contains(refused("west", hosts.agent("guizhou", address)), "is of another job"));
  fs::remove_all(hosts.path("west") / "runs");

  // The one that was admitted meanwhile is untouched: with a good token the run goes on to its end.
  REQUIRE(run(hosts.center(), {"certs", "--run", "runs/test", "--token", "guizhou"}).exit_code ==
          0);
  Program west(hosts.path("west"), hosts.agent("guizhou", address));
  const Ended at_center = coordinator->wait();
  INFO(at_center.err);
  CHECK(at_center.exit_code == 0);
  CHECK(east.wait().exit_code == 0);
  CHECK(west.wait().exit_code == 0);
}

TEST_CASE("certificates of another job, expired ones and none are refused with one line") {
  const Hosts hosts("hosts-certs");
  const auto coordinator = hosts.coordinator();
  const std::string address = Hosts::address_of(*coordinator);
  const fs::path folder = hosts.path("west") / "run";
  fs::create_directories(folder);
  fs::copy(hosts.run_dir() / "job.toml", folder / "job.toml");
  fs::copy(hosts.run_dir() / "plan.json", folder / "plan.json");
  const auto refusal = [&](const fs::path& certs) {
    const Ended ended = run(hosts.center(),
                            {"agent",
                             "--coordinator",
                             address,
                             "--site",
                             "guizhou",
                             "--certs",
                             certs,
                             "--run-dir",
                             folder});
    INFO(ended.err);
    CHECK(ended.exit_code == 2);
    CHECK(std::count(ended.err.begin(), ended.err.end(), '\n') == 1);
    return ended.err;
  };
  const auto make = [&](const fs::path& certs, const std::vector<std::string>& more) {
    std::vector<std::string> arguments = {"certs", "--out", certs, "--sites", "guizhou"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    REQUIRE(run(hosts.center(), arguments).exit_code == 0);
  };
  make(hosts.center() / "other", {});
  CHECK(contains(refusal(hosts.center() / "other"), "another job"));
  const fs::path certs = hosts.run_dir() / "certs";
  make(certs, {"--days", "0"});
  CHECK(contains(refusal(certs), "has expired"));
  fs::remove(certs / "guizhou.pem");
  CHECK(contains(refusal(certs), "pelago certs"));
  // An old certificate with the right authority's name: the coordinator is who finds it out.
  fs::copy(hosts.center() / "other" / "guizhou.pem", certs / "guizhou.pem");
  fs::copy(hosts.center() / "other" / "guizhou.key",
           certs / "guizhou.key",
           fs::copy_options::overwrite_existing);
  CHECK(contains(refusal(certs), "another authority"));
  coordinator->signal(SIGTERM);
  CHECK(coordinator->wait().exit_code == 0);  // it had waited on, untouched
}

}  // namespace
}  // namespace pelago::testing
