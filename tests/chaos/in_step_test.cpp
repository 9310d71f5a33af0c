// One pipeline over two sites whose line breaks: the packets between them are dropped, those to the
// coordinator are not.
#include <doctest/doctest.h>

#include <algorithm>

#include "base/files.h"
#include "chaos/runner.h"
#include "chaos/scene.h"
#include "cli/small_run.h"

namespace pelago::chaos {
namespace {

constexpr double kStepsS = 120;  // in which sites have started and done some steps
constexpr double kGiveUpS =
    40;  // a line gives its frames up after 10 s, sooner than a worker waits

LiveRunOptions two_in_step() {
  LiveRunOptions options;
  options.num_sites = 2;
  options.in_step = true;
  options.site_sequences = 4;
  options.microbatch_sequences = 1;
  options.checkpoint_every_steps = 10;
  options.has_packets = true;
  return options;
}

std::optional<std::string> obstacle() {
  const auto line = wan::PacketLine::obstacle();
  return line ? line : Cut::obstacle();
}

class BrokenLine {
 public:
  BrokenLine()
      : scratch_("in-step"),
        run_((testing::prepare(scratch_.path()), scratch_.path() / "run"),
             scratch_.path() / "data",
             program_path().parent_path() / "pelago",
             two_in_step()) {
    run_.start(/*steps=*/15, kStepsS);
  }
  LiveRun& run() { return run_; }
  /// Until the line is whole again, until() holds and, before it is mended, `seconds` are over.
  int64_t cut(
      double seconds, const std::function<bool()>& until = [] { return true; }) {
    const std::string there = run_.address_of(run_.sites()[1]);
    const Cut cut(run_.space_of(run_.sites()[0]), {.drop_from = {there}, .drop_to = {there}});
    run_.wait_until([] { return false; }, seconds);
    run_.wait_until(until, kGiveUpS);
    return cut.num_dropped();
  }
  /// Both do so many steps more than either has done so far.
  bool goes_on(int64_t steps) {
    int64_t from = 0;
    for (const std::string& site : run_.sites()) {
      from = std::max(from, run_.records().last_step(site));
    }
    return run_.wait_until(
        [&] {
          return std::all_of(run_.sites().begin(), run_.sites().end(), [&](const auto& site) {
            return run_.records().last_step(site) >= from + steps;
          });
        },
        kStepsS);
  }

 private:
  testing::Scratch scratch_;
  LiveRun run_;
};

/// Every step that was done more than once had the same loss each time. Returns how many.
int64_t num_repeated_alike(const RunRecords& records) {
  std::map<std::pair<std::string, int64_t>, std::string> first;
  int64_t repeated = 0;
  for (const StepLine& line : records.steps()) {
    const auto [known, is_new] = first.try_emplace({line.site, line.step}, line.loss);
    if (is_new) continue;
    ++repeated;
    CHECK(known->second == line.loss);
  }
  return repeated;
}

TEST_CASE("a line between sites in step that is cut for 3 s costs these seconds, and no start") {
  if (const auto why = obstacle()) {
    MESSAGE("not run: " << *why);
    return;
  }
  BrokenLine broken;
  CHECK(broken.cut(3) > 0);
  CHECK(broken.goes_on(5));
  CHECK(broken.run().records().events("restarting_together").empty());
  CHECK(num_repeated_alike(broken.run().records()) == 0);
  CHECK(broken.run().stop(kStepsS) < kStepsS);
}

TEST_CASE("a line between sites in step that stays cut makes all begin again from one checkpoint") {
  if (const auto why = obstacle()) {
    MESSAGE("not run: " << *why);
    return;
  }
  BrokenLine broken;
  RunRecords& records = broken.run().records();
  const double begin_s = steady_s();
  CHECK(broken.cut(0, [&] { return !records.events("restarting_together").empty(); }) > 0);
  const auto restarts = records.events("restarting_together");
  REQUIRE(restarts.size() >= 1);
  INFO("noticed after " << steady_s() - begin_s << " s: " << restarts[0].dump());
  CHECK(restarts[0].at("reason").get<std::string>().find("line to site") != std::string::npos);
  CHECK(broken.goes_on(5));
  CHECK(num_repeated_alike(records) > 0);
  CHECK(records.loss_curve("lingang") == records.loss_curve("guizhou"));
  CHECK(broken.run().stop(kStepsS) < kStepsS);
}

}  // namespace
}  // namespace pelago::chaos
