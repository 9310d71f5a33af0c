#include "cli/many_sites.h"

#include <fmt/format.h>

#include <map>
#include <nlohmann/json.hpp>

#include "base/clock.h"
#include "base/error.h"
#include "cli/event_line.h"
#include "sites/agent.h"
#include "sites/launch.h"
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
    const std::vector<float> weights = sites::read_global_weights(checkpoint);  // [N]
    train::export_model(folder.path(), setup.job, weights);
    return;
  }
  fail(
      "{}: no site has a good checkpoint of step {}, so no model was exported; `pelago export` "
      "takes an older one",
      folder.path().string(),
      last_step);
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
  callbacks.on_line = [&](const sites::LineReport& report) { view.set_line(meter.take(report)); };
  const sites::ManySitesSummary summary =
      sites::run_many_sites(folder,
                            setup.job,
                            setup.fleet,
                            plan,
                            stop_requests,
                            {.resume = start.resume, .listen = start.listen},
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
  if (!summary.stopped) export_global_model(folder, setup, plan, summary.last_step);
  return {.stopped = summary.stopped, .last_step = summary.last_step};
}

void make_job_certificates(const std::filesystem::path& dir,
                           const std::vector<std::string>& sites) {
  sites::make_certificates(dir, sites);
}

std::vector<std::pair<std::string, std::string>> check_job_certificates(
    const std::filesystem::path& dir) {
  std::vector<std::pair<std::string, std::string>> checks;
  for (const sites::CertificateCheck& check : sites::check_certificates(dir)) {
    checks.emplace_back(check.name, check.problem);
  }
  return checks;
}

int run_site_agent(const std::filesystem::path& run_dir,
                   const std::string& site,
                   const std::string& coordinator,
                   const std::filesystem::path& certs_dir,
                   int64_t resume_step) {
  sites::AgentOptions options;
  options.run_dir = run_dir;
  options.site = site;
  options.coordinator = coordinator;
  options.certs_dir = certs_dir;
  if (resume_step >= 0) options.resume_step = resume_step;
  return sites::run_agent(options);
}

}  // namespace pelago::cli
