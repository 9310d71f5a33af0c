// pelago train: from a job and a fleet to a trained, exported model. pelago coordinator: the same
// without starting the sites, which join from any host.
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdio>
#include <memory>

#include "base/error.h"
#include "base/text/json.h"
#include "cli/commands/commands.h"
#include "cli/commands/train/open_run.h"
#include "cli/commands/web/run_dashboard.h"
#include "cli/event_line.h"
#include "cli/many_sites.h"
#include "cli/run_view.h"
#include "cli/setup.h"
#include "cli/terminal.h"
#include "plan/across/joint.h"
#include "train/single_site.h"

namespace pelago::cli {

namespace {

// A signal handler can reach nothing but a global: counted here, read by whoever runs the sites.
std::atomic<int> stop_requests{0};
static_assert(std::atomic<int>::is_always_lock_free);

void count_stop_request(int) { stop_requests.fetch_add(1); }

constexpr double kPlainEvery_s = 10;
constexpr const char* kStoppedElsewhere =
    "stopped, with a checkpoint at every site that trained; go on with the same command and "
    "--resume, and start each site again";
constexpr const char* kDoneElsewhere =
    "done; the model is with the sites: pelago export RUN-DIR --out model, at any of them";

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

// Sites that exchange all hold the model: one checkpoint is enough to go on, and who has none
// joins. Sites in step need it everywhere.
void say_stopped(const TrainArguments& arguments, const OpenRun& run) {
  const std::vector<std::string> without = sites_without_checkpoint(run.folder, run.plan);
  const bool can_go_on =
      plan::is_joint(run.plan) ? without.empty() : without.size() < run.plan.sites.size();
  if (!can_go_on) {
    throw Failure("stopped before the first checkpoint; begin again with --fresh",
                  kExitInterrupted);
  }
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
  OpenRun run = is_shared ? open_shared_run(arguments, setup, *seat)
                          : open_run(arguments, setup, stop_requests);
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
