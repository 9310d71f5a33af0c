// What a site does about a lost device, as far as it needs no processes.
#include <doctest/doctest.h>

#include <algorithm>
#include <set>

#include "base/rng.h"
#include "train/health/hang_watch.h"
#include "train/health/pace_watch.h"
#include "train/process/control.h"
#include "train/process/shared_weights.h"
#include "train/recovery/restart_point.h"
#include "train/recovery/snapshots.h"

namespace pelago::train {
namespace {

TEST_CASE("a snapshot counts once every rank has written it, and not while one overwrites it") {
  const SharedWeights shared = SharedWeights::create(10);
  SiteBoard& board = shared.board();
  CHECK_FALSE(board.whole_slot(0, 3));
  for (size_t rank = 0; rank < 3; ++rank) {
    CHECK_FALSE(board.whole_slot(0, 3));
    board.finish_slot(0, rank, 16);
  }
  CHECK(board.whole_slot(0, 3) == 16);
  CHECK_FALSE(board.whole_slot(0, 4));  // a fourth has not written its part
  board.begin_slot(0, 1);
  CHECK_FALSE(board.whole_slot(0, 3));
  board.finish_slot(0, 1, 24);  // of another step than the others
  CHECK_FALSE(board.whole_slot(0, 3));
}

TEST_CASE("what two ranks of an earlier start left does not look whole to a new start of two") {
  const SharedWeights shared = SharedWeights::create(10);
  SiteBoard& board = shared.board();
  board.finish_slot(1, 0, 24);
  board.finish_slot(1, 1, 24);  // and rank 2 died before it had written its part
  board.reset_slot(1, std::nullopt);
  CHECK_FALSE(board.whole_slot(1, 2));
  board.reset_slot(0, 16);
  CHECK(board.whole_slot(0, 2) == 16);
}

TEST_CASE("the state before the first step can be a snapshot too") {
  const SharedWeights shared = SharedWeights::create(10);
  shared.board().finish_slot(0, 0, 0);
  CHECK(shared.board().whole_slot(0, 1) == 0);
}

/// Two fragments, an exchange every 4 steps, merged one step later.
ExchangeSchedule schedule() {
  return {.inner_steps = 8, .num_fragments = 2, .overlap_steps = 1, .num_steps = 30};
}

TEST_CASE("steps are repeated only as far back as every merge is still in memory") {
  // Any run up to any step: what a worker takes again must be what the agent wrote last.
  const ExchangeSchedule all = schedule();
  for (int64_t crash = 1; crash <= 30; ++crash) {
    ExchangeLog log;
    std::vector<int64_t> newest(2, -1);  // by fragment: the exchange whose merge is in memory
    for (int64_t step = 1; step <= crash; ++step) {
      if (const int64_t sent = all.snapshot_after(step); sent >= 0) log.sent = sent;
      if (const int64_t merged = all.merge_after(step); merged >= 0) {
        log.merged.insert(merged);
        newest[static_cast<size_t>(fragment_of(all, merged))] = merged;
      }
    }
    for (int64_t from = 0; from <= crash; ++from) {
      bool finds_all = true;
      for (int64_t step = from + 1; step <= crash; ++step) {
        const int64_t needed = all.merge_after(step);
        if (needed >= 0)
          finds_all &= newest[static_cast<size_t>(fragment_of(all, needed))] == needed;
      }
      INFO("crash after ", crash, ", from ", from);
      CHECK(can_repeat_from(all, log, from) == finds_all);
    }
    CHECK(can_repeat_from(all, log, crash));
  }
}

TEST_CASE("merges of repeated steps and the final ones are handed out again, earlier ones not") {
  const ExchangeSchedule all = schedule();
  REQUIRE(all.num_regular() == 7);
  ExchangeLog log{.sent = 7, .merged = {0, 1, 2, 3, 4, 5, 6, 7}};
  CHECK(merge_step(all, 6) == 29);
  CHECK(merges_after(all, log, 25) == std::vector<int64_t>{6, 7});
  CHECK(merges_after(all, log, 30) == std::vector<int64_t>{7});
  CHECK(fragment_of(all, 7) == 0);
  CHECK(can_repeat_from(all, log, 29));
  CHECK_FALSE(can_repeat_from(all, log, 28));  // 6 and 7 are of one fragment
}

/// A site of three ranks in virtual time; rank 1 hangs at hang_s, or never.
struct HangRun {
  double detected_s = -1;
  std::vector<size_t> silent;
  int num_questions = 0;
};
HangRun run_site(double step_s, double hang_s, bool answers_still, double until_s) {
  HangRun run;
  HangWatch watch(3, step_s, 0);
  std::vector<uint64_t> pulses(3);
  std::vector<int64_t> answers(3);
  double next_step_s = step_s;
  for (double now_s = 0; now_s < until_s; now_s += 0.1) {
    const bool is_hung = hang_s >= 0 && now_s >= hang_s;
    if (!is_hung && now_s >= next_step_s) {
      for (uint64_t& pulse : pulses) ++pulse;
      watch.on_step(step_s);
      next_step_s += step_s;
    }
    const HangWatch::Look look = watch.look(pulses, answers, now_s);
    if (look.asks) {
      ++run.num_questions;
      for (size_t rank = 0; rank < 3; ++rank) {
        if (rank != 1 || answers_still) answers[rank] = watch.question();
      }
    }
    if (look.is_hung) {
      run.detected_s = now_s;
      run.silent = look.silent;
      break;
    }
  }
  return run;
}

TEST_CASE("a stuck rank is found within three steps or ten seconds, and no other is blamed") {
  for (const double step_s : {0.2, 1.0, 3.0, 8.0, 40.0}) {
    const double hang_s = 10 * step_s;
    const HangRun run =
        run_site(step_s, hang_s, /*answers_still=*/false, hang_s + 10 * step_s + 60);
    INFO("step ", step_s);
    REQUIRE(run.detected_s > 0);
    CHECK(run.detected_s - hang_s <= std::max(3 * step_s, 10.0));
    CHECK(run.silent == std::vector<size_t>{1});
  }
}

TEST_CASE("a healthy site is never asked, and a silence in which all answer is borne for long") {
  CHECK(run_site(2.0, -1, true, 500).num_questions == 0);
  const HangRun slow_disk = run_site(1.0, 50, /*answers_still=*/true, 120);
  CHECK(slow_disk.num_questions > 0);  // the silence was noticed
  CHECK(slow_disk.detected_s < 0);
  const HangRun deadlock = run_site(1.0, 50, /*answers_still=*/true, 400);
  CHECK(deadlock.detected_s > 0);
  CHECK(deadlock.silent.empty());
}

TEST_CASE("a supervisor that did not run itself blames nobody") {
  HangWatch watch(1, 1.0, 0);
  const std::vector<uint64_t> pulses(1);
  const std::vector<int64_t> answers(1);
  CHECK_FALSE(watch.look(pulses, answers, 0.5).asks);
  CHECK_FALSE(watch.look(pulses, answers, 500).asks);  // the machine was suspended
}

TEST_CASE("a chip at 1.6 times its time for ten steps gets a factor, at 1.3 or for nine none") {
  const auto steps_until_change = [](double factor, int num_slow) {
    PaceWatch watch({{.step_s = 1, .measured = true}, {.step_s = 2, .measured = true}});
    for (int step = 1; step <= 30; ++step) {
      const double own = step <= num_slow ? factor : 1.0;
      const auto factors = watch.on_step(std::vector<double>{1.05, 2 * own});
      if (!factors) continue;
      CHECK((*factors)[0] == 1);
      CHECK((*factors)[1] == doctest::Approx(factor / 1.05));
      return step;
    }
    return -1;
  };
  CHECK(steps_until_change(1.7, 30) == 10);
  CHECK(steps_until_change(1.3, 30) == -1);
  CHECK(steps_until_change(1.7, 9) == -1);
}

TEST_CASE("what slows every chip alike changes nothing, and a chip that recovers is as it was") {
  PaceWatch alike({{.step_s = 1, .measured = true}, {.step_s = 2, .measured = true}});
  for (int step = 0; step < 30; ++step) {
    CHECK_FALSE(alike.on_step(std::vector<double>{2.5, 5.0}));
  }
  PaceWatch again({{.step_s = 1, .measured = true}, {.step_s = 2, .measured = true, .factor = 2}});
  std::optional<std::vector<double>> factors;
  for (int step = 0; step < 10; ++step) factors = again.on_step(std::vector<double>{1.0, 1.0});
  REQUIRE(factors);
  CHECK((*factors)[1] == 1);
}

TEST_CASE("a chip that was not measured is compared with its own first steps") {
  PaceWatch watch({{.step_s = 1}, {.step_s = 1}});
  for (int step = 0; step < 20; ++step) {
    CHECK_FALSE(watch.on_step(std::vector<double>{1.0, 4.0}));  // the catalogue was wrong
  }
  std::optional<std::vector<double>> factors;
  for (int step = 0; step < 10; ++step) factors = watch.on_step(std::vector<double>{1.0, 8.0});
  REQUIRE(factors);
  CHECK((*factors)[1] == doctest::Approx(2));
}

TEST_CASE("a worker takes shares before the step from which they hold, the later ones last") {
  auto [ours, theirs] = PacketSocket::make_pair();
  Control control(std::move(theirs));
  ours.send(R"({"type":"new_shares","plan_idx":3,"from_data_step":20})");
  ours.send(R"({"type":"new_shares","plan_idx":2,"from_data_step":10})");
  ours.send(R"({"type":"go"})");
  while (!control.may_train()) control.listen(1);
  CHECK_FALSE(control.take_new_shares(9));
  CHECK(control.take_new_shares(10) == 2);
  CHECK_FALSE(control.take_new_shares(11));
  ours.send(R"({"type":"new_shares","plan_idx":4,"from_data_step":20})");  // made anew
  ours.send(R"({"type":"stop_at","step":99,"with_checkpoint":true})");
  while (!control.stop_request()) control.listen(1);
  CHECK(control.take_new_shares(25) == 4);
}

TEST_CASE("snapshots become rarer while they cost much, and as frequent again once they do not") {
  SnapshotPace pace(2);
  double now_s = 100, storing_s = 0;
  pace.on_begin(now_s, storing_s);
  const auto pass = [&](double cost_s) {  // eight snapshots in a second of each
    for (int i = 0; i < 8; ++i) {
      now_s += 1;
      storing_s += cost_s;
      pace.on_begin(now_s, storing_s);
    }
  };
  pass(0.0001);
  CHECK(pace.period_steps() == 2);
  pass(0.01);  // 1 % of the time
  CHECK(pace.period_steps() == 4);
  for (int i = 0; i < 9; ++i) pass(0.01);
  CHECK(pace.period_steps() == 16);
  pass(0.003);  // neither much nor little
  CHECK(pace.period_steps() == 16);
  for (int i = 0; i < 9; ++i) pass(0.001);
  CHECK(pace.period_steps() == 2);
}

TEST_CASE("steps that were told of are done as before, later ones left out up to the others") {
  WorkerSetup setup;
  setup.told_step = 9;
  setup.left_out = {4, 7};
  for (const int64_t others : {0, 9, 12}) {
    CAPTURE(others);
    for (int64_t step = 1; step <= 9; ++step) {
      CHECK(setup.leaves_out(step, others) == (step == 4 || step == 7));
    }
    for (int64_t step = 10; step <= 14; ++step)
      CHECK(setup.leaves_out(step, others) == (step <= others));
  }
}

TEST_CASE("where the others are only rises, and a setup keeps which steps were left out") {
  auto [ours, theirs] = PacketSocket::make_pair();
  Control control(std::move(theirs));
  WorkerSetup given;
  given.first_exchange = 3;
  given.told_step = 9;
  given.left_out = {4, 7};
  ours.send(R"({"type":"open_device"})");  // as a spare is asked to
  ours.send(to_json(given));
  int num_opened = 0;
  const WorkerSetup setup = control.wait_for_setup([&] { ++num_opened; });
  CHECK(num_opened == 1);
  CHECK(setup.left_out == std::set<int64_t>{4, 7});
  CHECK(setup.told_step == 9);
  CHECK(setup.first_exchange == 3);
  CHECK_FALSE(control.has_weights());
  ours.send(R"({"type":"others_at","step":12})");
  ours.send(R"({"type":"others_at","step":10})");
  ours.send(R"({"type":"weights"})");
  while (!control.has_weights()) control.listen(1);
  CHECK(control.others_step() == 12);
}

}  // namespace
}  // namespace pelago::train
