#include "cli/commands/train/open_run.h"

#include <algorithm>
#include <filesystem>
#include <utility>

#include "base/error.h"
#include "base/files.h"
#include "plan/planner/aim/choose.h"
#include "plan/planner/aim/part_of_fleet.h"

namespace pelago::cli {

namespace {

plan::Plan plan_anew(const TrainArguments& arguments,
                     const Setup& setup,
                     const plan::JobConfig& job,
                     const train::RunFolder& folder) {
  // A coordinator has none of the devices: what was not measured at the sites is not measured.
  const bool no_probe =
      arguments.no_probe || (!arguments.starts_agents && arguments.probes.empty());
  const std::optional<plan::Probe> probe = get_probe(setup, arguments.probes, no_probe);
  if (probe) write_file(folder.path() / "probe.json", plan::to_json(*probe));
  plan::ChosenFleet chosen = plan::choose_devices(
      job, setup.fleet, setup.catalogue, probe ? &*probe : nullptr, host_cores());
  return std::move(chosen.plan);
}

/// Sites in step share no batch, so those that are left can take all of it.
plan::Plan plan_with_fewer_sites(const TrainArguments& arguments,
                                 const Setup& setup,
                                 const plan::Plan& before,
                                 const train::RunFolder& folder) {
  plan::JobConfig job = setup.job;
  job.train.batch_sequences = before.batch_sequences;
  job.train.exact_batch = true;
  job.train.steps = before.steps;
  job.sites.across = "pipeline";
  return plan_anew(arguments, setup, job, folder);
}

// The plan of a run that goes on is the one it began with: another would move the samples.
plan::Plan choose_plan(const TrainArguments& arguments,
                       const Setup& setup,
                       const train::RunFolder& folder) {
  if (arguments.resume) {
    if (!std::filesystem::exists(folder.path() / "plan.json")) {
      fail(
          "{}: no checkpoint to resume from, the run ended before it began; start anew with "
          "--fresh",
          folder.path().string());
    }
    const plan::Plan before = train::read_run_plan(folder.path());
    const bool is_whole = std::ranges::all_of(before.sites, [&](const plan::SitePlan& site) {
      return std::ranges::find(setup.fleet.sites, site.name, &plan::FleetSite::name) !=
             setup.fleet.sites.end();
    });
    return is_whole ? before : plan_with_fewer_sites(arguments, setup, before, folder);
  }
  if (!arguments.plan.empty()) {
    plan::Plan plan = plan::plan_from_json(read_text_file(arguments.plan), arguments.plan);
    plan::check_plan_fits(plan, setup.job, setup.fleet, setup.catalogue, arguments.plan);
    return plan;
  }
  return plan_anew(arguments, setup, setup.job, folder);
}

/// A run folder made now. It goes again if no plan comes of it, so that the next try, with a better
/// fleet perhaps, is not told that the run exists.
class NewRun {
 public:
  explicit NewRun(std::filesystem::path path) : path_(std::move(path)) {}
  NewRun(const NewRun&) = delete;
  NewRun& operator=(const NewRun&) = delete;
  ~NewRun() {
    std::error_code ignored;
    if (!path_.empty()) std::filesystem::remove_all(path_, ignored);
  }
  void keep() { path_.clear(); }

 private:
  std::filesystem::path path_;
};

std::string chips_left_free(const Setup& setup, const plan::Plan& plan) {
  const plan::FleetConfig used =
      plan::part_of_fleet(plan, setup.fleet, setup.catalogue, "plan.json");
  return plan::left_free(setup.fleet, used, setup.catalogue);
}

train::RunStart start_of(const TrainArguments& arguments) {
  return arguments.resume  ? train::RunStart::kResume
         : arguments.fresh ? train::RunStart::kFresh
                           : train::RunStart::kNew;
}

// To go on with a run of which this machine has nothing, its copies must have the plan.
train::RunFolder open_folder(const Setup& setup, train::RunStart start) {
  const auto path = std::filesystem::path(setup.job.runs_dir) / setup.job.name;
  if (start == train::RunStart::kResume && !std::filesystem::exists(path)) {
    if (const std::optional<std::string> plan = fetch_plan_of_run(setup.job)) {
      const auto folder = train::RunFolder::open(setup.job, setup.fleet, train::RunStart::kNew);
      write_file(folder.path() / "plan.json", *plan);
      return folder;
    }
  }
  return train::RunFolder::open(setup.job, setup.fleet, start);
}

}  // namespace

OpenRun open_run(const TrainArguments& arguments,
                 const Setup& setup,
                 const std::atomic<int>& stop_requests) {
  auto folder = open_folder(setup, start_of(arguments));
  NewRun new_run(arguments.resume ? std::filesystem::path() : folder.path());
  plan::Plan plan = choose_plan(arguments, setup, folder);
  if (stop_requests.load() > 0) throw Failure("stopped before the first step", kExitInterrupted);
  // A run that goes on may have lost devices, or have been joined by others, since it was planned.
  std::string left_free = arguments.resume ? "" : chips_left_free(setup, plan);
  folder.write_plan(plan);
  new_run.keep();
  RunView view = arguments.resume ? read_run(folder.path()) : RunView(plan);
  return {.folder = std::move(folder),
          .plan = std::move(plan),
          .view = std::move(view),
          .left_free = std::move(left_free)};
}

OpenRun open_shared_run(const TrainArguments& arguments, const Setup& setup, Seat& seat) {
  if (seat.job_toml != setup.job.source_toml) {
    fail_usage(
        "--state {}: the run there is of another job than {}; give that job and its --set, "
        "another prefix, or --fresh",
        arguments.state,
        arguments.job);
  }
  const auto path = std::filesystem::path(setup.job.runs_dir) / setup.job.name;
  const bool is_known = std::filesystem::exists(path / "job.toml");
  auto folder = train::RunFolder::open(
      setup.job, setup.fleet, is_known ? train::RunStart::kResume : train::RunStart::kNew);
  plan::Plan plan = plan::plan_from_json(seat.plan_json, arguments.state + ": plan.json");
  folder.write_plan(plan);
  fetch_run_files(seat, folder.path());
  RunView view = is_known ? read_run(folder.path()) : RunView(plan);
  return {.folder = std::move(folder), .plan = std::move(plan), .view = std::move(view)};
}

}  // namespace pelago::cli
