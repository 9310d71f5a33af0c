// Sites that a fault has put behind leave steps out: who tells them, and what their deltas then
// hold.
#include <doctest/doctest.h>

#include <algorithm>
#include <vector>

#include "sites/exchange/give_fragment.h"
#include "sites/protocol/member.h"
#include "sites/protocol/round_machine.h"

namespace pelago::sites {
namespace {

constexpr train::ExchangeSchedule kSchedule{
    .inner_steps = 16, .num_fragments = 2, .overlap_steps = 6, .num_steps = 200};

Hello hello_of(uint64_t incarnation) {
  Hello hello;
  hello.incarnation = incarnation;
  return hello;
}

/// A coordinator of four sites, and what it says to each.
class FourSites {
 public:
  explicit FourSites(double behind_s = 1) : rounds_(options(behind_s)) {
    for (const char* site : kSites) say(site, hello_of(1));
    for (const char* site : kSites) at(site, SitePhase::kReady, 0);
    for (const char* site : kSites) at(site, SitePhase::kTraining, 0);
    REQUIRE(rounds_.phase() == RoundMachine::RunPhase::kTraining);
  }
  static RoundOptions options(double behind_s) {
    RoundOptions options;
    options.sites = {"a", "b", "c", "d"};
    options.schedule = kSchedule;
    options.behind_s = behind_s;
    return options;
  }
  RoundOutput say(const std::string& site, const Message& message) {
    now_s_ += 0.01;
    return rounds_.on_message(site, message, now_s_);
  }
  SiteStatus status(SitePhase phase, int64_t completed_steps) {
    SiteStatus status;
    status.incarnation = 1;
    status.sequence = ++sequence_;
    status.phase = phase;
    status.completed_steps = completed_steps;
    status.step_us = step_us;
    status.applied = {-1, -1};
    return status;
  }
  void at(const std::string& site, SitePhase phase, int64_t completed_steps) {
    say(site, status(phase, completed_steps));
  }
  void lose(const std::string& site) { rounds_.on_lost(site, now_s_); }
  /// Where a site is told that the others are, when it says how far it is; -1: it is told nothing.
  int64_t told(const std::string& site, int64_t completed_steps) {
    const RoundOutput output =
        say(site, Heartbeat{.incarnation = 1, .completed_steps = completed_steps});
    for (const auto& [to, message] : output.messages) {
      const auto* others = std::get_if<OthersAt>(&message);
      if (others != nullptr) CHECK(to == site);
      if (others != nullptr) return others->step;
    }
    return -1;
  }

  int64_t step_us = 700'000;
  static constexpr const char* kSites[] = {"a", "b", "c", "d"};

 private:
  RoundMachine rounds_;
  int64_t sequence_ = 0;
  double now_s_ = 0;
};

TEST_CASE("a site two steps and a second behind is told where the others are, nobody else is") {
  FourSites sites;
  for (const char* site : {"a", "b", "c"}) sites.at(site, SitePhase::kTraining, 4);
  CHECK(sites.told("d", 3) == -1);  // one step
  CHECK(sites.told("a", 5) == -1);
  CHECK(sites.told("b", 5) == -1);
  CHECK(sites.told("d", 3) == 5);
  CHECK(sites.told("d", 4) == -1);
}

TEST_CASE(
    "two steps that take less than a second are not worth leaving out, and behind_s = 0 ends all") {
  FourSites quick, never(0);
  quick.step_us = 400'000;
  for (FourSites* sites : {&quick, &never}) {
    for (const char* site : FourSites::kSites) sites->at(site, SitePhase::kTraining, 0);
    for (const char* site : {"a", "b", "c"}) sites->at(site, SitePhase::kTraining, 4);
  }
  CHECK(quick.told("d", 1) == 4);
  CHECK(quick.told("d", 2) == -1);
  CHECK(never.told("d", 0) == -1);
}

TEST_CASE("where one site claims to be leads nobody astray") {
  FourSites sites;
  sites.at("a", SitePhase::kTraining, 1000);
  for (const char* site : {"b", "c"}) sites.at(site, SitePhase::kTraining, 4);
  CHECK(sites.told("d", 1) == 4);
}

TEST_CASE("how far an earlier start of a site was does not count") {
  FourSites sites;
  for (const char* site : {"a", "b", "c"}) sites.at(site, SitePhase::kTraining, 4);
  sites.lose("b");
  sites.say("b", hello_of(2));
  sites.say("b", Heartbeat{.incarnation = 1, .completed_steps = 900});
  CHECK(sites.told("d", 1) == 4);
}

TEST_CASE("a site that comes in midst of an exchange starts where the others are, not after it") {
  FourSites sites;
  for (const char* site : {"a", "b", "c"}) {
    SiteStatus ready = sites.status(SitePhase::kTraining, 10);
    ready.exchanges.push_back(
        {.exchange = 0, .tokens = 8, .data_end = 8, .hash = "", .missing = {}});
    sites.say(site, ready);
  }
  sites.lose("d");
  const RoundOutput output = sites.say("d", hello_of(2));
  REQUIRE_FALSE(output.messages.empty());
  const auto* welcome = std::get_if<Welcome>(&output.messages.front().second);
  REQUIRE(welcome != nullptr);
  CHECK(welcome->first_exchange == 1);
  CHECK(welcome->start_step == 10);  // the merge of exchange 0 comes after 14
}

Member member_of(GlobalState& state) {
  MemberOptions options;
  options.site = "a";
  options.schedule = kSchedule;
  options.shares = {4};
  options.sequence_tokens = 10;
  options.hello.incarnation = 1;
  return Member(options, state);
}

TEST_CASE("a delta holds the samples of the steps that were trained, the next one goes on there") {
  GlobalState state(std::vector<float>(256, 1.0F),
                    {{.begin = 0, .end = 128}, {.begin = 128, .end = 256}});
  Member member = member_of(state);
  member.on_message(
      kCoordinatorName,
      Welcome{.incarnation = 1, .start_step = 0, .data_step = 0, .donors = {}, .shares = {}},
      0);
  const std::vector<float> local(128, 0.5F);
  for (int64_t step = 1; step <= 24; ++step) {
    const bool is_left_out = step == 7 || step == 8 || step == 11;
    is_left_out ? member.on_left_out(step) : member.on_step(step, 1);
    if (step % 8 == 0) member.on_snapshot(step / 8 - 1, local, static_cast<double>(step));
  }
  const std::vector<ReadyExchange>& held = member.status().exchanges;
  REQUIRE(held.size() == 3);
  CHECK(held[0].data_end == 6);  // 8 steps, two of them left out
  CHECK(held[0].tokens == 6 * 4 * 10);
  CHECK(held[1].data_end == 13);
  CHECK(held[2].data_end == 21);
  CHECK(member.status().left_out_steps == 3);
  CHECK(member.status().completed_steps == 24);
}

TEST_CASE("a delta may lack the samples of as many steps as its site has left out, no more") {
  FourSites sites;
  for (const char* site : {"a", "b", "c"}) {
    SiteStatus ready = sites.status(SitePhase::kTraining, 8);
    ready.exchanges.push_back(
        {.exchange = 0, .tokens = 10, .data_end = 8, .hash = "", .missing = {}});
    sites.say(site, ready);
  }
  const auto begins_with = [&](int64_t data_end, int64_t left_out) {
    SiteStatus status = sites.status(SitePhase::kTraining, 8);
    status.left_out_steps = left_out;
    status.exchanges.push_back(
        {.exchange = 0, .tokens = 10, .data_end = data_end, .hash = "", .missing = {}});
    const RoundOutput output = sites.say("d", status);
    return std::any_of(output.messages.begin(), output.messages.end(), [](const auto& sent) {
      return std::holds_alternative<Begin>(sent.second);
    });
  };
  CHECK_FALSE(begins_with(9, 2));  // samples beyond the snapshot
  CHECK_FALSE(begins_with(5, 2));
  CHECK(begins_with(6, 2));
}

}  // namespace
}  // namespace pelago::sites
