// A coordinator that dies: it is killed while nothing happens, in the midst of a commit, and twice
// in a row, and started again on its journal; or one of several that share an etcd takes over from
// it; or the etcd itself cannot decide anything for a while. The sites, started by hand, train on
// meanwhile, and the run ends with the bits of one in which nothing was killed.
#include <doctest/doctest.h>
#include <poll.h>
#include <sys/inotify.h>

#include <fstream>
#include <memory>
#include <set>

#include "cli/small_run.h"
#include "free_ports.h"
#include "sites/state/etcd_cluster.h"

namespace pelago::testing {
namespace {

double unix_now_s() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

/// Lines of a run's file in which `key` is `value`.
std::vector<nlohmann::json> lines(const fs::path& file,
                                  const std::string& key,
                                  const std::string& value) {
  std::vector<nlohmann::json> found;
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) {
    const auto json = nlohmann::json::parse(line, nullptr, false);
    if (!json.is_discarded() && json.value(key, "") == value) found.push_back(json);
  }
  return found;
}

/// Two sites whose exchanges leave time: 8 of 12 steps lie between a snapshot and its merge.
const std::vector<std::string> kSlow = {"--set",
                                        "train.steps=96",
                                        "--set",
                                        "sites.inner_steps=24",
                                        "--set",
                                        "sites.overlap_steps=8",
                                        "--set",
                                        "emulation.slowdown=400"};

/// A corpus, a job and two sites' folders; coordinators run where they are told.
class Sites {
 public:
  explicit Sites(const std::string& name) : scratch_(name) {
    prepare(scratch_.path());
    for (const char* folder : {"east", "west", "first", "second"})
      fs::create_directories(at(folder));
    for (const int port : free_ports(2)) {
      addresses_.push_back(fmt::format("127.0.0.1:{}", port));
    }
  }
  fs::path at(const std::string& folder) const { return scratch_.path() / folder; }
  fs::path run_dir(const std::string& folder) const { return at(folder) / "runs" / "test"; }
  const std::string& address(size_t idx) const { return addresses_[idx]; }
  std::string both() const { return address(0) + "," + address(1); }

  std::vector<std::string> job(const std::string& command,
                               const std::vector<std::string>& more) const {
    std::vector<std::string> arguments = {command,
                                          at("job.toml"),
                                          "--fleet",
                                          at("two.toml"),
                                          "--set",
                                          fmt::format("data.dir={}", at("data").string())};
    arguments.insert(arguments.end(), kSlow.begin(), kSlow.end());
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  }
  std::unique_ptr<Program> coordinator(const std::string& folder,
                                       size_t address_idx,
                                       const std::vector<std::string>& more = {}) const {
    std::vector<std::string> arguments = job("coordinator", {"--listen", address(address_idx)});
    arguments.insert(arguments.end(), more.begin(), more.end());
    return std::make_unique<Program>(at(folder), arguments);
  }
  std::unique_ptr<Program> agent(const std::string& folder,
                                 const std::string& site,
                                 const std::string& join) const {
    const fs::path token = run_dir("first") / "tokens" / (site + ".token");
    return std::make_unique<Program>(
        at(folder), std::vector<std::string>{"agent", "--join", join, "--token", token});
  }
  /// The model that a run without faults ends with: the same in every case, so trained once.
  const std::string& undisturbed() const {
    static std::string model;
    if (!model.empty()) return model;
    const Ended ended = run(at("first"), job("train", {"--no-probe"}));
    INFO(ended.err);
    REQUIRE(ended.exit_code == 0);
    model = read_all(run_dir("first") / "model" / "model.safetensors");
    REQUIRE_FALSE(model.empty());
    fs::remove_all(run_dir("first"));
    return model;
  }
  std::string model_at(const std::string& folder) const {
    const Ended exported = run(at(folder), {"export", "runs/test", "--out", "model"});
    INFO(exported.err);
    REQUIRE(exported.exit_code == 0);
    return read_all(at(folder) / "model" / "model.safetensors");
  }

 private:
  Scratch scratch_;
  std::vector<std::string> addresses_;
};

bool is_listening(const Program& coordinator) {
  return contains(coordinator.err_so_far(), "sites at ");
}

void kill_for_certain(Program& program) {
  ::kill(program.pid(), SIGKILL);
  CHECK(program.wait().exit_code == 128 + SIGKILL);
}

size_t num_commits(const fs::path& run_dir) {
  return lines(run_dir / "events.jsonl", "event", "commit").size();
}

/// Kills as soon as the journal is written to: after its decision, before or while it is durable,
/// most often before anyone has heard of it. False: nothing was written in time.
bool kill_in_commit(Program& coordinator, const fs::path& run_dir) {
  const int watch = ::inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
  ::inotify_add_watch(watch, (run_dir / "journal.sqlite-wal").c_str(), IN_MODIFY);
  const size_t before = num_commits(run_dir);
  const bool was_written = coordinator.wait_for(
      [&] {
        pollfd written{.fd = watch, .events = POLLIN, .revents = 0};  // wakes within microseconds
        return ::poll(&written, 1, 1000) > 0;
      },
      6);
  ::kill(coordinator.pid(), SIGKILL);
  ::close(watch);
  CHECK(coordinator.wait().exit_code == 128 + SIGKILL);
  MESSAGE("killed in a write of the journal; commits told of before and after it: "
          << before << " " << num_commits(run_dir));
  return was_written;
}

/// Steps of both sites that were done between two moments although nobody coordinated: reported
/// late, all at once, and newer than what had been reported before.
size_t steps_meanwhile(const fs::path& run_dir, double from_s, double until_s) {
  std::map<std::string, int> known;
  size_t num_new = 0;
  for (const auto& line : lines(run_dir / "metrics.jsonl", "kind", "step")) {
    const std::string site = line["site"];
    const int step = line["step"];
    const double time_s = line["time"];
    if (time_s > from_s && time_s < until_s && step > known[site]) ++num_new;
    known[site] = std::max(known[site], step);
  }
  return num_new;
}

TEST_CASE(
    "a coordinator killed idle, in mid-commit and twice in a row costs nothing but its time") {
  const Sites sites("coordinator");
  const std::string& expected = sites.undisturbed();
  const fs::path run_dir = sites.run_dir("first");
  auto coordinator = sites.coordinator("first", 0);
  REQUIRE(coordinator->wait_for([&] { return is_listening(*coordinator); }, 120));
  const auto east = sites.agent("east", "lingang", sites.address(0));
  const auto west = sites.agent("west", "guizhou", sites.address(0));
  const auto commits = [&](size_t count) {
    return coordinator->wait_for([&] { return num_commits(run_dir) >= count; }, 120);
  };
  double longest_s = 0;
  size_t meanwhile = 0;
  const auto start_again = [&] {
    const double begin_s = unix_now_s();
    coordinator = sites.coordinator("first", 0, {"--resume"});
    REQUIRE(coordinator->wait_for([&] { return is_listening(*coordinator); }, 120));
    longest_s = std::max(longest_s, unix_now_s() - begin_s);
  };

  REQUIRE(commits(1));
  kill_for_certain(*coordinator);  // right after a commit: the next is steps away
  const double killed_s = unix_now_s();
  start_again();
  REQUIRE(commits(2));
  meanwhile = steps_meanwhile(run_dir, killed_s, unix_now_s());

  REQUIRE(kill_in_commit(*coordinator, run_dir));
  start_again();
  REQUIRE(commits(4));

  kill_for_certain(*coordinator);
  start_again();
  kill_for_certain(*coordinator);
  start_again();

  const Ended at_center = coordinator->wait(), at_east = east->wait(), at_west = west->wait();
  INFO(at_center.err << at_east.err << at_west.err);
  REQUIRE(at_center.exit_code == 0);
  REQUIRE(at_east.exit_code == 0);
  REQUIRE(at_west.exit_code == 0);
  CHECK(meanwhile >= 2);
  CHECK((sites.model_at("east") == expected));
  CHECK((sites.model_at("west") == expected));
  std::set<int> exchanges;
  for (const auto& commit : lines(run_dir / "events.jsonl", "event", "commit")) {
    CHECK(exchanges.insert(commit["exchange"].get<int>()).second);  // told of once, if at all
  }
  double waited_s = 0;
  for (const auto& step : lines(run_dir / "metrics.jsonl", "kind", "step")) {
    waited_s = std::max(waited_s, step.value("wait_line_s", 0.0));
  }
  // A merge waits while nobody can commit it: two restarts in a row, 15 s on a quiet machine.
  CHECK(waited_s < 120);
  CHECK(processes_in(sites.at("first")).empty());
  MESSAGE("restart at most " << longest_s << " s, steps done meanwhile " << meanwhile
                             << ", longest wait of a step " << waited_s << " s");
}

TEST_CASE(
    "of two coordinators on one etcd the other takes over, and back, while etcd loses its head") {
  if (!EtcdCluster::is_installed()) {
    MESSAGE(EtcdCluster::kNotInstalled);
    return;
  }
  const Sites sites("take-over");
  const std::string& expected = sites.undisturbed();
  EtcdCluster etcd;
  const std::vector<std::string> state = {"--state", etcd.url("runs/test")};
  auto first = sites.coordinator("first", 0, state);
  REQUIRE(first->wait_for([&] { return is_listening(*first); }, 120));
  auto second = sites.coordinator("second", 1, state);
  REQUIRE(second->wait_for([&] { return contains(second->err_so_far(), "standing by: "); }, 120));
  const auto east = sites.agent("east", "lingang", sites.both());
  const auto west = sites.agent("west", "guizhou", sites.both());
  const auto commits = [&](Program& coordinator, const std::string& folder, size_t count) {
    return coordinator.wait_for([&] { return num_commits(sites.run_dir(folder)) >= count; }, 120);
  };

  REQUIRE(commits(*first, "first", 2));
  kill_for_certain(*first);
  const double killed_s = unix_now_s();
  REQUIRE(second->wait_for([&] { return is_listening(*second); }, 120));
  const double taken_over_s = unix_now_s() - killed_s;
  REQUIRE(commits(*second, "second", 1));

  CHECK(etcd.kill(etcd.wait_for_leader()) == SIGKILL);
  first = sites.coordinator("first", 0, state);
  REQUIRE(first->wait_for([&] { return contains(first->err_so_far(), "standing by: "); }, 120));
  REQUIRE(commits(*second, "second", 2));
  kill_for_certain(*second);

  const Ended at_center = first->wait(), at_east = east->wait(), at_west = west->wait();
  INFO(at_center.err << at_east.err << at_west.err);
  REQUIRE(at_center.exit_code == 0);
  REQUIRE(at_east.exit_code == 0);
  REQUIRE(at_west.exit_code == 0);
  CHECK((sites.model_at("east") == expected));
  CHECK((sites.model_at("west") == expected));
  // The lease of 3 s, etcd's own word, and the start: less than 8 s on a quiet machine.
  CHECK(taken_over_s < 60);
  MESSAGE("the second coordinates " << taken_over_s << " s after the first was killed");
}

TEST_CASE("while etcd has no quorum nothing is committed, and when it is back the run goes on") {
  if (!EtcdCluster::is_installed()) {
    MESSAGE(EtcdCluster::kNotInstalled);
    return;
  }
  const Sites sites("no-quorum");
  const std::string& expected = sites.undisturbed();
  EtcdCluster etcd;
  auto coordinator = sites.coordinator("first", 0, {"--state", etcd.url("runs/test")});
  REQUIRE(coordinator->wait_for([&] { return is_listening(*coordinator); }, 120));
  const auto east = sites.agent("east", "lingang", sites.address(0));
  const auto west = sites.agent("west", "guizhou", sites.address(0));
  const fs::path run_dir = sites.run_dir("first");
  REQUIRE(coordinator->wait_for([&] { return num_commits(run_dir) >= 2; }, 120));
  for (const int idx : {0, 1}) CHECK(etcd.kill(idx) == SIGKILL);
  const size_t before = num_commits(run_dir);
  // Longer than the lease of the seat: nobody can take it, and nobody has to give it up.
  coordinator->wait_for([] { return false; }, 6);
  CHECK(num_commits(run_dir) <= before + 1);  // one may have been decided already
  for (const int idx : {0, 1}) etcd.restart_if_dead(idx);

  const Ended at_center = coordinator->wait(), at_east = east->wait(), at_west = west->wait();
  INFO(at_center.err << at_east.err << at_west.err);
  REQUIRE(at_center.exit_code == 0);
  REQUIRE(at_east.exit_code == 0);
  REQUIRE(at_west.exit_code == 0);
  CHECK(num_commits(run_dir) > before + 1);
  CHECK((sites.model_at("east") == expected));
  CHECK((sites.model_at("west") == expected));
}

}  // namespace
}  // namespace pelago::testing
