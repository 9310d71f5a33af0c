#include "cli/many_sites.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <map>

#include "base/clock.h"
#include "base/error.h"
#include "base/files.h"
#include "base/text/json.h"
#include "chips/torch.h"
#include "cli/event_line.h"
#include "model/safetensors.h"
#include "plan/across/joint.h"
#include "sites/agent.h"
#include "sites/join/join.h"
#include "sites/join/join_token.h"
#include "sites/launch.h"
#include "sites/leases/run_ledger.h"
#include "sites/process/shared_run.h"
#include "sites/process/site_checkpoint.h"
#include "sites/tls.h"
#include "train/checkpoint.h"
#include "train/single_site.h"

namespace pelago::cli {

namespace {

constexpr double kPlainEvery_s =
    10;  // without a terminal a line this often is enough to follow a run

// Turns the sites' byte counts into what the progress line shows.
class LineMeter {
 public:
  LineView take(const sites::LineReport& report) {
    Counter& counter = counters_[report.site];
    const double now_s = steady_now_s();
    if (counter.since_s == 0 || now_s - counter.since_s > kWindow_s) {
      counter.rate_mbit_s = counter.since_s == 0
                                ? 0
                                : 8e-6 *
                                      static_cast<double>(report.sent_bytes - counter.bytes_then) /
                                      (now_s - counter.since_s);
      counter.bytes_then = report.sent_bytes;
      counter.since_s = now_s;
    }
    counter.last = report;
    LineView view;
    double payload = 0, values = 0;
    for (const auto& [site, each] : counters_) {
      view.sent_bytes += static_cast<double>(each.last.sent_bytes);
      view.mbit_s += each.rate_mbit_s / static_cast<double>(counters_.size());
      payload += static_cast<double>(each.last.exchange_payload_bytes);
      values += static_cast<double>(each.last.exchanged_values);
    }
    view.bytes_per_parameter = values > 0 ? payload / values : 0;
    return view;
  }

 private:
  static constexpr double kWindow_s = 5;
  struct Counter {
    sites::LineReport last;
    int64_t bytes_then = 0;
    double since_s = 0;
    double rate_mbit_s = 0;
  };
  std::map<std::string, Counter> counters_;
};

// Puts the sites' byte counts on record, now and then: the reports come once a second, and a chart
// of hours needs none of them.
class LineRecord {
 public:
  explicit LineRecord(const train::RunFolder& folder) : folder_(&folder) {}
  void take(const sites::LineReport& report) {
    const auto [last, is_new] = recorded_s_.try_emplace(report.site, 0);
    const double now_s = steady_now_s();
    if (!is_new && now_s - last->second < kEvery_s) return;
    last->second = now_s;
    folder_->record_line(report.site, report.sent_bytes);
  }

 private:
  static constexpr double kEvery_s = 5;
  const train::RunFolder* folder_;  // outlives this
  std::map<std::string, double> recorded_s_;
};

// Every site that reached the last step holds the same global weights: the first such site gives
// them.
void export_global_model(const train::RunFolder& folder,
                         const Setup& setup,
                         const plan::Plan& plan,
                         int64_t last_step) {
  for (const plan::SitePlan& site : plan.sites) {
    const auto checkpoint =
        train::checkpoint_path(folder.site_dir(site.name) / "checkpoints", last_step);
    if (!std::filesystem::exists(checkpoint) || !train::verify_checkpoint(checkpoint).empty())
      continue;
    if (plan::is_joint(plan)) {  // each holds all of the model, exchanged or not
      const model::SafetensorsFile file(checkpoint / "weights.safetensors");
      const Tensor master = file.tensor("master");  // [N]
      const std::span<const float> flat(master.data_ptr<float>(),
                                        static_cast<size_t>(master.numel()));
      train::export_model(folder.path(), setup.job, flat);
    } else {
      const std::vector<float> weights = sites::read_global_weights(checkpoint);  // [N]
      train::export_model(folder.path(), setup.job, weights);
    }
    return;
  }
  fail(
      "{}: no site has a good checkpoint of step {}, so no model was exported; `pelago export` "
      "takes an older one",
      folder.path().string(),
      last_step);
}

std::string how_to_join(const train::RunFolder& folder,
                        const plan::Plan& plan,
                        const std::string& address) {
  std::string text =
      fmt::format("waiting for {} sites at {}; at each site:", plan.sites.size(), address);
  for (const plan::SitePlan& site : plan.sites) {
    text += fmt::format("\n  pelago agent --join {} --token {}.token", address, site.name);
  }
  return text +
         fmt::format("\nthe tokens lie in {}; each lets one site in, hand them over secretly",
                     (folder.path() / "tokens").string());
}

std::vector<std::string> addresses_in(const std::string& join) {
  std::vector<std::string> addresses;
  for (size_t begin = 0; begin <= join.size();) {
    const size_t end = std::min(join.find(',', begin), join.size());
    if (end == begin) fail_usage("--join {}: write HOST:PORT[,HOST:PORT...]", join);
    addresses.push_back(join.substr(begin, end - begin));
    begin = end + 1;
  }
  return addresses;
}

}  // namespace

ManySitesOutcome train_many_sites(const train::RunFolder& folder,
                                  const Setup& setup,
                                  const plan::Plan& plan,
                                  const ManySitesStart& start,
                                  const std::atomic<int>& stop_requests,
                                  RunView& view,
                                  LiveLine& line) {
  LineMeter meter;
  sites::ManySitesCallbacks callbacks;
  callbacks.on_step = [&](const train::StepReport& report) {
    view.add(report);
    if (start.on_step) return start.on_step(report);
    line.draw(view.progress_line(), kPlainEvery_s);
  };
  callbacks.on_evaluation = [&](const train::EvaluationReport& report) {
    view.add(report);
    line.print_below(fmt::format("{} step {}: held-out loss {:.4f}, {:.4f} bits per byte",
                                 report.site,
                                 report.step,
                                 report.loss,
                                 report.bits_per_byte));
  };
  callbacks.on_event = [&](const std::string& name, const std::string& fields) {
    if (const auto text = event_line(name, fields)) line.print_below(*text);
  };
  callbacks.on_listening = [&](const std::string& address) {
    line.print_below(how_to_join(folder, plan, address));
  };
  LineRecord record(folder);
  callbacks.on_line = [&](const sites::LineReport& report) {
    view.set_line(meter.take(report));
    record.take(report);
  };
  const sites::ManySitesSummary summary =
      sites::run_many_sites(folder,
                            setup.job,
                            setup.fleet,
                            plan,
                            stop_requests,
                            {.resume = start.resume,
                             .listen = start.listen,
                             .starts_agents = start.starts_agents,
                             .tokens = {.valid_s = start.token_valid_s, .uses = start.token_uses},
                             .store = start.seat != nullptr ? start.seat->store.get() : nullptr},
                            callbacks);
  line.end();

  LineView total = view.line();
  total.commits = summary.commits;
  total.sent_bytes = 0;
  double values = 0;
  for (const sites::SiteSummary& site : summary.sites) {
    total.sent_bytes += static_cast<double>(site.sent_bytes);
    values += site.sent_bytes_per_parameter / static_cast<double>(summary.sites.size());
  }
  total.bytes_per_parameter = values;
  view.set_line(total);
  // Elsewhere the weights are with the sites: `pelago export` there.
  if (!summary.stopped && start.starts_agents) {
    export_global_model(folder, setup, plan, summary.last_step);
  }
  return {.stopped = summary.stopped, .deposed = summary.deposed, .last_step = summary.last_step};
}

Seat::Seat(std::unique_ptr<sites::EtcdStore> taken) : store(std::move(taken)) {}
Seat::~Seat() = default;

std::unique_ptr<Seat> take_seat(const SeatWanted& wanted, const std::atomic<int>& stop_requests) {
  const auto say = [&](const std::string& leader) {
    if (wanted.fresh) {
      fail_usage("--fresh: {} coordinates the run at {} now; stop it first, or take another prefix",
                 leader,
                 wanted.state);
    }
    std::fprintf(stderr, "standing by: %s coordinates this run\n", leader.c_str());
  };
  auto store = sites::take_seat(sites::parse_etcd_url(wanted.state, wanted.certs_dir),
                                stop_requests,
                                {.who = wanted.who, .on_waiting = say});
  if (!store) return nullptr;
  auto seat = std::make_unique<Seat>(std::move(store));
  if (wanted.fresh) {
    const Status forgotten = seat->store->forget_all();
    if (!forgotten) throw Failure(forgotten.error().message, kExitTryAgain);
  }
  if (const auto run = sites::read_shared_run(*seat->store)) {
    seat->job_toml = run->job_toml;
    seat->plan_json = run->plan_json;
  }
  return seat;
}

void fetch_run_files(Seat& seat, const std::filesystem::path& run_dir) {
  sites::fetch_run_files(*seat.store, run_dir);
}

void make_job_certificates(const JobCertificates& wanted) {
  sites::make_certificates(wanted.dir, wanted.sites, wanted.valid_s);
}

std::vector<std::string> renew_job_certificates(const JobCertificates& wanted) {
  return sites::renew_certificates(wanted.dir, wanted.valid_s);
}

std::filesystem::path make_join_token(const std::filesystem::path& run_dir,
                                      const std::string& site,
                                      int64_t valid_s,
                                      int64_t uses) {
  const plan::Plan plan = train::read_run_plan(run_dir);
  std::vector<std::string> names;
  for (const plan::SitePlan& planned : plan.sites) names.push_back(planned.name);
  if (std::find(names.begin(), names.end(), site) == names.end()) {
    fail_usage("--token {}: the run has no such site, but {}", site, fmt::join(names, ", "));
  }
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return sites::TokenBook(run_dir / "tokens")
      .issue(plan.job_name,
             site,
             read_text_file(run_dir / "certs" / "ca.pem"),
             {.valid_s = valid_s, .uses = uses},
             std::chrono::duration_cast<std::chrono::seconds>(now).count());
}

std::string token_accounts_json(const std::filesystem::path& run_dir, const plan::Plan& plan) {
  nlohmann::json accounts = nlohmann::json::array();
  // Sites in step have no lanes: every step is spent by all of them.
  if (plan.sites.size() < 2 || plan::is_joint(plan)) return accounts.dump();
  for (const sites::TokenAccount& account : sites::read_token_accounts(run_dir, plan)) {
    accounts.push_back({{"site", account.site},
                        {"spent", account.spent},
                        {"partly", account.partly},
                        {"repeated", account.repeated},
                        {"lost", account.lost},
                        {"unread", account.unread},
                        {"returned", account.returned}});
  }
  return accounts.dump();
}

std::vector<std::pair<std::string, std::string>> check_job_certificates(
    const std::filesystem::path& dir) {
  std::vector<std::pair<std::string, std::string>> checks;
  for (const sites::CertificateCheck& check : sites::check_certificates(dir)) {
    checks.emplace_back(check.name, check.problem);
  }
  return checks;
}

int run_site_agent(const SiteAgentStart& start) {
  sites::AgentOptions options;
  if (!start.join.empty()) {
    options = sites::join_run({.addresses = addresses_in(start.join),
                               .token = start.token,
                               .run_dir = start.run_dir,
                               .data_dir = start.data_dir});
  } else {
    options.run_dir = start.run_dir;
    options.site = start.site;
    options.coordinator = start.coordinator;
    options.certs_dir = start.certs_dir;
  }
  if (start.resume_step >= 0) options.resume_step = start.resume_step;
  return sites::run_agent(options);
}

}  // namespace pelago::cli
