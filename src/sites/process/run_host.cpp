#include "sites/process/run_host.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "base/config.h"
#include "base/error.h"
#include "base/files.h"
#include "base/log.h"
#include "base/text/json.h"
#include "sites/agent.h"
#include "sites/process/line_emulation.h"
#include "sites/process/plan_facts.h"
#include "sites/process/shared_run.h"
#include "sites/process/site_agent.h"
#include "sites/tls.h"

namespace pelago::sites {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

std::vector<std::string> names_of(const plan::Plan& plan) {
  std::vector<std::string> names;
  for (const plan::SitePlan& site : plan.sites) names.push_back(site.name);
  return names;
}

/// What the coordinator itself has the run's files for.
Hello expected_of(const fs::path& run_dir) {
  const train::TrainState identity = train::identity_of(train::read_run_job(run_dir));
  Hello expected;
  expected.plan_hash = plan_hash(run_dir, identity);
  expected.plan_facts = plan_facts(read_text_file(run_dir / "plan.json"));
  expected.tokenizer_hash = identity.tokenizer_hash;
  expected.dataset_hash = identity.dataset_hash;
  return expected;
}

RoundOptions round_options(const fs::path& run_dir,
                           const plan::Plan& plan,
                           const ManySitesOptions& options,
                           const std::string& address) {
  const bool goes_on = options.store != nullptr && is_live(options.store->load());
  std::vector<int64_t> least;
  for (const plan::SitePlan& site : plan.sites) {
    least.push_back(static_cast<int64_t>(site.pipelines.size()));
  }
  return {.sites = names_of(plan),
          .schedule = schedule_of(plan),
          .shares = shares_of(plan),
          .shares_least = least,
          .share_watch = {.rounds = static_cast<int>(plan.exchange.share_rounds)},
          .grace_s = plan.exchange.grace_s,
          .behind_s = plan.exchange.behind_s,
          .heartbeat_s = plan.exchange.heartbeat_s,
          .exchange_s = exchange_limit_s(plan),
          .resume = options.resume || goes_on,
          .takes_over = goes_on && !options.resume,
          .address = address,
          .expected = expected_of(run_dir)};
}

GrpcTransportOptions line_options(const plan::Plan& plan,
                                  const fs::path& certs_dir,
                                  const std::string& listen,
                                  Door& door) {
  GrpcTransportOptions line;
  line.name = kCoordinatorName;
  line.certs_dir = certs_dir;
  line.listen = listen;
  line.frame_bytes_max = 4 << 20;
  line.emulated_line = [&plan](const std::string& peer) {
    return emulated_line(plan, kCoordinatorName, peer);
  };
  line.door = door.service();
  return line;
}

fs::path made_certificates(const fs::path& dir) {
  make_certificates(dir, {});
  return dir;
}

RunFiles files_of(const fs::path& run_dir) {
  RunFiles files{.job_toml = read_text_file(run_dir / "job.toml"),
                 .plan_json = read_text_file(run_dir / "plan.json"),
                 .config_json = {}};
  std::string config;
  ConfigTable::parse(files.job_toml, "job.toml").table("model").read("config", config);
  if (!config.empty()) files.config_json = read_text_file(config);
  return files;
}

void make_tokens(const fs::path& tokens_dir,
                 const fs::path& certs_dir,
                 const plan::Plan& plan,
                 const TokenTerms& terms) {
  TokenBook book(tokens_dir);
  const std::string authority = read_text_file(certs_dir / "ca.pem");
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  const int64_t now_unix_s = std::chrono::duration_cast<std::chrono::seconds>(now).count();
  for (const plan::SitePlan& site : plan.sites) {
    book.ensure(plan.job_name, site.name, authority, terms, now_unix_s);
  }
}

TokenBook::Keeper keeper_of(EtcdStore* store) {
  if (store == nullptr) return {};
  return [store](const std::string& book) { return keep_token_book(*store, book); };
}

/// The store that decides, with the journal beside it brought to the same state.
StateStore& state_of(EtcdStore* store, Journal& journal) {
  if (store == nullptr) return journal;
  even_out(*store, journal);
  return *store;
}

}  // namespace

RunHost::RunHost(const train::RunFolder& run_folder,
                 const plan::Plan& plan,
                 const ManySitesOptions& options,
                 const ManySitesCallbacks& callbacks)
    : store_(options.store),
      run_folder_(&run_folder),
      callbacks_(&callbacks),
      sites_(names_of(plan)),
      num_steps_(plan.steps),
      begin_s_(clock_.now_s()),
      certs_dir_(made_certificates(run_folder.path() / "certs")),
      tokens_dir_(run_folder.path() / "tokens"),
      door_(certs_dir_, tokens_dir_, files_of(run_folder.path()), keeper_of(options.store)),
      transport_(line_options(plan, certs_dir_, options.listen, door_)),
      journal_(run_folder.path() / "journal.sqlite"),
      coordinator_(round_options(run_folder.path(), plan, options, transport_.address()),
                   transport_,
                   state_of(options.store, journal_),
                   journal_,
                   clock_,
                   coordinator_callbacks()) {
  for (const std::string& site : sites_) totals_[site].summary.site = site;
  make_tokens(tokens_dir_, certs_dir_, plan, options.tokens);
  if (store_ != nullptr) share_run_files(*store_, run_folder.path());
  log_info("coordinator listening address={}", transport_.address());
}

bool RunHost::is_deposed() const {
  return coordinator_.is_deposed() || (store_ != nullptr && store_->is_deposed());
}

fs::path RunHost::token_file(const std::string& site) const {
  return tokens_dir_ / (site + ".token");
}

void RunHost::poll(double timeout_s) {
  coordinator_.poll(timeout_s);
  for (const auto& [name, fields] : door_.take_events()) record(name, fields);
  const int64_t num_refused = rounds().num_refused();
  note_refused(kCoordinatorName, num_refused - std::exchange(num_refused_, num_refused));
}

// Who was away for long speaks of what is past: refused, and told, since it should be rare.
void RunHost::note_refused(const std::string& by, int64_t count) {
  if (count <= 0) return;
  record("messages_refused", json{{"site", by}, {"count", count}}.dump());
}

CoordinatorCallbacks RunHost::coordinator_callbacks() {
  CoordinatorCallbacks calls;
  calls.on_step = [this](const train::StepReport& report) {
    run_folder_->record_step(report);
    SiteSummary& summary = totals_[report.site].summary;
    summary.steps = report.step;
    summary.tokens += report.tokens;
    summary.train_s += report.step_s;
    summary.wait_line_s += report.wait_line_s;
    if (callbacks_->on_step) callbacks_->on_step(report);
  };
  calls.on_evaluation = [this](const train::EvaluationReport& report) {
    run_folder_->record_evaluation(report);
    if (callbacks_->on_evaluation) callbacks_->on_evaluation(report);
  };
  calls.on_event = [this](const std::string& name, const std::string& fields) {
    record(name, fields);
  };
  calls.on_status = [this](const std::string& site, const SiteStatus& status) {
    take_status(site, status);
  };
  return calls;
}

void RunHost::record(const std::string& name, const std::string& fields_json) {
  if (name == "site_failed" || name == "site_refused") {
    const json words = parse_json(fields_json);
    totals_[words.at("site")].last_words =
        words.value("message", words.value("reason", std::string()));
  }
  run_folder_->record_event(name, fields_json);
  if (callbacks_->on_event) callbacks_->on_event(name, fields_json);
}

std::string RunHost::take_last_words(const std::string& site) {
  return std::exchange(totals_[site].last_words, {});
}

void RunHost::take_status(const std::string& site, const SiteStatus& status) {
  Totals& totals = totals_[site];
  if (status.incarnation != totals.now.incarnation) {  // a new start counts from zero
    totals.before = sum_of(totals);
    totals.now = {};
  }
  note_refused(site, status.num_refused - totals.now.num_refused);
  totals.now = status;
  const SiteStatus sum = sum_of(totals);
  if (callbacks_->on_line) {
    callbacks_->on_line({.site = site,
                         .completed_steps = status.completed_steps,
                         .sent_bytes = sum.sent_bytes,
                         .exchange_payload_bytes = sum.exchange_payload_bytes,
                         .exchanged_values = sum.exchanged_values});
  }
}

SiteStatus RunHost::sum_of(const Totals& totals) {
  SiteStatus sum = totals.before;
  sum.num_commits += totals.now.num_commits;
  sum.num_missed += totals.now.num_missed;
  sum.sent_bytes += totals.now.sent_bytes;
  sum.exchange_payload_bytes += totals.now.exchange_payload_bytes;
  sum.exchanged_values += totals.now.exchanged_values;
  return sum;
}

ManySitesSummary RunHost::summary() const {
  ManySitesSummary result;
  for (const std::string& name : sites_) {
    const Totals& totals = totals_.at(name);
    SiteSummary site = totals.summary;
    const SiteStatus sum = sum_of(totals);
    site.commits = sum.num_commits;
    site.missing_commits = sum.num_missed;
    site.sent_bytes = sum.sent_bytes;
    if (sum.exchanged_values > 0) {
      site.sent_bytes_per_parameter = static_cast<double>(sum.exchange_payload_bytes) /
                                      static_cast<double>(sum.exchanged_values);
    }
    if (totals.now.phase == SitePhase::kFinished) {
      result.last_step = std::max(result.last_step, totals.now.completed_steps);
    }
    result.sites.push_back(site);
  }
  result.commits = rounds().num_commits();
  result.differing_hashes = rounds().num_differing();
  result.stopped = rounds().was_stopped() && result.last_step < num_steps_;
  result.deposed = is_deposed();
  result.wall_s = clock_.now_s() - begin_s_;
  return result;
}

}  // namespace pelago::sites
