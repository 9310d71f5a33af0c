// How fast does virtual time pass? Case "queue": the event queue by itself. Case "fleet": 1,024
// devices, 128 pipelines of 8 uneven stages with 16 microbatches, 100 optimizer steps in which
// every device is late by chance, so that each step is played event by event. One core.
#include <chrono>

#include "base/rng.h"
#include "bench/report.h"
#include "plan/simulation/event_queue.h"
#include "plan/simulation/run/site_clock.h"
#include "plan/simulation/step/step_play.h"

namespace pelago::bench {
namespace {

double seconds_of(const auto& work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

/// The usual measure of such a queue ("hold"): take the first, put one a random while later.
void measure_queue(Report& report) {
  constexpr uint32_t kPending = 4096;
  constexpr uint64_t kEvents = 10'000'000;
  plan::EventQueue queue;
  Rng rng(1);
  for (uint32_t i = 0; i < kPending; ++i) queue.push(rng.next_uniform(), 0, i);
  const double seconds = seconds_of([&] {
    for (uint64_t i = 0; i < kEvents; ++i) {
      const plan::Event event = queue.pop();
      queue.push(event.at_s + rng.next_uniform(), 0, event.who);
    }
  });
  report.metrics["events_s"] = static_cast<double>(kEvents) / seconds;
  report.ratio = report.metrics["events_s"] / 1e6;
  report.target = 1;
}

plan::SiteRun large_site() {
  constexpr size_t kPipelines = 128, kStages = 8, kMicrobatches = 16;
  plan::SiteRun run;
  for (size_t p = 0; p < kPipelines; ++p) {
    plan::PipelineRun pipeline;
    for (size_t s = 0; s < kStages; ++s) {
      const double pace = 1 + 0.05 * static_cast<double>((p + s) % 4);
      plan::StageCosts costs;
      costs.forward = {1e-4, 0.010 * pace};
      costs.backward = {1e-4, 0.020 * pace};
      costs.copy = {5e-6, 1e-4};
      costs.message = {1e-5, 2e-4};
      costs.update_s = 0.01;
      pipeline.stages.push_back(costs);
    }
    pipeline.sequences.assign(kMicrobatches, 1);
    run.pipelines.push_back(std::move(pipeline));
  }
  for (size_t s = kStages; s-- > 0;) {
    for (int bucket = 1; bucket <= 4; ++bucket) {
      plan::Reduction reduction;
      for (size_t p = 0; p < kPipelines; ++p) reduction.members.push_back({p, s, 0.25 * bucket});
      reduction.seconds = 0.004;
      run.reductions.push_back(std::move(reduction));
    }
  }
  return run;
}

void measure_fleet(Report& report) {
  constexpr int kSteps = 100;
  plan::StepPlay play(large_site());
  Rng rng(1);
  std::vector<double> factors(play.num_stages());
  double virtual_s = 0;
  const double seconds = seconds_of([&] {
    for (int step = 0; step < kSteps; ++step) {
      for (double& factor : factors) factor = 1 + 0.02 * plan::largest_normal(1, rng);
      virtual_s += play.play(factors).step_s;
    }
  });
  report.metrics["devices"] = static_cast<double>(play.num_stages());
  report.metrics["steps"] = kSteps;
  report.metrics["events"] = static_cast<double>(play.num_events());
  report.metrics["events_s"] = static_cast<double>(play.num_events()) / seconds;
  report.metrics["wall_s"] = seconds;
  report.metrics["virtual_s"] = virtual_s;
  report.ratio = 5 / seconds;
  report.target = 1;
}

}  // namespace
}  // namespace pelago::bench

int main(int argc, char** argv) {
  using namespace pelago::bench;
  Program program("simulator", "How fast does virtual time pass?", {"queue", "fleet"});
  return program.run(argc, argv, [](Report& report) {
    report.case_name == "queue" ? measure_queue(report) : measure_fleet(report);
  });
}
