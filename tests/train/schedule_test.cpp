// The schedule is all that sites share without talking, so its laws are checked for many shapes.
#include <doctest/doctest.h>
#include <rapidcheck.h>

#include <map>
#include <vector>

#include "train/messages.h"

namespace pelago::train {
namespace {

ExchangeSchedule any_schedule() {
  const int64_t num_fragments = *rc::gen::inRange<int64_t>(1, 9);
  const int64_t interval = *rc::gen::inRange<int64_t>(1, 12);
  return {.inner_steps = num_fragments * interval,
          .num_fragments = num_fragments,
          .overlap_steps = *rc::gen::inRange<int64_t>(0, interval),
          .num_steps = *rc::gen::inRange<int64_t>(1, 300)};
}

TEST_CASE("any H steps in the middle of a run take a snapshot of every fragment exactly once") {
  CHECK(rc::check([] {
    const ExchangeSchedule schedule = any_schedule();
    const int64_t last = schedule.num_steps - schedule.overlap_steps - schedule.inner_steps;
    RC_PRE(last >= 0);
    const int64_t first = *rc::gen::inRange<int64_t>(0, last + 1);
    std::map<int64_t, int> times;
    for (int64_t step = first + 1; step <= first + schedule.inner_steps; ++step) {
      const int64_t exchange_idx = schedule.snapshot_after(step);
      if (exchange_idx >= 0) ++times[exchange_idx % schedule.num_fragments];
    }
    RC_ASSERT(times.size() == static_cast<size_t>(schedule.num_fragments));
    for (const auto& [fragment, count] : times) RC_ASSERT(count == 1);
  }));
}

TEST_CASE("every regular exchange merges tau steps after its snapshot, within the run, in order") {
  CHECK(rc::check([] {
    const ExchangeSchedule schedule = any_schedule();
    std::vector<int64_t> snapshots, merges;
    for (int64_t step = 0; step <= schedule.num_steps; ++step) {
      if (schedule.snapshot_after(step) >= 0) snapshots.push_back(step);
      if (schedule.merge_after(step) >= 0) merges.push_back(step);
    }
    RC_ASSERT(static_cast<int64_t>(snapshots.size()) == schedule.num_regular());
    RC_ASSERT(merges.size() == snapshots.size());
    for (size_t i = 0; i < merges.size(); ++i) {
      RC_ASSERT(merges[i] == snapshots[i] + schedule.overlap_steps);
      RC_ASSERT(schedule.snapshot_after(snapshots[i]) == static_cast<int64_t>(i));
      RC_ASSERT(schedule.merge_after(merges[i]) == static_cast<int64_t>(i));
    }
  }));
}

TEST_CASE("a step is quiet exactly when every snapshot taken so far was merged") {
  CHECK(rc::check([] {
    const ExchangeSchedule schedule = any_schedule();
    int64_t in_flight = 0;
    for (int64_t step = 0; step <= schedule.num_steps; ++step) {
      if (schedule.snapshot_after(step) >= 0) ++in_flight;
      if (schedule.merge_after(step) >= 0) --in_flight;
      RC_ASSERT(schedule.is_quiet(step) == (in_flight == 0));
    }
    RC_ASSERT(in_flight == 0);
  }));
}

TEST_CASE(
    "a site that joins after an exchange starts where that exchange merges, at a quiet step") {
  CHECK(rc::check([] {
    const ExchangeSchedule schedule = any_schedule();
    RC_ASSERT(schedule.first_step_after(-1) == 0);
    for (int64_t k = 0; k < schedule.num_regular(); ++k) {
      RC_ASSERT(schedule.merge_after(schedule.first_step_after(k)) == k);
      RC_ASSERT(schedule.is_quiet(schedule.first_step_after(k)));
    }
    RC_ASSERT(schedule.first_step_after(schedule.num_regular()) <= schedule.num_steps);
  }));
}

TEST_CASE("each multiple of the checkpoint interval has one checkpoint, at the next quiet step") {
  const ExchangeSchedule schedule{
      .inner_steps = 12, .num_fragments = 3, .overlap_steps = 2, .num_steps = 60};
  std::vector<int64_t> steps;
  for (int64_t step = 0; step <= 30; ++step) {
    if (schedule.is_checkpoint_step(step, 8)) steps.push_back(step);
  }
  CHECK(steps == std::vector<int64_t>{10, 18, 26});  // 8, 16 and 24 have a snapshot in flight
  CHECK_FALSE(schedule.is_checkpoint_step(10, 0));
}

TEST_CASE("a site alone exchanges nothing and is always quiet") {
  const ExchangeSchedule alone{.num_steps = 100};
  for (int64_t step = 0; step <= 100; ++step) {
    CHECK(alone.snapshot_after(step) == -1);
    CHECK(alone.merge_after(step) == -1);
    CHECK(alone.is_quiet(step));
  }
  CHECK(alone.num_regular() == 0);
}

TEST_CASE("a step report survives JSON, a loss that is not a number included") {
  StepReport report;
  report.site = "lingang";
  report.step = 7;
  report.loss = std::nan("");
  report.grad_norm = 0.1 + 0.2;
  report.skipped = true;
  report.ranks.push_back({.device = "cpu",
                          .tokens = 512,
                          .compute_s = 1.0 / 3,
                          .parts = {.bubble_s = 0.25, .optimizer_s = 0.5}});
  const StepReport back = step_report_from_json(to_json(report));
  CHECK(back.site == "lingang");
  CHECK(back.step == 7);
  CHECK(std::isnan(back.loss));
  CHECK(back.grad_norm == report.grad_norm);
  CHECK(back.skipped);
  REQUIRE(back.ranks.size() == 1);
  CHECK(back.ranks[0].tokens == 512);
  CHECK(back.ranks[0].parts.bubble_s == 0.25);
  CHECK(back.ranks[0].parts.optimizer_s == 0.5);
  CHECK(std::abs(back.ranks[0].compute_s - report.ranks[0].compute_s) < 1e-6);  // to a microsecond
}

}  // namespace
}  // namespace pelago::train
