// How long does planning take where others need hours? One process, one core, from a job and a
// fleet in memory to the plan.
#include <chrono>
#include <ctime>
#include <filesystem>

#include "base/files.h"
#include "bench/plan/plan_fleets.h"
#include "bench/report.h"
#include "plan/plan.h"
#include "plan/planner/aim/choose.h"

namespace {

using pelago::bench::Stock;

struct Question {
  const char* case_name;
  std::vector<std::vector<Stock>> sites;
  int64_t batch;
  double limit_s;
};

std::vector<Question> questions() {
  const std::vector<Stock> three = {{"a100", 256}, {"h20", 256}, {"910b", 256}};
  const std::vector<Stock> four = {{"a100", 256}, {"h20", 256}, {"910b", 256}, {"h100", 256}};
  std::vector<std::vector<Stock>> ten;
  for (int i = 0; i < 10; ++i) {
    ten.push_back({{"a100", 2000}, {"h20", 3000}, {"910b", 5000}});
  }
  return {{"3x256", {three}, 2048, 2},
          {"4x1024", {four, four, four, four}, 8192, 10},
          {"100000", ten, 100'000, 60}};
}

}  // namespace

int main(int argc, char** argv) {
  using namespace pelago;
  bench::Program program(
      "plan_time", "How long does planning take?", {"3x256", "4x1024", "100000"});
  std::string only, plans, objective;
  program.options().add_option("--model", only, "one of 7b, 13b, 34b, 70b, 100b; else all");
  program.options().add_option(
      "--objective", objective, "choose the chips, too: tokens/joule; within half a minute");
  program.options().add_option(
      "--plans", plans, "folder for plan.json of each, so that two versions can be compared");
  return program.run(argc, argv, [&](bench::Report& report) {
    const chips::Catalogue catalogue = chips::Catalogue::built_in();
    for (const Question& question : questions()) {
      if (report.case_name != question.case_name) continue;
      const plan::FleetConfig fleet = bench::fleet_of(question.sites, catalogue);
      double longest_s = 0;
      for (const std::string model : {"7b", "13b", "34b", "70b", "100b"}) {
        if (!only.empty() && only != model) continue;
        plan::JobConfig job = bench::large_job(model, question.batch);
        if (!objective.empty()) job.aim.objective = objective;
        const auto begin = std::chrono::steady_clock::now();
        const std::clock_t cpu_begin = std::clock();
        const plan::ChosenFleet chosen = plan::choose_devices(job, fleet, catalogue, nullptr, 1);
        const plan::Plan& plan = chosen.plan;
        const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
        const double cpu_s = static_cast<double>(std::clock() - cpu_begin) / CLOCKS_PER_SEC;
        longest_s = std::max(longest_s, cpu_s);
        if (!plans.empty()) {
          const std::string name = fmt::format("{}-{}.json", report.case_name, model);
          write_file(std::filesystem::path(plans) / name, plan::to_json(plan));
        }
        report.metrics["plan_" + model + "_cpu_s"] = cpu_s;
        report.metrics["plan_" + model + "_wall_s"] = took.count();
        report.metrics["found_of_bound_" + model] = plan.predicted_tokens_s / plan.bound_tokens_s;
        report.metrics["found_" + model + "_tokens_s"] = plan.predicted_tokens_s;
        if (!objective.empty()) {
          report.metrics["plans_" + model] = static_cast<double>(chosen.num_plans);
          fmt::print(stderr, "{}: left free {}\n", model, chosen.left_free);
        }
        fmt::print(stderr, "{}: {:.2f} s, bound by {}\n", model, cpu_s, plan.sites[0].bound_by);
      }
      // The other way round than elsewhere: seconds over the limit, so 1 or less is good.
      report.metrics["longest_cpu_s"] = longest_s;
      constexpr double kChoosingLimit_s = 30;
      report.ratio = longest_s / (objective.empty() ? question.limit_s : kChoosingLimit_s);
      report.target = 1;
      report.is_cost = true;
      report.notes.push_back("ratio is seconds of one core over the limit");
    }
  });
}
