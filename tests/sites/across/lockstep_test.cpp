// Sites that train in step: how the coordinator begins the run, begins it again and ends it, and
// what an agent's relay does with what comes over the line.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <thread>

#include "base/error.h"
#include "plan/across/joint.h"
#include "sites/across/relay.h"
#include "sites/protocol/round_machine.h"

namespace pelago::sites {
namespace {

/// A coordinator of two sites in step.
class LockstepRun {
 public:
  explicit LockstepRun(bool resume = false)
      : rounds_(std::make_unique<RoundMachine>(options(resume))) {}
  static RoundOptions options(bool resume) {
    RoundOptions options;
    options.sites = {"a", "b"};
    options.schedule = {.num_steps = 40};
    options.heartbeat_s = 1;
    options.absence_s = 20;
    options.resume = resume;
    return options;
  }
  void greet(const std::string& site,
             uint64_t incarnation,
             const std::vector<std::pair<int64_t, std::string>>& checkpoints = {}) {
    Hello hello;
    hello.incarnation = incarnation;
    hello.plan_hash = "plan";
    hello.address = site + ":" + std::to_string(incarnation);
    for (const auto& [step, hash] : checkpoints) {
      hello.checkpoints.push_back({.step = step, .hash = hash, .data_step = step});
    }
    say(site, hello);
  }
  void tell(const std::string& site,
            uint64_t incarnation,
            SitePhase phase,
            int64_t step = 0,
            int64_t saved_step = -1,
            const std::string& lost_line = "") {
    SiteStatus status;
    status.saved_step = saved_step;
    status.lost_line = lost_line;
    status.incarnation = incarnation;
    status.sequence = ++sequence_;
    status.phase = phase;
    status.completed_steps = step;
    say(site, status);
  }
  void start(uint64_t incarnation) {
    for (const char* site : {"a", "b"}) tell(site, incarnation, SitePhase::kReady);
    for (const char* site : {"a", "b"}) tell(site, incarnation, SitePhase::kTraining);
  }
  void say(const std::string& site, const Message& message) {
    take(rounds_->on_message(site, message, now_s_));
  }
  /// Lets time pass; the site in `alive`, of this incarnation, sends heartbeats.
  void wait(double seconds, const std::string& alive, uint64_t incarnation) {
    for (double waited = 0; waited < seconds; waited += 0.5) {
      now_s_ += 0.5;
      for (const char site : alive) say(std::string(1, site), Heartbeat{incarnation});
      take(rounds_->on_tick(now_s_));
    }
  }
  /// The newest message of this kind to the site since the last look.
  template <typename T>
  std::optional<T> heard(const std::string& site) {
    std::optional<T> newest;
    for (const Message& message : heard_[site]) {
      if (const T* content = std::get_if<T>(&message)) newest = *content;
    }
    return newest;
  }
  void forget() { heard_.clear(); }
  RoundMachine& rounds() { return *rounds_; }
  void stop() { take(rounds_->request_stop(now_s_)); }
  /// Another coordinator, with what this one made durable.
  void replace_coordinator() {
    rounds_ = std::make_unique<RoundMachine>(options(false), durable_);
    forget();
  }

 private:
  void take(const RoundOutput& output) {
    for (const auto& [site, message] : output.messages) heard_[site].push_back(message);
    for (const StateWrite& write : output.writes) apply(write, durable_);
  }
  std::unique_ptr<RoundMachine> rounds_;
  DurableState durable_;
  std::map<std::string, std::vector<Message>> heard_;
  int64_t sequence_ = 0;
  double now_s_ = 0;
};

TEST_CASE("sites in step hear where the others are, and train once all are ready") {
  LockstepRun run;
  run.greet("a", 1);
  CHECK_FALSE(run.heard<Welcome>("a"));
  run.greet("b", 1);
  const auto a = run.heard<Welcome>("a"), b = run.heard<Welcome>("b");
  REQUIRE(a);
  REQUIRE(b);
  CHECK(a->start_number == b->start_number);
  CHECK(a->start_number > 0);
  REQUIRE(a->peers.size() == 2);
  CHECK(a->peers[1].address == "b:1");
  run.tell("a", 1, SitePhase::kReady);
  CHECK_FALSE(run.heard<AllowTraining>("a"));
  run.tell("b", 1, SitePhase::kReady);
  CHECK(run.heard<AllowTraining>("a"));
  CHECK(run.heard<AllowTraining>("b"));
}

TEST_CASE("when a site in step is lost all start again from the newest checkpoint they share") {
  LockstepRun run;
  run.greet("a", 1);
  run.greet("b", 1);
  const int64_t first = run.heard<Welcome>("a")->start_number;
  run.start(1);
  run.tell("a", 1, SitePhase::kTraining, 12);
  run.forget();
  run.wait(6, "a", 1);  // b is silent
  const auto told = run.heard<Refused>("a");
  REQUIRE(told);
  CHECK(told->exit_code == kExitTryAgain);
  CHECK(told->reason.find("site b is gone") == 0);
  run.greet("a", 2, {{5, "x"}, {10, "y"}});
  run.forget();
  run.greet("b", 2, {{5, "x"}, {10, "other"}});
  const auto again = run.heard<Welcome>("a");
  REQUIRE(again);
  CHECK((again->mode == StartMode::kResume));
  CHECK(again->start_step == 5);
  CHECK(again->start_number > first);
  CHECK(again->peers[1].address == "b:2");
  // What the lost start still says is refused, and it is told to end.
  run.forget();
  run.tell("b", 1, SitePhase::kTraining, 12);
  CHECK(run.rounds().phase() == RoundMachine::RunPhase::kStarting);
}

TEST_CASE(
    "a site in step that starts anew takes the others with it, from the beginning if need be") {
  LockstepRun run;
  run.greet("a", 1);
  run.greet("b", 1);
  run.start(1);
  run.forget();
  run.wait(0.5, "ab", 1);
  run.rounds().on_lost("b", 1);  // its connection broke: another start may replace it
  run.greet("b", 2);
  REQUIRE(run.heard<Refused>("a"));
  run.greet("a", 2);
  const auto again = run.heard<Welcome>("b");
  REQUIRE(again);
  CHECK((again->mode == StartMode::kFresh));
  CHECK(again->incarnation == 2);
}

TEST_CASE("a site in step that lost its disk is told who has the checkpoint of the others") {
  LockstepRun run;
  run.greet("a", 1);
  run.greet("b", 1);
  run.start(1);
  run.tell("a", 1, SitePhase::kTraining, 12, /*saved_step=*/10);
  run.wait(6, "a", 1);
  run.greet("a", 2, {{5, "x"}, {10, "y"}});
  run.greet("b", 2);
  const auto a = run.heard<Welcome>("a"), b = run.heard<Welcome>("b");
  REQUIRE(b);
  CHECK((b->mode == StartMode::kResume));
  CHECK(b->start_step == 10);
  CHECK(b->data_step == 10);
  CHECK(b->checkpoint_hash == "y");
  REQUIRE(b->donors.size() == 1);
  CHECK(b->donors[0].site == "a");
  CHECK(b->donors[0].address == "a:2");
  REQUIRE(a);
  CHECK(a->start_step == 10);
  CHECK(a->donors.empty());
  // It is waited for.
  run.forget();
  run.tell("a", 2, SitePhase::kReady);
  CHECK_FALSE(run.heard<AllowTraining>("a"));
  run.tell("b", 2, SitePhase::kReady);
  CHECK(run.heard<AllowTraining>("a"));
}

TEST_CASE("a run in step is resumed from what any site has, and not if sites differ in it") {
  LockstepRun run(/*resume=*/true);
  run.greet("a", 1);
  run.greet("b", 1, {{5, "x"}, {10, "y"}});
  REQUIRE(run.heard<Welcome>("a"));
  CHECK(run.heard<Welcome>("a")->start_step == 10);
  LockstepRun other(/*resume=*/true);
  other.greet("a", 1, {{10, "z"}});
  other.greet("b", 1, {{10, "y"}});
  REQUIRE(other.rounds().failure());
  CHECK(other.rounds().failure()->find("no good checkpoint at any site") == 0);
}

TEST_CASE("a checkpoint of an earlier run that only some have is not gone on from") {
  LockstepRun run;
  run.greet("a", 1);
  run.greet("b", 1);
  run.start(1);
  run.wait(6, "a", 1);
  run.greet("a", 2, {{30, "old"}});
  run.greet("b", 2);
  REQUIRE(run.heard<Welcome>("b"));
  CHECK((run.heard<Welcome>("b")->mode == StartMode::kFresh));
}

TEST_CASE(
    "sites in step that have all lost the checkpoint they had end the run, with what is lost, "
    "under a later coordinator, too") {
  for (const bool is_replaced : {false, true}) {
    CAPTURE(is_replaced);
    LockstepRun run;
    run.greet("a", 1);
    run.greet("b", 1);
    run.start(1);
    run.tell("b", 1, SitePhase::kTraining, 12, /*saved_step=*/10);
    if (is_replaced) run.replace_coordinator();
    run.wait(6, "", 0);
    run.greet("a", 2);
    run.greet("b", 2);
    REQUIRE(run.rounds().failure());
    CHECK(*run.rounds().failure() ==
          "no good checkpoint at any site (site a: none; site b: none); the model of step 10, of "
          "which site b had all stages, is lost: put its folder checkpoints/step-10 back and go on "
          "with --resume, or start afresh with --fresh");
  }
}

TEST_CASE("what a line between sites in step has lost begins all of them again at once") {
  LockstepRun run;
  run.greet("a", 1);
  run.greet("b", 1);
  run.start(1);
  run.forget();
  run.tell("a", 1, SitePhase::kTraining, 3, -1, "the line to site b was broken for too long");
  for (const char* site : {"a", "b"}) {
    REQUIRE(run.heard<Refused>(site));
    CHECK(run.heard<Refused>(site)->exit_code == kExitTryAgain);
    CHECK(run.heard<Refused>(site)->reason ==
          "site a: the line to site b was broken for too long; all sites start again together");
  }
}

TEST_CASE("a site in step that does not return ends the run, and the others hear of it") {
  LockstepRun run;
  run.greet("a", 1);
  run.greet("b", 1);
  run.start(1);
  run.wait(6, "a", 1);
  run.greet("a", 2);
  run.forget();
  run.wait(25, "a", 2);
  REQUIRE(run.rounds().failure());
  CHECK(run.rounds().failure()->find("site b did not come back within 20 s") == 0);
  REQUIRE(run.heard<Refused>("a"));
  CHECK(run.heard<Refused>("a")->exit_code == kExitFailed);
}

TEST_CASE("a site in step whose welcome was lost is told to return when it greets again") {
  LockstepRun run;
  run.greet("a", 1);
  run.greet("b", 1);
  run.wait(6, "a", 1);  // b is silent: it never heard that it was taken in
  run.forget();
  run.greet("b", 1);
  const auto told = run.heard<Refused>("b");
  REQUIRE(told);
  CHECK(told->incarnation == 1);
  CHECK(told->exit_code == kExitTryAgain);
  // Once its next start is there, the old one is nobody's business.
  run.greet("b", 2);
  run.forget();
  run.greet("b", 1);
  CHECK_FALSE(run.heard<Refused>("b"));
}

TEST_CASE("a site in step that starts anew while the run stops ends it, and hears why") {
  LockstepRun run;
  run.greet("a", 1);
  run.greet("b", 1);
  run.start(1);
  run.stop();
  run.rounds().on_lost("b", 1);
  run.forget();
  run.greet("b", 2);
  REQUIRE(run.rounds().failure());
  CHECK(run.rounds().failure()->find("site b has started anew, while the run was stopping") == 0);
  REQUIRE(run.heard<Refused>("b"));
  CHECK(run.heard<Refused>("b")->exit_code == kExitFailed);
}

TEST_CASE("a site in step that says why it failed is not waited for to fall silent") {
  LockstepRun run;
  run.greet("a", 1);
  run.greet("b", 1);
  run.start(1);
  run.say("b", Report{.name = "checkpoint", .json = "{}"});
  CHECK_FALSE(run.heard<Refused>("a"));
  run.say("b", Report{.name = "site_failed", .json = R"({"message": "rank 0 is gone"})"});
  REQUIRE(run.heard<Refused>("a"));
  CHECK(run.heard<Refused>("a")->reason.find("rank 0 is gone") != std::string::npos);
}

TEST_CASE("starts in step that come to no new step end the run") {
  LockstepRun run;
  for (uint64_t start = 1; start < 20 && !run.rounds().failure(); ++start) {
    run.greet("a", start);
    run.greet("b", start);
    run.start(start);
    run.wait(6, "a", start);
  }
  REQUIRE(run.rounds().failure());
  CHECK(run.rounds().failure()->find("5 starts in a row came to no new step") != std::string::npos);
}

TEST_CASE(
    "sites in step go on under another coordinator, which begins them again when one is lost") {
  LockstepRun run;
  run.greet("a", 1);
  run.greet("b", 1);
  const int64_t first = run.heard<Welcome>("a")->start_number;
  run.start(1);
  run.replace_coordinator();
  run.tell("a", 1, SitePhase::kTraining, 4);
  run.tell("b", 1, SitePhase::kTraining, 4);
  run.wait(10, "ab", 1);
  CHECK(run.rounds().phase() == RoundMachine::RunPhase::kTraining);
  CHECK_FALSE(run.heard<Refused>("a"));
  run.wait(6, "a", 1);
  REQUIRE(run.heard<Refused>("a"));
  // The next coordinator knows the old starts only; whoever comes with a new one begins it again.
  run.greet("a", 2, {{3, "x"}});
  run.replace_coordinator();
  run.wait(6, "", 0);
  run.greet("a", 2, {{3, "x"}});
  run.greet("b", 2, {{3, "x"}});
  const auto again = run.heard<Welcome>("b");
  REQUIRE(again);
  CHECK(again->start_step == 3);
  CHECK(again->start_number > first);
  REQUIRE(again->peers.size() == 2);
  CHECK(again->peers[0].address == "a:2");
}

TEST_CASE("a stop reaches sites in step before the step at which they stop") {
  LockstepRun run;
  run.greet("a", 1);
  run.greet("b", 1);
  run.start(1);
  run.tell("a", 1, SitePhase::kTraining, 7);
  run.tell("b", 1, SitePhase::kTraining, 6);
  run.stop();
  REQUIRE(run.heard<StopAt>("a"));
  CHECK(run.heard<StopAt>("a")->step == 10);
  CHECK(run.heard<StopAt>("b")->step == 10);
  run.tell("a", 1, SitePhase::kFinished, 10);
  run.tell("b", 1, SitePhase::kFinished, 10);
  CHECK(run.heard<Release>("a"));
  CHECK(run.rounds().phase() == RoundMachine::RunPhase::kOver);
}

plan::Plan joint_plan() {
  plan::Plan plan;
  plan.sites.resize(2);
  plan.sites[0].name = "a";
  plan.sites[0].devices.resize(1);
  plan.sites[1].name = "b";
  plan.sites[1].devices.resize(2);
  plan.pipelines.resize(1);
  return plan;
}

/// Frames go straight to the other end's relay, or into a drawer.
class DirectTransport final : public Transport {
 public:
  void set_address(const std::string&, const std::string&) override {}
  bool send(const std::string&, Frame frame) override {
    const std::lock_guard lock(mutex_);
    if (to == nullptr) {
      drawer.push_back(std::move(frame));
      return true;
    }
    return to->take(std::move(frame));
  }
  std::optional<Arrival> receive(double) override { return std::nullopt; }
  int64_t num_queued(const std::string&) const override { return 0; }
  std::map<std::string, PeerTraffic> traffic() const override { return {}; }

  size_t num_sent() {
    const std::lock_guard lock(mutex_);
    return drawer.size();
  }

  Relay* to = nullptr;
  std::vector<Frame> drawer;

 private:
  std::mutex mutex_;  // guards drawer
};

struct Workers {
  explicit Workers(size_t count) {
    for (size_t i = 0; i < count; ++i) {
      auto [agents_end, workers_end] = train::BridgeSocket::make_pair();
      agents.push_back(std::move(agents_end));
      ends.push_back(std::move(workers_end));
    }
  }
  std::vector<train::BridgeSocket> agents, ends;
};

void write(train::BridgeSocket& end, int to_rank, const std::string& text) {
  train::BridgeHeader header{.to_rank = to_rank, .tag = 4};
  header.num_bytes = text.size();
  REQUIRE(end.write(header, std::as_bytes(std::span(text))));
}

std::string read(train::BridgeSocket& end, int* from_rank = nullptr) {
  train::BridgeHeader header;
  std::string part;
  REQUIRE(end.read(header, part));
  if (from_rank != nullptr) *from_rank = header.from_rank;
  return part;
}

TEST_CASE(
    "what a worker has for another site's rank comes to it, even before that one has started") {
  const plan::Plan plan = joint_plan();
  DirectTransport from_a, from_b;
  Relay a(plan, 0), b(plan, 1);
  from_a.to = &b;
  from_b.to = &a;
  Workers at_a(1), at_b(2);
  a.start(3, std::move(at_a.agents), from_a);
  write(at_a.ends[0], 2, "early");
  write(at_a.ends[0], 1, "other");
  b.start(3, std::move(at_b.agents), from_b);
  int from_rank = -1;
  CHECK(read(at_b.ends[1], &from_rank) == "early");
  CHECK(from_rank == 0);
  CHECK(read(at_b.ends[0]) == "other");
  write(at_b.ends[1], 0, "back");
  CHECK(read(at_a.ends[0], &from_rank) == "back");
  CHECK(from_rank == 2);
  write(at_b.ends[1], 1, "next door");
  CHECK(read(at_b.ends[0], &from_rank) == "next door");
  CHECK(from_rank == 2);
}

TEST_CASE(
    "frames of an earlier start are dropped, and that one is missing is known, not worked with") {
  const plan::Plan plan = joint_plan();
  DirectTransport drawer, unused;
  Workers old_workers(1), workers(1), at_b(2);
  {
    Relay old_start(plan, 0), start(plan, 0);
    old_start.start(3, std::move(old_workers.agents), drawer);
    write(old_workers.ends[0], 1, "old");
    while (drawer.num_sent() < 1) std::this_thread::yield();
    start.start(4, std::move(workers.agents), drawer);
    for (const char* text : {"first", "lost", "third"}) write(workers.ends[0], 1, text);
    while (drawer.num_sent() < 4) std::this_thread::yield();
  }
  Relay b(plan, 1);
  b.start(4, std::move(at_b.agents), unused);
  for (const size_t i : {0, 1}) CHECK(b.take(drawer.drawer[i]));
  CHECK(b.failure() == "");
  CHECK(b.take(drawer.drawer[3]));
  CHECK(b.failure().find("the line from site a lost 1 messages") == 0);
  CHECK(read(at_b.ends[0]) == "first");
  b.stop();
  train::BridgeHeader header;
  std::string part;
  CHECK_FALSE(at_b.ends[0].read(header, part));  // "third" has not come
}

TEST_CASE("frames that no rank of the sender can have sent are refused") {
  const plan::Plan plan = joint_plan();
  DirectTransport drawer;
  Workers workers(1);
  Relay a(plan, 0), b(plan, 1);
  a.start(3, std::move(workers.agents), drawer);
  write(workers.ends[0], 1, "good");
  while (drawer.num_sent() < 1) std::this_thread::yield();
  const Frame good = drawer.drawer[0];
  Frame frame = good;
  frame.from = "b";
  CHECK_FALSE(b.take(frame));
  frame = good;
  frame.head.pop_back();
  CHECK_FALSE(b.take(frame));
  frame = good;
  frame.payload += "x";
  CHECK_FALSE(b.take(frame));
  CHECK_FALSE(a.take(good));  // the rank is not of that site
  CHECK(b.take(good));
}

}  // namespace
}  // namespace pelago::sites
