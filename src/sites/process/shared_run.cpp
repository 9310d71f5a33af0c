#include "sites/process/shared_run.h"

#include <map>
#include <nlohmann/json.hpp>

#include "base/clock.h"
#include "base/files.h"
#include "base/log.h"
#include "sites/journal.h"
#include "sites/protocol/round_machine.h"

namespace pelago::sites {

namespace fs = std::filesystem;

namespace {

constexpr double kLookS = 0.25;
constexpr const char* kTokens = "tokens";

/// By their names in etcd, which has no folders.
const std::map<std::string, fs::path>& shared_files() {
  static const std::map<std::string, fs::path> files = {{"job.toml", "job.toml"},
                                                        {"plan.json", "plan.json"},
                                                        {"ca.pem", "certs/ca.pem"},
                                                        {"ca.key", "certs/ca.key"},
                                                        {kTokens, "tokens/book.json"}};
  return files;
}

void keep(EtcdStore& store, const std::string& name, const std::string& content) {
  const Status kept = store.keep_file(name, content);
  if (!kept) {
    throw Failure(fmt::format("{} cannot be shared: {}", name, kept.error().message),
                  kExitTryAgain);
  }
}

void write_secret(const fs::path& path, const std::string& content) {
  fs::create_directories(path.parent_path());
  fs::permissions(path.parent_path(), fs::perms::owner_all);
  write_file(path, content);
  fs::permissions(path, fs::perms::owner_read | fs::perms::owner_write);
}

}  // namespace

std::unique_ptr<EtcdStore> take_seat(const EtcdOptions& options,
                                     const std::atomic<int>& stop_requests,
                                     const SeatRequest& request) {
  auto store = std::make_unique<EtcdStore>(options);
  std::string known, problem;
  for (; stop_requests.load() == 0; sleep_until_s(steady_now_s() + kLookS)) {
    const Result<bool> leads = store->try_lead(request.who);
    if (leads && *leads) return store;
    Result<std::string> leader = leads ? store->leader() : leads.error();
    if (leader && !leader->empty() && *leader != known && request.on_waiting) {
      known = *leader;
      request.on_waiting(known);
    }
    if (!leader && problem.empty()) {
      problem = leader.error().message;
      log_warn("etcd cannot be reached, trying again reason=\"{}\"", problem);
    }
  }
  return nullptr;
}

std::optional<SharedRun> read_shared_run(EtcdStore& store) {
  std::map<std::string, std::string> files = store.files();
  // The book comes last: where it is, all the others are.
  if (!files.contains(kTokens)) return std::nullopt;
  return SharedRun{.job_toml = files["job.toml"], .plan_json = files["plan.json"]};
}

void fetch_run_files(EtcdStore& store, const fs::path& run_dir) {
  const std::map<std::string, std::string> files = store.files();
  const fs::path certs_dir = run_dir / "certs";
  if (const auto authority = files.find("ca.pem");
      authority != files.end() && fs::exists(certs_dir / "ca.pem") &&
      read_text_file(certs_dir / "ca.pem") != authority->second) {
    fs::remove_all(certs_dir);  // of a run that this one is not; what it signed is believed no more
  }
  for (const char* name : {"ca.pem", "ca.key", kTokens}) {
    const auto file = files.find(name);
    if (file == files.end()) fail("etcd lacks {} of this run; start it anew with --fresh", name);
    write_secret(run_dir / shared_files().at(name), file->second);
  }
}

void share_run_files(EtcdStore& store, const fs::path& run_dir) {
  const std::map<std::string, std::string> known = store.files();
  for (const auto& [name, path] : shared_files()) {
    const std::string content = read_text_file(run_dir / path);
    const auto file = known.find(name);
    if (name != kTokens && file != known.end() && file->second == content) continue;
    if (name != kTokens) keep(store, name, content);
  }
  keep(store, kTokens, read_text_file(run_dir / shared_files().at(kTokens)));
}

Status keep_token_book(EtcdStore& store, const std::string& book_json) {
  return store.keep_file(kTokens, book_json);
}

void even_out(EtcdStore& store, Journal& journal) {
  const DurableState decided = store.load(), written = journal.load();
  std::vector<StateWrite> writes;
  const DurableState& from = decided.empty() ? written : decided;
  const DurableState& to = decided.empty() ? decided : written;
  for (const auto& [key, value] : to) {
    if (!from.contains(key)) writes.push_back({.key = key, .value = {}});
  }
  for (const auto& [key, value] : from) writes.push_back({.key = key, .value = value});
  const Status done = decided.empty() ? store.write(writes) : journal.write(writes);
  // A full disk: the journal catches up once there is room.
  if (!done && done.error().code != ErrorCode::kNoSpace) {
    throw Failure(fmt::format("the state cannot be shared: {}", done.error().message),
                  kExitTryAgain);
  }
}

bool is_live(const DurableState& state) {
  const auto run = state.find("run");
  if (run == state.end()) return false;
  const auto kept = nlohmann::json::parse(run->second, nullptr, /*allow_exceptions=*/false);
  if (!kept.is_object() || !kept.contains("phase")) return false;
  const auto phase = static_cast<RoundMachine::RunPhase>(kept.at("phase").get<int>());
  return phase == RoundMachine::RunPhase::kStarting || phase == RoundMachine::RunPhase::kTraining;
}

}  // namespace pelago::sites
