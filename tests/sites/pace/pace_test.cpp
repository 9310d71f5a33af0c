#include <doctest/doctest.h>

#include <algorithm>
#include <vector>

#include "sites/exchange/give_fragment.h"
#include "sites/exchange/step_pace.h"
#include "sites/protocol/member.h"
#include "sites/protocol/round_machine.h"

namespace pelago::sites {
namespace {

constexpr train::ExchangeSchedule kSchedule{
    .inner_steps = 4, .num_fragments = 2, .overlap_steps = 1, .num_steps = 60};

/// A coordinator of two sites that exchange when they are told to, and what it said and kept.
class TwoSites {
 public:
  TwoSites() : rounds_(options()) {
    for (const char* site : {"a", "b"}) say(site, hello(1));
    for (const char* site : {"a", "b"}) say(site, status(site, SitePhase::kReady, 0));
    for (const char* site : {"a", "b"}) say(site, status(site, SitePhase::kTraining, 0));
    REQUIRE(rounds_.phase() == RoundMachine::RunPhase::kTraining);
  }
  static RoundOptions options() {
    RoundOptions options;
    options.sites = {"a", "b"};
    options.schedule = kSchedule;
    options.shares = {8, 8};
    return options;
  }
  static Hello hello(uint64_t incarnation) {
    Hello hello;
    hello.incarnation = incarnation;
    return hello;
  }
  SiteStatus status(const std::string& site, SitePhase phase, int64_t completed_steps) {
    SiteStatus status;
    status.incarnation = 1;
    status.sequence = ++sequence_;
    status.phase = phase;
    status.completed_steps = completed_steps;
    status.step_us = site == "a" ? us_a : us_b;
    status.shares_from = known_from;
    status.applied = applied_;
    return status;
  }
  SiteStatus ready(const std::string& site, int64_t exchange, int64_t epoch, const char* hash) {
    const int64_t end = (exchange + 1) * kSchedule.interval();
    SiteStatus told = status(site, SitePhase::kTraining, end);
    told.exchanges.push_back({.exchange = exchange,
                              .tokens = 100,
                              .data_begin = std::max<int64_t>(end - kSchedule.inner_steps, 0),
                              .data_end = end,
                              .begun_epoch = epoch,
                              .hash = hash,
                              .missing = {}});
    return told;
  }
  void say(const std::string& site, const Message& message) {
    RoundOutput output = rounds_.on_message(site, message, now_s);
    for (const StateWrite& write : output.writes) pelago::sites::apply(write, disk_);
    for (auto& [to, told] : output.messages) {
      if (const auto* begin = std::get_if<Begin>(&told)) begin_ = *begin;
      if (const auto* commit = std::get_if<Commit>(&told)) commits_[to] = *commit;
      if (const auto* welcome = std::get_if<Welcome>(&told)) welcomes_[to] = *welcome;
    }
    for (const auto& [name, fields] : output.events) events_.push_back(name);
  }
  /// Both take the snapshot, hold the outcome and apply it.
  void exchange(int64_t exchange) {
    for (const char* site : {"a", "b"}) say(site, ready(site, exchange, -1, ""));
    const int64_t epoch = begin_->epoch;
    for (const char* site : {"a", "b"}) say(site, ready(site, exchange, epoch, "hash"));
    applied_[static_cast<size_t>(exchange % kSchedule.num_fragments)] = exchange;
  }
  void rounds(int64_t begin, int64_t end) {
    for (int64_t round = begin; round < end; ++round) {
      exchange(2 * round);
      exchange(2 * round + 1);
    }
  }
  void wait(double seconds) {
    for (double waited = 0; waited < seconds; waited += 0.25) {
      now_s += 0.25;
      for (const char* site : {"a", "b"}) say(site, Heartbeat{1});
      for (auto& [to, told] : rounds_.on_tick(now_s).messages) {
        if (const auto* begin = std::get_if<Begin>(&told)) begin_ = *begin;
      }
    }
  }

  int64_t us_a = 100'000, us_b = 100'000;
  int64_t known_from = 0;
  double now_s = 0;
  RoundMachine rounds_;
  DurableState disk_;
  std::optional<Begin> begin_;
  std::map<std::string, Commit> commits_;    // the last, by site
  std::map<std::string, Welcome> welcomes_;  // the last, by site
  std::vector<std::string> events_;

 private:
  int64_t sequence_ = 0;
  std::vector<int64_t> applied_ = {-1, -1};
};

TEST_CASE("a site twice as slow for three rounds: new shares come with the commit that ends them") {
  TwoSites sites;
  sites.rounds(0, 2);
  sites.us_b = 200'000;
  sites.rounds(2, 4);
  sites.exchange(8);
  CHECK(sites.commits_.at("a").shares.empty());
  sites.exchange(9);  // the last of the third round
  for (const char* site : {"a", "b"}) {
    CAPTURE(site);
    REQUIRE(sites.commits_.at(site).exchange == 9);
    REQUIRE(sites.commits_.at(site).shares.size() == 1);
    // Nobody gets past the merge of exchange 9, after 20 + 1 steps, without this commit.
    CHECK(sites.commits_.at(site).shares[0].data_step == 21);
    CHECK(sites.commits_.at(site).shares[0].sequences == std::vector<int64_t>{11, 5});
  }
  CHECK(std::count(sites.events_.begin(), sites.events_.end(), "site_shares_changed") == 1);
}

TEST_CASE("a commit tells of new shares until the site says that it knows them") {
  TwoSites sites;
  sites.us_b = 200'000;
  sites.rounds(0, 3);
  sites.exchange(6);
  CHECK(sites.commits_.at("a").shares.size() == 1);
  sites.known_from = 13;
  sites.exchange(7);
  CHECK(sites.commits_.at("a").shares.empty());
}

TEST_CASE("new shares are durable with their commit: the next coordinator counts by them") {
  TwoSites sites;
  sites.us_b = 200'000;
  sites.rounds(0, 3);
  RoundMachine next(TwoSites::options(), sites.disk_);
  REQUIRE(next.shares().changes().size() == 1);
  CHECK(next.shares().at(12).sequences == std::vector<int64_t>{8, 8});
  CHECK(next.shares().at(13).sequences == std::vector<int64_t>{11, 5});
  // Of another plan they mean nothing.
  RoundOptions other = TwoSites::options();
  other.shares = {10, 10};
  CHECK(RoundMachine(other, sites.disk_).shares().changes().empty());
}

TEST_CASE("a site that joins is told of all shares there were") {
  TwoSites sites;
  sites.us_b = 200'000;
  sites.rounds(0, 3);
  sites.rounds_.on_lost("b", sites.now_s);
  sites.say("b", TwoSites::hello(2));
  REQUIRE(sites.welcomes_.at("b").mode == StartMode::kJoin);
  REQUIRE(sites.welcomes_.at("b").shares.size() == 1);
  CHECK(sites.welcomes_.at("b").shares[0].data_step == 13);
}

TEST_CASE("back at a checkpoint from before new shares, the plan's hold again, durably") {
  TwoSites sites;
  sites.us_b = 200'000;
  sites.rounds(0, 3);
  for (const int64_t step : {12, 13, 14}) {
    CAPTURE(step);
    RoundOptions options = TwoSites::options();
    options.resume = true;
    DurableState disk = sites.disk_;
    RoundMachine back(options, disk);
    for (const char* site : {"a", "b"}) {
      Hello hello = TwoSites::hello(5);
      hello.checkpoints = {{.step = step, .hash = "x", .data_step = step}};
      const RoundOutput output = back.on_message(site, hello, 0);
      for (const StateWrite& write : output.writes) pelago::sites::apply(write, disk);
    }
    const size_t expected = step > 13 ? 1 : 0;
    CHECK(back.shares().changes().size() == expected);
    CHECK(RoundMachine(TwoSites::options(), disk).shares().changes().size() == expected);
  }
}

TEST_CASE("a late site is waited for as long as an evaluation may take, not for the whole grace") {
  TwoSites sites;
  sites.us_a = sites.us_b = 900'000;  // four steps are more than the line leaves
  sites.rounds(0, 3);
  sites.begin_.reset();
  sites.say("a", sites.ready("a", 6, -1, ""));
  sites.wait(3);
  CHECK_FALSE(sites.begin_.has_value());
  sites.wait(1);
  REQUIRE(sites.begin_.has_value());
  CHECK(sites.begin_->members.size() == 1);
}

TEST_CASE("what a late site was left out with goes out with the fragment's next exchange") {
  GlobalState state(std::vector<float>(256, 1.0F),
                    {{.begin = 0, .end = 128}, {.begin = 128, .end = 256}});
  MemberOptions options;
  options.site = "a";
  options.schedule = kSchedule;
  options.shares = {3, 5};
  options.sequence_tokens = 10;
  options.hello.incarnation = 1;
  Member member(options, state);
  member.on_message(kCoordinatorName, Welcome{.incarnation = 1, .donors = {}}, 0);
  member.on_workers_ready(0);
  member.on_message(kCoordinatorName, AllowTraining{1}, 0);
  const std::vector<float> local(128, 0.5F);
  member.on_snapshot(0, local, 1);
  CHECK(member.status().exchanges.at(0).tokens == 2 * 3 * 10);
  // The others exchanged without it; it takes over what they agreed on.
  GlobalState theirs = state;
  theirs.apply(0, 0, theirs.outer_step(0, std::vector<float>(128, 0.25F), {}));
  const Commit commit{.exchange = 0,
                      .epoch = 4,
                      .members = {{.site = "b", .address = "", .tokens = 9}},
                      .hash = theirs.fragment_hash(0),
                      .donors = {{.site = "b", .address = "x:1"}}};
  member.on_message(kCoordinatorName, commit, 2);
  give_fragment(theirs, 0, [&](const Message& message) { member.on_message("b", message, 2); });
  REQUIRE(state.applied()[0] == 0);
  member.on_snapshot(2, local, 3);
  const ReadyExchange& next = member.status().exchanges.at(0);
  CHECK(next.exchange == 2);
  CHECK(next.data_begin == 0);  // all since the beginning
  CHECK(next.tokens == 6 * 3 * 10);
}

TEST_CASE("tokens of a delta across a change of shares are those of both") {
  GlobalState state(std::vector<float>(256, 1.0F),
                    {{.begin = 0, .end = 128}, {.begin = 128, .end = 256}});
  MemberOptions options;
  options.site = "b";
  options.lane = 1;
  options.schedule = kSchedule;
  options.shares = {3, 5};
  options.sequence_tokens = 10;
  options.hello.incarnation = 1;
  Member member(options, state);
  // It is four data steps behind: it comes to the new shares four steps later than others.
  member.on_message(
      kCoordinatorName,
      Welcome{.incarnation = 1, .start_step = 4, .data_step = 0, .donors = {}, .shares = {}},
      0);
  const Commit commit{.exchange = 1,
                      .epoch = 4,
                      .members = {},
                      .hash = "x",
                      .donors = {},
                      .shares = {{.data_step = 1, .sequences = {6, 2}}}};
  int64_t told_from = -1;
  for (const MemberAction& action : member.on_message(kCoordinatorName, commit, 1)) {
    if (const auto* taken = std::get_if<TakeShares>(&action)) told_from = taken->data_step;
  }
  CHECK(told_from == 1);
  CHECK(member.status().shares_from == 1);
  CHECK(member.on_message(kCoordinatorName, commit, 1).empty());  // said again
  const std::vector<float> local(128, 0.5F);
  member.on_snapshot(2, local, 2);
  CHECK(member.status().exchanges.back().tokens == (5 + 2) * 10);
}

TEST_CASE("a site's pace is the median of its round, and begins anew with another share") {
  StepPace pace(5);
  for (const double step_s : {9.0, 1.0}) pace.note(4, step_s);
  CHECK(pace.median_us() == 0);
  for (const double step_s : {1.1, 1.2, 50.0}) pace.note(4, step_s);
  CHECK(pace.median_us() == 1'200'000);
  for (int i = 0; i < 5; ++i) pace.note(4, 2.0);
  CHECK(pace.median_us() == 2'000'000);
  pace.note(8, 4.0);
  CHECK(pace.median_us() == 0);
}

}  // namespace
}  // namespace pelago::sites
