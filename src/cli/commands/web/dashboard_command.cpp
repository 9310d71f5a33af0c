// pelago dashboard: a run, live or finished, as a page. It reads the run folder and nothing else.
#include <fmt/format.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "base/config.h"
#include "base/error.h"
#include "base/text/json.h"
#include "cli/commands/commands.h"
#include "serve/dashboard/dashboard.h"

namespace pelago::cli {

namespace {

namespace fs = std::filesystem;

bool is_run(const fs::path& path) {
  std::error_code ignored;
  return fs::exists(path / "plan.json", ignored) || fs::exists(path / "job.toml", ignored);
}

/// Refuses what is no run folder, and names those that lie beside it.
void check_run(const fs::path& path) {
  if (is_run(path)) return;
  fs::path whole = fs::absolute(path).lexically_normal();
  if (whole.filename().empty()) whole = whole.parent_path();
  const fs::path parent = whole.parent_path();
  std::vector<std::string> runs;
  std::error_code error;
  for (const fs::path& folder : {parent, whole}) {
    for (const auto& entry : fs::directory_iterator(folder, error)) {
      if (is_run(entry.path())) runs.push_back(fs::relative(entry.path(), error).string());
    }
  }
  std::sort(runs.begin(), runs.end());
  const auto nearest = nearest_word(fs::relative(whole, error).string(), runs);
  fail_usage("{}: not a run folder (no plan.json); {}",
             path.string(),
             nearest        ? fmt::format("did you mean {}?", *nearest)
             : runs.empty() ? "pelago train makes one under runs/"
                            : fmt::format("there are {}", fmt::join(runs, ", ")));
}

/// Waits for Ctrl-C or SIGTERM, which the calling thread has blocked.
void wait_for_end(const sigset_t& ends) {
  int signal = 0;
  sigwait(&ends, &signal);
}

void show(const serve::DashboardOptions& options, const Globals& globals) {
  check_run(options.run_dir);
  // Before any thread starts, so that all of them leave the signals to wait_for_end().
  sigset_t ends;
  sigemptyset(&ends);
  sigaddset(&ends, SIGINT);
  sigaddset(&ends, SIGTERM);
  sigprocmask(SIG_BLOCK, &ends, nullptr);
  serve::Dashboard dashboard(options);
  dashboard.start();
  if (globals.json) {
    std::printf("%s\n",
                nlohmann::json({{"url", dashboard.url()}, {"run", options.run_dir.string()}})
                    .dump()
                    .c_str());
  } else {
    std::printf("dashboard of %s: %s\nCtrl-C ends the dashboard; the run goes on without it\n",
                options.run_dir.c_str(),
                dashboard.url().c_str());
  }
  std::fflush(stdout);
  wait_for_end(ends);
}

}  // namespace

void add_dashboard(CLI::App& app, Globals& globals) {
  auto options = std::make_shared<serve::DashboardOptions>();
  options->port = 8765;
  CLI::App* command = add_command(
      app,
      globals,
      "dashboard",
      "a run as a page for the browser, live or finished",
      "  pelago dashboard runs/two-sites\n"
      "  pelago dashboard runs/two-sites --port 0 --json      any free port; prints it\n"
      "  ssh -L 8765:localhost:8765 HOST pelago dashboard runs/two-sites      from elsewhere\n"
      "\nIt reads the run folder and writes nothing. Ctrl-C ends it, not the run.\n");
  command->add_option("run", options->run_dir, "the run folder")->required();
  command->add_option("--port", options->port, "where to listen; 0: any free port")
      ->check(CLI::Range(0, 65535))
      ->capture_default_str();
  command
      ->add_option("--host",
                   options->host,
                   "address to listen on; with another than this machine's own, all who reach it "
                   "can read the run's figures and its job.toml")
      ->capture_default_str();
  command->callback([options, &globals] { show(*options, globals); });
}

}  // namespace pelago::cli
