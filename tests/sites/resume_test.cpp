// Going on with a run of which not every site has a checkpoint.
#include <doctest/doctest.h>

#include <algorithm>

#include "base/text/json.h"
#include "sites/protocol/round_machine.h"

namespace pelago::sites {
namespace {

RoundOptions two_sites() {
  RoundOptions options;
  options.sites = {"a", "b"};
  options.schedule = {.inner_steps = 8, .num_fragments = 2, .overlap_steps = 1, .num_steps = 40};
  options.heartbeat_s = 1;
  options.resume = true;
  return options;
}

Hello hello_with(const std::vector<std::pair<int64_t, std::string>>& checkpoints) {
  Hello hello;
  hello.incarnation = 7;
  hello.plan_hash = "plan";
  for (const auto& [step, hash] : checkpoints) {
    hello.checkpoints.push_back({.step = step, .hash = hash, .data_step = step});
  }
  return hello;
}

SiteStatus status_of(SitePhase phase, int64_t sequence, int64_t step) {
  SiteStatus status;
  status.incarnation = 7;
  status.sequence = sequence;
  status.phase = phase;
  status.completed_steps = step;
  status.applied = {-1, -1};
  return status;
}

/// A run that was told to stop at this step, in which b gave its last delta two exchanges before.
DurableState stopped_at(int64_t step) {
  RoundOptions options = two_sites();
  DurableState state;
  const nlohmann::json run{{"phase", 3},
                           {"start_mode", 0},
                           {"start_step", 0},
                           {"first_logged", 0},
                           {"stop_requested", true},
                           {"stop_step", step}};
  state["run"] = run.dump();
  for (int64_t exchange = 0; options.schedule.first_step_after(exchange) <= step; ++exchange) {
    const int64_t end = 4 * (exchange + 1), begin = std::max<int64_t>(end - 8, 0);
    Commit commit;
    commit.exchange = exchange;
    commit.epoch = exchange + 1;
    commit.hash = "h";
    commit.members.push_back(
        {.site = "a", .address = "", .tokens = 8, .data_begin = begin, .data_end = end});
    if (exchange < 4) {
      commit.members.push_back(
          {.site = "b", .address = "", .tokens = 8, .data_begin = begin, .data_end = end});
    }
    const nlohmann::json kept{{"commit", parse_json(encode("", commit).head)},
                              {"incarnations", {{"a", 1}, {"b", 1}}}};
    state["commit/" + std::to_string(exchange)] = kept.dump();
  }
  return state;
}

template <typename T>
std::optional<T> said_to(const RoundOutput& output, const std::string& site) {
  for (const auto& [to, message] : output.messages) {
    if (to == site && std::holds_alternative<T>(message)) return std::get<T>(message);
  }
  return std::nullopt;
}

TEST_CASE("a run goes on where it stopped though one site has no checkpoint, which then joins") {
  RoundMachine rounds(two_sites(), stopped_at(25));
  rounds.on_message("b", hello_with({}), 0);
  RoundOutput output = rounds.on_message("a", hello_with({{17, "x"}, {25, "y"}}), 0);
  REQUIRE_FALSE(rounds.failure());
  const auto a = said_to<Welcome>(output, "a");
  REQUIRE(a);
  CHECK((a->mode == StartMode::kResume));
  CHECK(a->start_step == 25);
  CHECK_FALSE(said_to<Welcome>(output, "b"));
  // It greets again until it is answered, and is not waited for.
  CHECK_FALSE(said_to<Welcome>(rounds.on_message("b", hello_with({}), 1), "b"));
  output = rounds.on_message("a", status_of(SitePhase::kReady, 1, 25), 1);
  CHECK(said_to<AllowTraining>(output, "a"));
  CHECK_FALSE(said_to<AllowTraining>(output, "b"));
  output = rounds.on_message("b", hello_with({}), 2);
  const auto b = said_to<Welcome>(output, "b");
  REQUIRE(b);
  CHECK((b->mode == StartMode::kJoin));
  CHECK(b->start_step == 25);
  CHECK(b->data_step == 16);  // what was in no commit is in its lane still
  REQUIRE(b->donors.size() == 1);
  CHECK(b->donors[0].site == "a");
  CHECK(rounds.account("b").spent == 16);
  CHECK(rounds.account("b").lost == 0);
  CHECK(rounds.account("a").spent == 24);
}

TEST_CASE("where the run stopped wins over an older checkpoint that all have, a crash does not") {
  const auto start_step = [](const DurableState& known) {
    RoundMachine rounds(two_sites(), known);
    rounds.on_message("b", hello_with({{9, "w"}, {17, "x"}}), 0);
    const RoundOutput output =
        rounds.on_message("a", hello_with({{9, "w"}, {17, "x"}, {25, "y"}}), 0);
    const auto welcome = said_to<Welcome>(output, "a");
    REQUIRE(welcome);
    return welcome->start_step;
  };
  CHECK(start_step(stopped_at(25)) == 25);
  DurableState crashed = stopped_at(25);
  nlohmann::json run = parse_json(crashed["run"]);
  run.erase("stop_step");
  crashed["run"] = run.dump();
  CHECK(start_step(crashed) == 17);  // both have what they had learned by themselves
}

TEST_CASE("a checkpoint of a course that was given up is not gone on from") {
  DurableState known = stopped_at(17);  // no commit after that counts any more
  RoundMachine rounds(two_sites(), known);
  rounds.on_message("b", hello_with({}), 0);
  const RoundOutput output = rounds.on_message("a", hello_with({{9, "w"}, {33, "old"}}), 0);
  const auto welcome = said_to<Welcome>(output, "a");
  REQUIRE(welcome);
  CHECK(welcome->start_step == 9);
}

TEST_CASE("checkpoints of one step with different weights are nobody's") {
  RoundMachine rounds(two_sites(), stopped_at(25));
  rounds.on_message("b", hello_with({{25, "z"}}), 0);
  rounds.on_message("a", hello_with({{25, "y"}}), 0);
  REQUIRE(rounds.failure());
  CHECK(rounds.failure()->find("--fresh") != std::string::npos);
}

TEST_CASE("sites in step go on from a checkpoint that one of them has, in which all stages are") {
  RoundOptions options = two_sites();
  options.schedule = {.num_steps = 40};
  RoundMachine rounds(options);
  rounds.on_message("b", hello_with({}), 0);
  const RoundOutput output = rounds.on_message("a", hello_with({{25, "y"}}), 0);
  CHECK_FALSE(rounds.failure());
  const auto welcome = said_to<Welcome>(output, "b");
  REQUIRE(welcome);
  CHECK(welcome->start_step == 25);
  REQUIRE(welcome->donors.size() == 1);
  CHECK(welcome->donors[0].site == "a");
}

TEST_CASE("who takes over before the first checkpoint lets the run begin once more") {
  RoundOptions options = two_sites();
  options.schedule = {.num_steps = 40};
  const nlohmann::json run{{"phase", 2},
                           {"start_mode", 0},
                           {"start_step", 0},
                           {"first_logged", 0},
                           {"stop_requested", false}};
  for (const bool takes_over : {true, false}) {
    CAPTURE(takes_over);
    options.takes_over = takes_over;
    RoundMachine rounds(options, {{"run", run.dump()}});
    rounds.on_message("b", hello_with({}), 0);
    const RoundOutput output = rounds.on_message("a", hello_with({}), 0);
    CHECK(rounds.failure().has_value() == !takes_over);
    const auto welcome = said_to<Welcome>(output, "a");
    REQUIRE(welcome.has_value() == takes_over);
    if (welcome) CHECK((welcome->mode == StartMode::kFresh));
  }
  // What a site has saved is never passed over.
  options.takes_over = true;
  RoundMachine rounds(options, {{"run", run.dump()}});
  rounds.on_message("b", hello_with({}), 0);
  const RoundOutput output = rounds.on_message("a", hello_with({{25, "y"}}), 0);
  REQUIRE(said_to<Welcome>(output, "b"));
  CHECK(said_to<Welcome>(output, "b")->start_step == 25);
}

}  // namespace
}  // namespace pelago::sites
