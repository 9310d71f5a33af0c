// Processes that pelago starts itself, one a device. Hidden from --help, usable by hand.
#include <memory>

#include "base/log.h"
#include "cli/commands/commands.h"
#include "serve/split/prefill_process.h"
#include "serve/workers/worker.h"
#include "train/probe.h"
#include "train/site_runner.h"

namespace pelago::cli {

namespace {

/// Ends the command with a child's exit code.
class ExitCode : public CLI::RuntimeError {
 public:
  explicit ExitCode(int code) : CLI::RuntimeError(code) {}
};

void end_with(int code) {
  if (code != 0) throw ExitCode(code);
}

void add_worker(CLI::App& app) {
  auto options = std::make_shared<train::WorkerOptions>();
  CLI::App* command = app.add_subcommand("worker", "drives one device of a site")->group("");
  command->add_option("--run-dir", options->run_dir)->required();
  command->add_option("--site-dir", options->site_dir)->required();
  command->add_option("--site-idx", options->site_idx)->required();
  command->add_option("--rank", options->rank)->required();
  command->callback([options] { end_with(train::run_worker(*options)); });
}

void add_probe_device(CLI::App& app) {
  auto options = std::make_shared<train::ProbeDeviceOptions>();
  CLI::App* command = app.add_subcommand("probe-device", "measures one device")->group("");
  command->add_option("--job", options->job)->required();
  command->add_option("--fleet", options->fleet)->required();
  command->add_option("--device", options->device)->required();
  command->add_option("--vocab-size", options->vocab_size)->required();
  command->add_option("--core", options->cores);
  command->callback([options] { end_with(train::run_probe_device(*options)); });
}

struct ServeWorkerOptions {
  int worker_idx = 0, socket = 0;
};

void add_serve_worker(CLI::App& app) {
  auto options = std::make_shared<ServeWorkerOptions>();
  CLI::App* command =
      app.add_subcommand("serve-worker", "answers what a router sends it")->group("");
  command->add_option("--worker", options->worker_idx)->required();
  command->add_option("--socket", options->socket, "an inherited socket")->required();
  command->callback([options] {
    init_log(LogLevel::kWarn, fmt::format("worker {}", options->worker_idx));
    end_with(serve::run_worker(options->socket));
  });
}

void add_serve_prefill(CLI::App& app) {
  auto socket = std::make_shared<int>(0);
  CLI::App* command = app.add_subcommand("serve-prefill", "reads prompts for an engine")->group("");
  command->add_option("--socket", *socket, "an inherited socket")->required();
  command->callback([socket] {
    init_log(LogLevel::kWarn, "prefill");
    end_with(serve::run_prefill_process(*socket));
  });
}

}  // namespace

void add_children(CLI::App& app, Globals&) {
  add_worker(app);
  add_probe_device(app);
  add_serve_worker(app);
  add_serve_prefill(app);
}

}  // namespace pelago::cli
