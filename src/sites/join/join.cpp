#include "sites/join/join.h"

#include <fmt/ranges.h>

#include <optional>

#include "base/clock.h"
#include "base/config.h"
#include "base/error.h"
#include "base/files.h"
#include "base/log.h"
#include "plan/job.h"
#include "sites/join/grpc_door.h"
#include "sites/join/tls_probe.h"
#include "sites/tls.h"
#include "sites/transport/transport.h"

namespace pelago::sites {

namespace fs = std::filesystem;

namespace {

constexpr double kAskAgainS = 0.5;

void make_folder(const fs::path& dir) {
  std::error_code reason;
  fs::create_directories(dir, reason);
  if (reason) fail("{}: cannot be made: {}", dir.string(), reason.message());
}

/// Several sites of one machine may write the same files at once, with the same content.
void write_if_other(const fs::path& path, const std::string& content) {
  if (fs::exists(path) && read_text_file(path) == content) return;
  write_file(path, content);
}

void keep_authority(const fs::path& certs_dir, const std::string& authority) {
  const fs::path path = certs_dir / "ca.pem";
  if (fs::exists(path) && read_text_file(path) != authority) {
    fail_usage(
        "{}: holds the certificates of another run than the token's; name another --run-dir, or "
        "remove that folder",
        certs_dir.string());
  }
  write_if_other(path, authority);
}

struct Asked {
  std::string address;
  JoinAnswer answer;
};

/// Absent: nobody answers there, with the reason in `words`. Throws Failure if the site is refused.
std::optional<JoinAnswer> ask_once(const std::string& address,
                                   const JoinToken& token,
                                   const std::string& request,
                                   std::string& words) {
  const Result<JoinAnswer> answer = ask_at_door(address, token, request, 10);
  if (answer) return *answer;
  if (answer.error().code == ErrorCode::kRefused) {
    fail_usage("{} refuses this site: {}", address, answer.error().message);
  }
  words = answer.error().message;
  const Status line = probe_line({.address = address,
                                  .peer = kCoordinatorName,
                                  .authority = token.authority,
                                  .certs_dir = {},
                                  .name = {}});
  if (!line && line.error().code == ErrorCode::kRefused) fail_usage("{}", line.error().message);
  return std::nullopt;
}

Asked ask(const JoinOptions& options, const JoinToken& token, const std::string& request) {
  const double deadline_s = steady_now_s() + options.patience_s;
  const std::string addresses = fmt::format("{}", fmt::join(options.addresses, ","));
  bool has_said = false;
  while (true) {
    std::string words;
    for (const std::string& address : options.addresses) {
      const std::optional<JoinAnswer> answer = ask_once(address, token, request, words);
      if (answer) return {.address = address, .answer = *answer};
    }
    if (steady_now_s() > deadline_s) {
      throw Failure(fmt::format("{}: no coordinator answered within {:.0f} s ({}); start it, or "
                                "see the address, then start this site again",
                                addresses,
                                options.patience_s,
                                words),
                    kExitTryAgain);
    }
    if (!has_said) log_info("waiting for the coordinator address={}", addresses);
    has_said = true;
    sleep_until_s(steady_now_s() + kAskAgainS);
  }
}

/// The job as this machine sees it: its dataset and its copy of the model's config.
std::string local_job(const JoinOptions& options, const fs::path& run_dir, const RunFiles& files) {
  ConfigTable job = ConfigTable::parse(files.job_toml, "the coordinator's job");
  const fs::path job_path = run_dir / "job.toml";
  std::string given_dir, data_dir;
  job.table("data").read("dir", given_dir);
  if (!options.data_dir.empty()) {
    data_dir = fs::absolute(options.data_dir).string();
  } else if (fs::exists(job_path)) {  // as it was said when this site joined first
    ConfigTable::read_file(job_path).table("data").read("dir", data_dir);
  }
  std::vector<std::string> overrides;
  if (!data_dir.empty() && data_dir != given_dir) {
    overrides.push_back(fmt::format("data.dir=\"{}\"", data_dir));
  }
  if (!files.config_json.empty()) {
    const fs::path config = fs::absolute(run_dir / "config.json");
    write_if_other(config, files.config_json);
    overrides.push_back(fmt::format("model.config=\"{}\"", config.string()));
  }
  if (overrides.empty()) return files.job_toml;
  for (const std::string& assignment : overrides) job.set(assignment);
  return job.to_toml();
}

}  // namespace

AgentOptions join_run(const JoinOptions& options) {
  const JoinToken token = read_join_token(options.token);
  const fs::path run_dir =
      options.run_dir.empty() ? fs::path("runs") / fs::path(token.run).filename() : options.run_dir;
  const fs::path certs_dir = run_dir / "certs";
  make_folder(certs_dir);
  keep_authority(certs_dir, token.authority);
  PELAGO_ASSERT(!options.addresses.empty(), "a site is told where to ask");
  const auto [address, answer] =
      ask(options, token, make_certificate_request(certs_dir / (token.site + ".key"), token.site));
  if (answer.site != token.site) {
    fail_usage("{}: is for site {}, the coordinator says {}; take another token",
               options.token.string(),
               token.site,
               answer.site);
  }
  const fs::path plan_path = run_dir / "plan.json";
  if (fs::exists(plan_path) && read_text_file(plan_path) != answer.files.plan_json) {
    fail_usage(
        "{}: is the plan of another run than the coordinator's; name another --run-dir, or remove "
        "that folder",
        plan_path.string());
  }
  write_file(certs_dir / (token.site + ".pem"), answer.certificate);
  write_if_other(run_dir / "job.toml", local_job(options, run_dir, answer.files));
  write_if_other(plan_path, answer.files.plan_json);
  AgentOptions agent;
  agent.run_dir = run_dir;
  agent.site = token.site;
  agent.coordinator = address;
  agent.coordinators = options.addresses;
  agent.certs_dir = certs_dir;
  return agent;
}

}  // namespace pelago::sites
