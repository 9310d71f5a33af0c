// pelago agent: one site of a run, on whatever host it is started.
#include <memory>

#include "base/error.h"
#include "cli/commands/commands.h"
#include "cli/many_sites.h"

namespace pelago::cli {

namespace {

/// Ends the command with the agent's exit code.
class ExitCode : public CLI::RuntimeError {
 public:
  explicit ExitCode(int code) : CLI::RuntimeError(code) {}
};

void refuse_half_given(const SiteAgentStart& start) {
  const bool has_certificates = !start.site.empty() && !start.coordinator.empty() &&
                                !start.certs_dir.empty() && !start.run_dir.empty();
  const bool has_token = !start.join.empty() && !start.token.empty();
  if (has_token == has_certificates) {
    fail_usage(
        "give --join HOST:PORT and --token FILE, or else --coordinator, --site, --certs and "
        "--run-dir");
  }
}

}  // namespace

void add_agent(CLI::App& app, Globals& globals) {
  auto start = std::make_shared<SiteAgentStart>();
  CLI::App* command = add_command(
      app,
      globals,
      "agent",
      "run one site of a run that `pelago coordinator` holds together",
      "  pelago agent --join 10.0.0.7:4000 --token guizhou.token --data /data/headers\n"
      "  pelago agent --join 10.0.0.7:4000,10.0.0.8:4000 --token guizhou.token\n"
      "  pelago agent --coordinator 10.0.0.7:4000 --site guizhou --certs certs --run-dir run\n"
      "\nThe first form needs nothing but the token and the dataset: job, plan and certificate "
      "come\n"
      "from the coordinator. Said again after a crash, it goes on. SIGTERM stops all sites with a\n"
      "checkpoint. The second takes a folder that holds job.toml and plan.json, and certificates "
      "of\n"
      "`pelago certs`.\n");
  command->add_option("--join",
                      start->join,
                      "HOST:PORT of the coordinator, and after commas those of its stand-bys");
  command->add_option("--token", start->token, "SITE.token, as the coordinator made it");
  command->add_option("--run-dir", start->run_dir, "this site's run folder; else runs/RUN");
  command->add_option("--data", start->data_dir, "the dataset's folder here; else as the job says");
  command->add_option("--site", start->site, "the site's name");
  command->add_option("--coordinator", start->coordinator, "HOST:PORT of the coordinator");
  command->add_option("--certs", start->certs_dir, "ca.pem, SITE.pem and SITE.key");
  command->add_option("--resume-step", start->resume_step, "offer only this checkpoint");
  command->callback([start] {
    refuse_half_given(*start);
    const int code = run_site_agent(*start);
    if (code != 0) throw ExitCode(code);
  });
}

}  // namespace pelago::cli
