#include <doctest/doctest.h>

#include <algorithm>

#include "base/error.h"
#include "sites/process/plan_facts.h"
#include "sites/protocol/messages.h"
#include "sites/protocol/round/differences.h"
#include "sites/protocol/round_machine.h"

namespace pelago::sites {
namespace {

/// A coordinator of three sites that have all started, and what it said last.
class StartedRun {
 public:
  StartedRun() : rounds_(options()) {
    for (const char* site : kSites) say(site, hello());
    for (const char* site : kSites) say(site, status(site, SitePhase::kReady));
    for (const char* site : kSites) say(site, status(site, SitePhase::kTraining));
    REQUIRE(rounds_.phase() == RoundMachine::RunPhase::kTraining);
  }
  static RoundOptions options() {
    RoundOptions options;
    options.sites = {"a", "b", "c"};
    options.schedule = {.inner_steps = 8, .num_fragments = 2, .overlap_steps = 1, .num_steps = 40};
    options.grace_s = 10;
    options.heartbeat_s = 1;
    options.exchange_s = 30;
    return options;
  }
  static Hello hello() {
    Hello hello;
    hello.incarnation = 1;
    hello.plan_hash = "plan";
    return hello;
  }
  SiteStatus status(const std::string&, SitePhase phase) {
    SiteStatus status;
    status.incarnation = 1;
    status.sequence = ++sequence_;
    status.phase = phase;
    status.applied = {-1, -1};
    return status;
  }
  void say(const std::string& site, const Message& message) {
    last_ = rounds_.on_message(site, message, now_s_);
    note_epoch(last_);
  }
  void at_step(const std::string& site, int64_t step) {
    SiteStatus status = this->status(site, SitePhase::kTraining);
    status.completed_steps = step;
    say(site, status);
  }
  void ready(const std::string& site,
             int64_t epoch = -1,
             const std::string& hash = "",
             int64_t exchange = 0) {
    SiteStatus status = this->status(site, SitePhase::kTraining);
    status.completed_steps = 4 * exchange + 24;
    status.exchanges.push_back({.exchange = exchange,
                                .tokens = 100,
                                .data_begin = std::max<int64_t>(0, 4 * exchange - 4),
                                .data_end = 4 * exchange + 4,
                                .begun_epoch = epoch,
                                .hash = hash,
                                .missing = {}});
    say(site, status);
  }
  /// Lets time pass; the sites in `alive` send heartbeats.
  void wait(double seconds, const std::string& alive) {
    const auto keep = [&](RoundOutput output) {
      std::erase_if(output.messages,
                    [](const auto& sent) { return std::holds_alternative<Alive>(sent.second); });
      note_epoch(output);
      if (!output.messages.empty()) last_ = std::move(output);
    };
    for (double waited = 0; waited < seconds; waited += 0.5) {
      now_s_ += 0.5;
      for (const char site : alive) {
        keep(rounds_.on_message(std::string(1, site), Heartbeat{1}, now_s_));
      }
      keep(rounds_.on_tick(now_s_));
    }
  }
  template <typename T>
  const T* said() const {
    for (const auto& [site, message] : last_.messages) {
      if (const T* content = std::get_if<T>(&message)) return content;
    }
    return nullptr;
  }
  static std::string names(const std::vector<MemberShare>& members) {
    std::string names;
    for (const MemberShare& member : members) names += member.site;
    return names;
  }
  int64_t epoch() const { return epoch_; }
  double now_s() const { return now_s_; }
  RoundMachine& rounds() { return rounds_; }
  const RoundOutput& last() const { return last_; }

 private:
  void note_epoch(const RoundOutput& output) {
    for (const auto& [site, message] : output.messages) {
      if (const auto* begin = std::get_if<Begin>(&message)) epoch_ = begin->epoch;
    }
  }

  static constexpr const char* kSites[] = {"a", "b", "c"};
  RoundMachine rounds_;
  RoundOutput last_;
  int64_t sequence_ = 0, epoch_ = -1;
  double now_s_ = 0;
};

TEST_CASE("an exchange begins once all are ready, not before") {
  StartedRun run;
  run.ready("c");
  run.ready("a");
  CHECK(run.said<Begin>() == nullptr);
  run.ready("b");
  REQUIRE(run.said<Begin>() != nullptr);
  CHECK(StartedRun::names(run.said<Begin>()->members) == "abc");  // plan order, not that of arrival
}

TEST_CASE("a late site is waited for during the grace window and then left out") {
  StartedRun run;
  run.ready("a");
  run.ready("b");
  run.wait(9, "abc");
  CHECK(run.said<Begin>() == nullptr);
  run.wait(2, "abc");
  REQUIRE(run.said<Begin>() != nullptr);
  CHECK(StartedRun::names(run.said<Begin>()->members) == "ab");
}

TEST_CASE(
    "a site that stays behind for a round is told to start anew, one that catches up is not") {
  for (const bool catches_up : {false, true}) {
    StartedRun run;
    for (int64_t exchange = 0; exchange < 5; ++exchange) {
      const int64_t behind = catches_up ? 20 - 4 * exchange : 20;
      run.at_step("c", 4 * exchange + 24 - behind);
      for (const char* site : {"a", "b"}) run.ready(site, -1, "", exchange);
      run.wait(12, "abc");
      for (const char* site : {"a", "b"}) {
        run.ready(site, run.epoch(), "hash", exchange);
      }
    }
    INFO(catches_up);
    CHECK(run.rounds().status("c").has_value() == catches_up);
    CHECK(run.rounds().num_commits() == 5);
  }
}

TEST_CASE("a member that falls silent raises the epoch, and reports of the old one do not count") {
  StartedRun run;
  for (const char* site : {"a", "b", "c"}) run.ready(site);
  const int64_t epoch = run.said<Begin>()->epoch;
  run.wait(6, "ab");
  REQUIRE(run.said<Begin>() != nullptr);
  CHECK(run.said<Begin>()->epoch > epoch);
  CHECK(StartedRun::names(run.said<Begin>()->members) == "ab");
  run.ready("a", epoch, "hash");
  run.ready("b", epoch, "hash");
  CHECK(run.rounds().num_commits() == 0);
  CHECK(run.rounds().num_refused() == 2);
}

TEST_CASE("a commit is handed to the journal with the messages that tell of it, and only once") {
  StartedRun run;
  for (const char* site : {"a", "b", "c"}) run.ready(site);
  const int64_t epoch = run.said<Begin>()->epoch;
  run.ready("a", epoch, "hash");
  run.ready("b", epoch, "hash");
  CHECK(run.last().commits.empty());
  run.ready("c", epoch, "hash");
  REQUIRE(run.last().commits.size() == 1);
  CHECK(run.said<Commit>() != nullptr);
  run.ready("c", epoch, "hash");
  CHECK(run.last().commits.empty());
}

TEST_CASE("a site whose result differs is named and is no donor") {
  StartedRun run;
  for (const char* site : {"a", "b", "c"}) run.ready(site);
  const int64_t epoch = run.said<Begin>()->epoch;
  run.ready("a", epoch, "other");
  run.ready("b", epoch, "hash");
  run.ready("c", epoch, "hash");
  REQUIRE(run.said<Commit>() != nullptr);
  CHECK(run.said<Commit>()->hash == "hash");
  CHECK(run.said<Commit>()->donors.size() == 2);
  CHECK(run.rounds().num_differing() == 1);
}

TEST_CASE("a site that holds what was taken back since is told to start anew, and counts no more") {
  StartedRun run;
  for (const char* site : {"a", "b", "c"}) run.ready(site);
  const int64_t epoch = run.said<Begin>()->epoch;
  for (const char* site : {"a", "b", "c"}) run.ready(site, epoch, "hash");
  REQUIRE(run.rounds().num_commits() == 1);
  const auto holds = [&](const std::string& site, int64_t exchange, int64_t of_epoch) {
    SiteStatus status = run.status(site, SitePhase::kTraining);
    status.completed_steps = 30;
    status.applied[static_cast<size_t>(exchange)] = exchange;
    status.applied_epochs = {-1, -1};
    status.applied_epochs[static_cast<size_t>(exchange)] = of_epoch;
    run.say(site, status);
  };
  holds("a", 0, epoch);
  CHECK(run.said<Refused>() == nullptr);
  holds("a", 0, -1);  // of before the run was resumed: nobody can say
  CHECK(run.said<Refused>() == nullptr);
  holds("b", 0, epoch - 1);  // done again in another epoch
  REQUIRE(run.said<Refused>() != nullptr);
  CHECK(run.said<Refused>()->exit_code == kExitTryAgain);
  CHECK(run.last().events.front().first == "site_astray");
  holds("c", 1, epoch + 1);  // not done again yet
  CHECK(run.said<Refused>() != nullptr);
  for (const char* site : {"b", "c", "a"}) run.ready(site, -1, "", 1);
  REQUIRE(run.said<Begin>() != nullptr);
  CHECK(run.names(run.said<Begin>()->members) == "a");
}

TEST_CASE("a member that never holds the result is left out after the exchange's limit") {
  StartedRun run;
  for (const char* site : {"a", "b", "c"}) run.ready(site);
  const int64_t epoch = run.said<Begin>()->epoch;
  run.ready("a", epoch, "hash");
  run.ready("b", epoch, "hash");
  run.wait(31, "abc");
  REQUIRE(run.said<Begin>() != nullptr);
  CHECK(StartedRun::names(run.said<Begin>()->members) == "ab");
}

TEST_CASE("a site with another plan is refused, and told what differs") {
  StartedRun run;
  Hello hello = StartedRun::hello();
  hello.incarnation = 2;
  hello.plan_hash = "another";
  run.rounds().on_lost("b", run.now_s());
  run.say("b", hello);
  REQUIRE(run.said<Refused>() != nullptr);
  CHECK(run.said<Refused>()->reason.find("plan.json (another, not plan)") != std::string::npos);
  CHECK(run.said<Refused>()->exit_code == kExitUsage);
}

TEST_CASE("a site whose plan differs is told in which keys, and a long list is cut") {
  Hello mine = StartedRun::hello(), theirs = mine;
  CHECK(differences(mine, theirs).empty());
  mine.plan_hash = "another";
  mine.plan_facts = plan_facts(R"({"seed": 1, "exchange": {"inner_steps": 30, "bits": 4}})");
  theirs.plan_facts = plan_facts(R"({"seed": 1, "exchange": {"inner_steps": 24}, "steps": 9})");
  CHECK(
      differences(mine, theirs) ==
      "plan.json (exchange.bits 4, not none; exchange.inner_steps 30, not 24; steps none, not 9)");
  for (int i = 0; i < 20; ++i) mine.plan_facts[fmt::format("z{}", i)] = "1";
  CHECK(differences(mine, theirs).find("; 18 more)") != std::string::npos);
  theirs.plan_facts = mine.plan_facts;
  CHECK(differences(mine, theirs) == "plan.json (another, not plan)");
}

TEST_CASE("what of a plan is deep or long is named by its place, and compared by its hash") {
  const auto one = plan_facts(R"({"sites": [{"name": "a", "devices": [1, 2, 3]}]})");
  const auto other = plan_facts(R"({"sites": [{"name": "a", "devices": [1, 2, 4]}]})");
  REQUIRE(one.size() == 1);
  CHECK(one.begin()->first == "sites.0");
  CHECK(one != other);
  CHECK_THROWS_AS(plan_facts("[1"), Failure);
}

TEST_CASE("a greeting of another version is read, and refused by its version") {
  StartedRun run;
  run.rounds().on_lost("b", run.now_s());
  const Frame old{.from = "b",
                  .kind = encode("b", Hello{}).kind,
                  .head = R"({"incarnation": 2, "wire_version": 1, "plan_hash": "plan"})",
                  .payload = {}};
  Result<Message> hello = decode(old);
  REQUIRE(hello);
  run.say("b", *hello);
  REQUIRE(run.said<Refused>() != nullptr);
  CHECK(run.said<Refused>()->reason.find("wire version (1, not") != std::string::npos);
}

TEST_CASE("a site that starts anew joins at the next exchange not yet begun") {
  StartedRun run;
  for (const char* site : {"a", "b", "c"}) run.ready(site);
  Hello hello = StartedRun::hello();
  hello.incarnation = 2;
  run.say("c", hello);
  CHECK(run.said<Welcome>() == nullptr);  // its earlier start is still heard
  run.rounds().on_lost("c", run.now_s());
  run.say("c", hello);
  REQUIRE(run.said<Welcome>() != nullptr);
  CHECK(run.said<Welcome>()->mode == StartMode::kJoin);
  CHECK(run.said<Welcome>()->first_exchange == 1);  // 0 has begun
  CHECK(run.said<Welcome>()->start_step == 5);      // after the merge of exchange 0
  CHECK(run.said<Welcome>()->donors.size() == 2);
}

TEST_CASE("nobody waits for a joiner at an exchange that one of them has already come to") {
  StartedRun run;
  run.ready("a");  // exchange 0, which waits for b and c
  run.rounds().on_lost("c", run.now_s());
  Hello hello = StartedRun::hello();
  hello.incarnation = 2;
  run.say("c", hello);
  REQUIRE(run.said<Welcome>() != nullptr);
  CHECK(run.said<Welcome>()->first_exchange == 1);
  CHECK(run.said<Welcome>()->start_step == 5);
  run.ready("b");
  REQUIRE(run.said<Begin>() != nullptr);
  CHECK(StartedRun::names(run.said<Begin>()->members) == "ab");
}

TEST_CASE("resuming goes back to the newest checkpoint that all have with the same weights") {
  RoundOptions options = StartedRun::options();
  options.sites = {"a", "b"};
  options.resume = true;
  RoundMachine rounds(options);
  Hello a = StartedRun::hello(), b = StartedRun::hello();
  a.checkpoints = {{.step = 10, .hash = "x"}, {.step = 20, .hash = "y"}, {.step = 30, .hash = "z"}};
  b.checkpoints = {{.step = 10, .hash = "x"}, {.step = 20, .hash = "y"}, {.step = 30, .hash = "?"}};
  rounds.on_message("a", a, 0);
  const RoundOutput output = rounds.on_message("b", b, 0);
  REQUIRE(output.messages.size() == 2);
  CHECK(std::get<Welcome>(output.messages[0].second).start_step == 20);
  CHECK(std::get<Welcome>(output.messages[0].second).first_exchange == 4);

  RoundMachine without(options);
  a.checkpoints.clear();
  b.checkpoints.clear();
  without.on_message("a", a, 0);
  without.on_message("b", b, 0);
  REQUIRE(without.failure());
  CHECK(without.failure()->find("no good checkpoint at any site (site a: none; site b: none)") !=
        std::string::npos);
}

/// What a coordinator has made durable so far.
class Disk {
 public:
  const RoundOutput& keep(const RoundOutput& output) {
    for (const StateWrite& write : output.writes) pelago::sites::apply(write, state_);
    return output;
  }
  const DurableState& state() const { return state_; }

 private:
  DurableState state_;
};

TEST_CASE("the next coordinator goes on with the run, even when asked to resume, if a site lives") {
  RoundOptions options = StartedRun::options();
  options.sites = {"a"};
  Disk disk;
  RoundMachine first(options);
  SiteStatus status;
  status.incarnation = status.sequence = 1;
  status.phase = SitePhase::kReady;
  status.applied = {-1, -1};
  disk.keep(first.on_message("a", StartedRun::hello(), 0));
  disk.keep(first.on_message("a", status, 0));
  REQUIRE(first.phase() == RoundMachine::RunPhase::kTraining);

  options.resume = true;
  RoundMachine next(options, disk.state());
  CHECK(next.term() == 1);
  CHECK(next.phase() == RoundMachine::RunPhase::kGathering);
  next.on_message("a", Heartbeat{.incarnation = 7}, 1);  // of another start: proves nothing
  CHECK(next.phase() == RoundMachine::RunPhase::kGathering);
  next.on_message("a", Heartbeat{.incarnation = 1}, 1);
  CHECK(next.phase() == RoundMachine::RunPhase::kTraining);

  Hello anew = StartedRun::hello();
  anew.incarnation = 2;
  anew.checkpoints = {{.step = 10, .hash = "x", .data_step = 8}};
  RoundMachine back(options, disk.state());
  const RoundOutput output = back.on_message("a", anew, 1);
  REQUIRE(output.messages.size() == 1);
  CHECK(std::get<Welcome>(output.messages[0].second).start_step == 10);
  CHECK(std::get<Welcome>(output.messages[0].second).data_step == 8);
}

TEST_CASE("a coordinator's state that is damaged is named, with the way out") {
  CHECK_THROWS_WITH_AS(
      RoundMachine(StartedRun::options(), {{"run", "{"}}), doctest::Contains("--resume"), Failure);
}

TEST_CASE("a coordinator that did not run for a while blames nobody for the silence") {
  StartedRun run;
  run.rounds().on_tick(1);
  const RoundOutput after = run.rounds().on_tick(100);
  CHECK(after.events.empty());
}

TEST_CASE("messages survive the way over the line, and nonsense does not") {
  const Begin begin{
      .exchange = 3, .epoch = 7, .members = {{.site = "a", .address = "127.0.0.1:1", .tokens = 5}}};
  const auto back = decode(encode("a", begin));
  REQUIRE(back);
  CHECK(std::get<Begin>(*back).members[0].tokens == 5);
  const auto slice = decode(encode("a", Slice{.exchange = 1, .payload = std::string(3, '\0')}));
  CHECK(std::get<Slice>(*slice).payload.size() == 3);
  CHECK_FALSE(decode({.from = "a", .kind = 999, .head = "{}", .payload = ""}));
  CHECK_FALSE(decode({.from = "a", .kind = 7, .head = "{}", .payload = ""}));
  CHECK_FALSE(decode({.from = "a", .kind = 7, .head = "nonsense", .payload = ""}));
  CHECK_FALSE(decode({.from = "a", .kind = 7, .head = R"({"exchange":"x"})", .payload = ""}));
  // Kind 9 is StopAt. A step may be any count, or -1; nothing that later sums could overflow with.
  for (const char* step : {"0", "-1", "4503599627370496"}) {
    const std::string head = fmt::format("{{\"step\":{}}}", step);
    CHECK(decode({.from = "a", .kind = 9, .head = head, .payload = ""}));
  }
  for (const char* step : {"-2", "1e99", "1.5", "9223372036854775807", "-9223372036854775808"}) {
    const std::string head = fmt::format("{{\"step\":{}}}", step);
    CHECK_FALSE(decode({.from = "a", .kind = 9, .head = head, .payload = ""}));
  }
  CHECK_FALSE(decode({.from = "a", .kind = 9, .head = std::string(1 << 20, '['), .payload = ""}));
}

}  // namespace
}  // namespace pelago::sites
