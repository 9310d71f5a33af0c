// One coordinator takes over from another: what it says first, whom sites believe, and what is not
// said as long as it may be lost.
#include <doctest/doctest.h>
#include <unistd.h>

#include <filesystem>

#include "base/clock.h"
#include "sites/coordinator.h"
#include "sites/protocol/member.h"
#include "sites/transport/loopback.h"

namespace pelago::sites {
namespace {

RoundOptions options_at(const std::string& address) {
  RoundOptions options;
  options.sites = {"a", "b"};
  options.schedule = {.inner_steps = 8, .num_fragments = 2, .overlap_steps = 1, .num_steps = 40};
  options.address = address;
  return options;
}

Hello hello_of(const std::string& site) {
  Hello hello;
  hello.incarnation = 1;
  hello.address = site + ":1";
  return hello;
}

template <typename T>
std::vector<std::string> addressees(const RoundOutput& output) {
  std::vector<std::string> sites;
  for (const auto& [site, message] : output.messages) {
    if (std::holds_alternative<T>(message)) sites.push_back(site);
  }
  return sites;
}

TEST_CASE(
    "a coordinator that takes over calls the sites that the last one knew, until they answer") {
  DurableState state;
  RoundMachine last(options_at("first:1"));
  for (const char* site : {"a", "b"}) {
    for (const StateWrite& write : last.on_message(site, hello_of(site), 0).writes) {
      apply(write, state);
    }
  }
  for (const bool resume : {false, true}) {
    CAPTURE(resume);
    RoundOptions options = options_at("second:1");
    options.resume = resume;
    RoundMachine next(options, state);
    const RoundOutput first = next.on_tick(0);
    CHECK(addressees<Alive>(first) == std::vector<std::string>{"a", "b"});
    CHECK(std::get<Alive>(first.messages[0].second).address == "second:1");
    CHECK(std::get<Alive>(first.messages[0].second).term == 1);
    CHECK(addressees<Alive>(next.on_tick(0.5)).empty());  // once a heartbeat
    next.on_message("a", Heartbeat{.incarnation = 1}, 0.6);
    SiteStatus status;
    status.incarnation = status.sequence = 1;
    status.applied = {-1, -1};
    next.on_message("a", status, 0.7);
    CHECK(addressees<Alive>(next.on_tick(1.1)) == std::vector<std::string>{"b"});
  }
}

/// A site's side, and the last address that it was told to find the coordinator at.
class FollowingSite {
 public:
  explicit FollowingSite(std::vector<std::string> coordinators)
      : state_({0.0F, 0.0F}, {{.begin = 0, .end = 1}, {.begin = 1, .end = 2}}),
        member_(options(std::move(coordinators)), state_) {}
  void hear(int64_t term, const std::string& address, double now_s) {
    note(member_.on_message(kCoordinatorName, Alive{.term = term, .address = address}, now_s));
  }
  void pass(double now_s) { note(member_.on_tick(now_s)); }
  const std::string& coordinator() const { return coordinator_; }

 private:
  static MemberOptions options(std::vector<std::string> coordinators) {
    MemberOptions options;
    options.site = "a";
    options.schedule = {.inner_steps = 8, .num_fragments = 2, .overlap_steps = 1, .num_steps = 40};
    options.coordinators = std::move(coordinators);
    options.hello = hello_of("a");
    return options;
  }
  void note(const MemberActions& actions) {
    for (const MemberAction& action : actions) {
      const auto* known = std::get_if<KnowAddress>(&action);
      if (known != nullptr && known->site == kCoordinatorName) coordinator_ = known->address;
    }
  }

  GlobalState state_;
  Member member_;
  std::string coordinator_ = "first:1";
};

TEST_CASE(
    "a site follows the newest coordinator, and not one that was replaced and does not know") {
  FollowingSite site({});
  site.hear(1, "second:1", 0.1);
  CHECK(site.coordinator() == "second:1");
  site.hear(0, "first:1", 0.2);
  CHECK(site.coordinator() == "second:1");
  site.hear(2, "", 0.3);  // says nothing of where it is
  CHECK(site.coordinator() == "second:1");
  site.hear(2, "first:2", 0.4);
  CHECK(site.coordinator() == "first:2");
}

TEST_CASE("a site whose coordinator is silent seeks it at each address in turn") {
  FollowingSite site({"first:1", "second:1", "third:1"});
  site.pass(0);
  for (double now_s = 0.5; now_s < 7.9; now_s += 0.5) {
    site.pass(now_s);
    CHECK(site.coordinator() == "first:1");
  }
  site.pass(8.1);
  CHECK(site.coordinator() == "second:1");
  site.pass(8.6);
  CHECK(site.coordinator() == "second:1");
  site.pass(16.2);
  CHECK(site.coordinator() == "third:1");
  site.hear(1, "second:1", 16.3);
  for (double now_s = 16.5; now_s < 24.2; now_s += 0.5) site.pass(now_s);
  CHECK(site.coordinator() == "second:1");
}

template <typename T>
const T* done(const MemberActions& actions) {
  for (const MemberAction& action : actions) {
    if (const T* found = std::get_if<T>(&action)) return found;
  }
  return nullptr;
}

TEST_CASE("a site that waits for a commit that was taken back goes on from the one before it") {
  GlobalState state({0.0F, 0.0F}, {{.begin = 0, .end = 1}, {.begin = 1, .end = 2}});
  MemberOptions options;
  options.site = "a";
  options.schedule = {.inner_steps = 8, .num_fragments = 2, .overlap_steps = 1, .num_steps = 40};
  options.exchange.bits = 32;
  options.sequence_tokens = 1;
  options.hello = hello_of("a");
  Member member(options, state);
  const auto say = [&](const Message& message) {
    return member.on_message(kCoordinatorName, message, 1);
  };
  say(Welcome{.incarnation = 1, .donors = {}});
  member.on_workers_ready(1);
  say(AllowTraining{1});
  const std::vector<float> local = {1.0F};
  member.on_snapshot(0, local, 1);
  const std::vector<MemberShare> alone = {
      {.site = "a", .address = "a:1", .tokens = 4, .data_begin = 0, .data_end = 4}};
  say(Begin{.exchange = 0, .epoch = 1, .members = alone});
  REQUIRE(member.status().exchanges.size() == 1);
  const std::string hash = member.status().exchanges[0].hash;
  REQUIRE_FALSE(hash.empty());
  // It missed its own commit and hears of the next one of that fragment, which another site holds.
  const MemberActions missed = say(Commit{.exchange = 2,
                                          .epoch = 3,
                                          .members = {},
                                          .hash = "later",
                                          .donors = {{.site = "b", .address = "b:1"}}});
  REQUIRE(done<KnowAddress>(missed) != nullptr);
  // That site dies, and with it what it held; the commit before is the newest again.
  Commit newest{.exchange = 0, .epoch = 1, .members = alone, .hash = hash, .donors = {}};
  CHECK(done<GiveMerged>(say(newest)) == nullptr);  // it may only have come late
  newest.lost_epoch = 4;
  const MemberActions goes_on = say(newest);
  REQUIRE(done<GiveMerged>(goes_on) != nullptr);
  CHECK(done<GiveMerged>(goes_on)->exchange == 0);
}

TEST_CASE("sites whose every start died before a commit begin where the run began") {
  RoundMachine rounds(options_at("here:1"));
  const auto say = [&](const std::string& site, uint64_t incarnation, double now_s) {
    Hello hello = hello_of(site);
    hello.incarnation = incarnation;
    return rounds.on_message(site, hello, now_s);
  };
  const auto be_ready = [&](const std::string& site, uint64_t incarnation, double now_s) {
    SiteStatus status;
    status.incarnation = incarnation;
    status.sequence = 1;
    status.phase = SitePhase::kReady;
    status.applied = {-1, -1};
    return rounds.on_message(site, status, now_s);
  };
  for (const char* site : {"a", "b"}) say(site, 1, 0);
  for (const char* site : {"a", "b"}) be_ready(site, 1, 0);
  REQUIRE(rounds.phase() == RoundMachine::RunPhase::kTraining);
  for (double now_s = 0; now_s < 7; now_s += 0.5) rounds.on_tick(now_s);  // both fall silent
  for (const char* site : {"a", "b"}) {
    const RoundOutput output = say(site, 2, 7);
    REQUIRE(addressees<Welcome>(output) == std::vector<std::string>{site});
    CHECK(std::get<Welcome>(output.messages[0].second).mode == StartMode::kFresh);
  }
  for (double now_s = 7; now_s < 11; now_s += 0.5) rounds.on_tick(now_s);  // workers take a while
  CHECK_FALSE(rounds.failure());
  CHECK(addressees<AllowTraining>(be_ready("a", 2, 11)) == std::vector<std::string>{"a"});
}

/// A store that answers as it is told.
class ToldStore final : public StateStore {
 public:
  DurableState load() override { return state_; }
  Status write(const std::vector<StateWrite>& writes) override {
    if (refuses_with) return Error{*refuses_with, "told to"};
    for (const StateWrite& each : writes) apply(each, state_);
    return ok();
  }
  std::optional<ErrorCode> refuses_with;

 private:
  DurableState state_;
};

/// A Coordinator over a ToldStore, and two sites that only listen.
class ToldRun {
 public:
  ToldRun()
      : network_({}, clock_),
        transport_(network_.reopen_as(kCoordinatorName, kCoordinatorName)),
        coordinator_(options_at("here:1"), *transport_, store, journal_, clock_, {}) {
    for (const char* name : {"a", "b"}) {
      sites_[name] = network_.open(name);
      sites_[name]->set_address(kCoordinatorName, network_.address(kCoordinatorName));
    }
  }
  ~ToldRun() { std::filesystem::remove_all(path_.parent_path()); }

  void say(const std::string& site, const Message& message) {
    sites_[site]->send(kCoordinatorName, encode(site, message));
    pass(0.1);
  }
  void greet() {
    for (const char* name : {"a", "b"}) {
      Hello hello = hello_of(name);
      hello.address = network_.address(name);
      say(name, hello);
    }
  }
  void pass(double seconds) {
    for (double passed = 0; passed < seconds; passed += 0.05) {
      clock_.advance(0.05);
      coordinator_.poll(0);
    }
  }
  /// Whether the site has heard such a message since the last call.
  template <typename T>
  bool heard(const std::string& site) {
    bool found = false;
    while (const auto arrival = sites_[site]->receive(0)) {
      if (arrival->frame) found |= std::holds_alternative<T>(*decode(*arrival->frame));
    }
    return found;
  }
  const Coordinator& coordinator() const { return coordinator_; }

  ToldStore store;

 private:
  static std::filesystem::path folder() {
    const auto dir =
        std::filesystem::temp_directory_path() / fmt::format("pelago-take-over-{}", ::getpid());
    std::filesystem::remove_all(dir);
    std::filesystem::create_directories(dir);
    return dir;
  }

  ManualClock clock_;
  LoopbackNetwork network_;
  std::unique_ptr<Transport> transport_;
  std::filesystem::path path_ = folder() / "journal.sqlite";
  Journal journal_{path_};
  Coordinator coordinator_;
  std::map<std::string, std::unique_ptr<Transport>> sites_;
};

TEST_CASE("while the store is away nothing is decided, sites hear that the coordinator lives") {
  ToldRun run;
  run.pass(0.1);
  run.store.refuses_with = ErrorCode::kUnavailable;
  run.greet();
  run.pass(3);
  CHECK_FALSE(run.heard<Welcome>("a"));
  run.say("a", Heartbeat{.incarnation = 1});
  CHECK(run.heard<Alive>("a"));
  CHECK(run.store.load().count("run") == 0);

  run.store.refuses_with.reset();
  run.pass(1);
  CHECK(run.heard<Welcome>("a"));
  CHECK(run.heard<Welcome>("b"));
  CHECK(run.store.load().count("run") == 1);
}

TEST_CASE("a coordinator whose write is refused says nothing any more, not even that it lives") {
  ToldRun run;
  run.pass(0.1);
  run.store.refuses_with = ErrorCode::kRefused;
  run.greet();
  CHECK(run.coordinator().is_deposed());
  run.store.refuses_with.reset();
  run.say("a", Heartbeat{.incarnation = 1});
  run.pass(3);
  CHECK_FALSE(run.heard<Welcome>("a"));
  run.say("a", Heartbeat{.incarnation = 1});
  CHECK_FALSE(run.heard<Alive>("a"));
  CHECK(run.store.load().count("run") == 0);
}

}  // namespace
}  // namespace pelago::sites
