// pelago train: from a job and a fleet to a trained, exported model. pelago coordinator: the same
// without starting the sites, which join from any host.
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <memory>

#include "base/error.h"
#include "base/files.h"
#include "base/log.h"
#include "base/text/json.h"
#include "cli/commands/commands.h"
#include "cli/commands/web/run_dashboard.h"
#include "cli/event_line.h"
#include "cli/many_sites.h"
#include "cli/run_view.h"
#include "cli/setup.h"
#include "cli/terminal.h"
#include "plan/across/joint.h"
#include "plan/planner/aim/choose.h"
#include "plan/planner/aim/part_of_fleet.h"
#include "train/single_site.h"

namespace pelago::cli {

namespace {

constexpr double kPlainEvery_s = 10;
constexpr const char* kStoppedElsewhere =
    "stopped, with a checkpoint at every site that trained; go on with the same command and "
    "--resume, and start each site again";
constexpr const char* kDoneElsewhere =
    "done; the model is with the sites: pelago export RUN-DIR --out model, at any of them";

struct TrainArguments {
  std::string job, fleet, plan, listen = "127.0.0.1:0";
  std::vector<std::string> overrides, probes;
  bool resume = false, fresh = false, no_probe = false;
  bool starts_agents = true;
  double token_hours = 24;
  int64_t token_uses = 1;
  std::string state, state_certs;
  std::optional<int> web;  // port of the dashboard, if there shall be one
};

// A signal handler can reach nothing but a global: counted here, read by whoever runs the sites.
std::atomic<int> stop_requests{0};
static_assert(std::atomic<int>::is_always_lock_free);

void count_stop_request(int) { stop_requests.fetch_add(1); }

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

[[noreturn]] void fail_interrupted(const std::string& what) {
  throw Failure(what, kExitInterrupted);
}

/// Sites that were stopped before their first checkpoint: while they started, or caught up.
std::vector<std::string> sites_without_checkpoint(const train::RunFolder& folder,
                                                  const plan::Plan& plan) {
  std::vector<std::string> without;
  for (const plan::SitePlan& site : plan.sites) {
    if (!train::has_checkpoint(folder.site_dir(site.name) / "checkpoints")) {
      without.push_back(site.name);
    }
  }
  return without;
}

int64_t saved_step(const std::string& fields_json) {
  return parse_json(fields_json).at("step").get<int64_t>();
}

bool train_one_site(const train::RunFolder& folder,
                    const Setup& setup,
                    const plan::Plan& plan,
                    bool resume,
                    RunView& view,
                    LiveLine& line) {
  const auto copies = open_one_site_copies(folder, setup.job, plan, resume);
  const auto record_copies = [&] {
    if (!copies) return;
    for (const auto& [name, fields] : copies->take_events()) {
      folder.record_event(name, fields);
      if (const auto text = event_line(name, fields)) line.print_below(*text);
    }
  };
  train::SingleSiteCallbacks callbacks;
  callbacks.on_step = [&](const train::StepReport& report) {
    view.add(report);
    line.draw(view.progress_line(), kPlainEvery_s);
    record_copies();
  };
  callbacks.on_evaluation = [&](const train::EvaluationReport& report) {
    view.add(report);
    line.print_below(fmt::format("step {}: held-out loss {:.4f}, {:.4f} bits per byte",
                                 report.step,
                                 report.loss,
                                 report.bits_per_byte));
  };
  callbacks.on_event = [&](const std::string& name, const std::string& fields) {
    if (const auto text = event_line(name, fields)) line.print_below(*text);
    if (copies && name == "checkpoint_saved") copies->offer(saved_step(fields));
  };
  const train::SingleSiteSummary summary =
      train::run_single_site(folder, plan, setup.job, stop_requests, resume, callbacks);
  if (copies) copies->finish();
  record_copies();
  line.end();
  return summary.stopped;
}

/// The run folder, its plan and what is known of it so far.
struct OpenRun {
  train::RunFolder folder;
  plan::Plan plan;
  RunView view;
  std::string left_free = {};  // chips of the fleet that a new run does not use
};

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

OpenRun open_run(const TrainArguments& arguments, const Setup& setup) {
  auto folder = open_folder(setup, start_of(arguments));
  NewRun new_run(arguments.resume ? std::filesystem::path() : folder.path());
  plan::Plan plan = choose_plan(arguments, setup, folder);
  if (stop_requests.load() > 0) fail_interrupted("stopped before the first step");
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

// A run that another coordinator has begun: its plan, its certificates, and this host's own record.
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

// Sites that exchange all hold the model: one checkpoint is enough to go on, and who has none
// joins. Sites in step need it everywhere.
void say_stopped(const TrainArguments& arguments, const OpenRun& run) {
  const std::vector<std::string> without = sites_without_checkpoint(run.folder, run.plan);
  const bool can_go_on =
      plan::is_joint(run.plan) ? without.empty() : without.size() < run.plan.sites.size();
  if (!can_go_on) fail_interrupted("stopped before the first checkpoint; begin again with --fresh");
  if (!without.empty()) {
    std::fprintf(stderr,
                 "%s had no checkpoint yet, and will join the others\n",
                 fmt::format("site {}", fmt::join(without, ", site ")).c_str());
  }
  std::fprintf(stderr,
               "stopped with a checkpoint; go on with: pelago train %s --fleet %s --resume\n",
               arguments.job.c_str(),
               arguments.fleet.c_str());
}

void say_how_it_ended(const TrainArguments& arguments,
                      const Globals& globals,
                      const OpenRun& run,
                      bool stopped) {
  if (!arguments.starts_agents) {
    std::fprintf(stderr, "%s\n", (stopped ? kStoppedElsewhere : kDoneElsewhere));
    if (stopped) return;
  }
  if (stopped) return say_stopped(arguments, run);
  std::printf("%s\n",
              globals.json ? summary_json(run.view, run.folder.path()).c_str()
                           : summary_table(run.view, run.folder.path()).c_str());
}

/// Returns whether this process is done with the run; if not, another coordinator goes on with it.
bool carry_out(const TrainArguments& arguments,
               const Globals& globals,
               const Setup& setup,
               Seat* seat) {
  const bool is_shared = seat != nullptr && !seat->plan_json.empty();
  OpenRun run = is_shared ? open_shared_run(arguments, setup, *seat) : open_run(arguments, setup);
  if (!globals.json && !globals.quiet) {
    std::fprintf(stderr, "%s\n", plan::to_table(run.plan).c_str());
  }
  if (!run.left_free.empty()) {
    std::fprintf(stderr, "left free by this plan: %s\n", run.left_free.c_str());
  }
  std::optional<RunDashboard> dashboard;
  if (arguments.web) {
    dashboard.emplace(run.folder.path(), *arguments.web);
    std::fprintf(stderr, "%s\n", dashboard->words().c_str());
  }
  LiveLine line(STDERR_FILENO);
  ManySitesOutcome outcome;
  if (run.plan.sites.size() == 1) {
    if (!arguments.starts_agents) fail_usage("one site needs no coordinator: pelago train");
    outcome.stopped = train_one_site(run.folder, setup, run.plan, arguments.resume, run.view, line);
  } else {
    const ManySitesStart start_options{
        .resume = arguments.resume,
        .listen = arguments.listen,
        .starts_agents = arguments.starts_agents,
        .token_valid_s = static_cast<int64_t>(3600 * arguments.token_hours),
        .token_uses = arguments.token_uses,
        .seat = seat};
    outcome =
        train_many_sites(run.folder, setup, run.plan, start_options, stop_requests, run.view, line);
  }
  if (outcome.deposed) return false;
  run.folder.record_event("summary", summary_json(run.view, run.folder.path()));
  say_how_it_ended(arguments, globals, run, outcome.stopped);
  return true;
}

// Stands by, coordinates, and stands by again if another has taken over.
void coordinate_in_turn(TrainArguments arguments, const Globals& globals, const Setup& setup) {
  bool is_done = false;
  while (!is_done) {
    const std::unique_ptr<Seat> seat =
        take_seat({.state = arguments.state,
                   .certs_dir = arguments.state_certs,
                   .who = fmt::format("{} (process {})", arguments.listen, ::getpid()),
                   .fresh = arguments.fresh},
                  stop_requests);
    if (!seat) {
      std::fprintf(stderr, "stopped while standing by; the run goes on\n");
      return;
    }
    is_done = carry_out(arguments, globals, setup, seat.get());
    arguments.resume = arguments.fresh = false;
  }
}

void run_train(const TrainArguments& arguments, const Globals& globals) {
  if (arguments.resume && arguments.fresh)
    fail_usage("--resume and --fresh exclude each other; give one");
  if (arguments.resume && !arguments.plan.empty())
    fail_usage("--resume goes on with the plan of the run; leave --plan out");
  const Setup setup = read_setup(arguments.job, arguments.fleet, arguments.overrides);
  if (!setup.job.experts.is_dense()) {
    fail_usage(
        "{}: model.num_experts = {}: the trainer has dense blocks only; such a job can be planned, "
        "with `pelago plan --no-probe`",
        arguments.job,
        setup.job.experts.num_experts);
  }
  std::signal(SIGINT, count_stop_request);
  std::signal(SIGTERM, count_stop_request);
  if (arguments.state.empty()) {
    carry_out(arguments, globals, setup, nullptr);
  } else {
    coordinate_in_turn(arguments, globals, setup);
  }
}

void add_shared(CLI::App& command, TrainArguments& arguments) {
  command.add_option("job", arguments.job, "job.toml: model, data and training")->required();
  command.add_option("--fleet", arguments.fleet, "fleet.toml: sites, devices and lines")
      ->required();
  command.add_option("--set", arguments.overrides, "override a field, as section.key=value");
  command.add_option("--plan",
                     arguments.plan,
                     "plan.json of `pelago plan --out`, edited or not; nothing is measured then");
  command.add_flag("--resume", arguments.resume, "go on from the newest good checkpoint");
  command.add_flag("--fresh", arguments.fresh, "delete the run folder and start anew");
  command
      .add_option("--web",
                  arguments.web,
                  "show the run at this port of this machine while it lasts; 0: any free port")
      ->check(CLI::Range(0, 65535));
}

}  // namespace

void add_train(CLI::App& app, Globals& globals) {
  auto arguments = std::make_shared<TrainArguments>();
  CLI::App* command = add_command(
      app,
      globals,
      "train",
      "train one model over every site and device of a fleet",
      "  pelago train examples/two-sites.job.toml --fleet examples/two-sites.fleet.toml\n"
      "  pelago train job.toml --fleet fleet.toml --set train.lr=1e-3 --set train.minutes=30\n"
      "  pelago train job.toml --fleet fleet.toml --plan plan.json      as a person edited it\n"
      "  pelago train job.toml --fleet fleet.toml --resume\n"
      "  pelago train job.toml --fleet fleet.toml --web 8765      with a dashboard\n"
      "\nCtrl-C saves a checkpoint and leaves; twice leaves at once.\n");
  add_shared(*command, *arguments);
  command
      ->add_option("--probe",
                   arguments->probes,
                   "probe.json of `pelago probe`, once for each host; else the devices are "
                   "measured first")
      ->allow_extra_args(false);
  command->add_flag(
      "--no-probe", arguments->no_probe, "measure nothing: shares come from the catalogue");
  command
      ->add_option("--listen",
                   arguments->listen,
                   "HOST:PORT where the coordinator of several sites listens; port 0: any free one")
      ->capture_default_str();
  command->callback([arguments, &globals] { run_train(*arguments, globals); });
}

void add_coordinator(CLI::App& app, Globals& globals) {
  auto arguments = std::make_shared<TrainArguments>();
  arguments->starts_agents = false;
  CLI::App* command = add_command(
      app,
      globals,
      "coordinator",
      "hold a run together whose sites are on other hosts",
      "  pelago coordinator job.toml --fleet fleet.toml --listen 10.0.0.7:4000\n"
      "  pelago coordinator job.toml --fleet fleet.toml --listen 10.0.0.7:4000 --probe probe.json\n"
      "  pelago coordinator job.toml --fleet fleet.toml --listen 10.0.0.7:4000 --resume\n"
      "  pelago coordinator job.toml --fleet fleet.toml --listen 10.0.0.7:4000 \\\n"
      "      --state etcd://10.0.0.1:2379,10.0.0.2:2379,10.0.0.3:2379/two-sites\n"
      "\nThe last form, started on several hosts, coordinates on one of them; another takes over "
      "within\n"
      "seconds if it dies. Give sites all of them: pelago agent --join A,B. etcd then holds the "
      "run's\n"
      "secrets: keep it among trusted hosts, or use etcds://.\n"
      "\nIt makes a join token for each site and waits for all of them: pelago agent --help.\n"
      "It measures nothing: give a probe.json of the sites, or shares come from the catalogue.\n");
  add_shared(*command, *arguments);
  command
      ->add_option("--probe",
                   arguments->probes,
                   "probe.json, measured at the sites with `pelago probe --site`, once for each")
      ->allow_extra_args(false);
  command->add_option("--listen", arguments->listen, "HOST:PORT where sites join")->required();
  command->add_option("--state",
                      arguments->state,
                      "etcd://HOST:PORT[,HOST:PORT...]/PREFIX, where the run's state is kept so "
                      "that another coordinator can take over; etcds:// for TLS");
  command->add_option("--state-certs",
                      arguments->state_certs,
                      "of etcds://: ca.pem, and client.pem and client.key where etcd wants them");
  command->add_option("--token-hours", arguments->token_hours, "how long a join token holds")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command
      ->add_option(
          "--token-uses", arguments->token_uses, "machines or folders that a token lets in")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->callback([arguments, &globals] { run_train(*arguments, globals); });
}

}  // namespace pelago::cli
