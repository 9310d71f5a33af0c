// A site whose disk lacks the checkpoint of a start has it from another one.
#include "sites/simulation/lockstep/lockstep_fetch.h"

#include "base/files.h"
#include "base/text/json.h"
#include "sites/simulation/lockstep/lockstep_run.h"

namespace pelago::sites {

namespace {

CheckpointFetcher::Options fetch_of(const StartWorkers& start) {
  CheckpointFetcher::Options fetch{.step = start.step, .hash = start.hash, .donors = {}};
  for (const SiteAddress& donor : start.donors) fetch.donors.push_back(donor.site);
  return fetch;
}

}  // namespace

std::map<std::string, std::string> files_of(const SavedInStep& saved) {
  const std::string state =
      nlohmann::json{{"tokens", saved.tokens}, {"hash", std::to_string(saved.hash)}}.dump();
  const nlohmann::json listed{{"bytes", state.size()}, {"xxh3_128", hash_hex(state)}};
  return {{kCheckpointManifest, nlohmann::json{{"files", {{"state.json", listed}}}}.dump()},
          {"state.json", state}};
}

std::string hash_of(const SavedInStep& saved) {
  return hash_hex(files_of(saved).at(kCheckpointManifest));
}

FetchedInStep::FetchedInStep(const StartWorkers& given)
    : start(given), fetcher(fetch_of(given), *this) {}

void FetchedInStep::write(const std::string& file, int64_t, const std::string& bytes) {
  files_[file] = bytes;
}

std::string FetchedInStep::finish() {
  const auto state = parse_json(files_.at("state.json"));
  saved_ = {.tokens = state.at("tokens"), .hash = std::stoull(state.at("hash").get<std::string>())};
  return files_ == files_of(saved_) ? "" : "it is damaged";
}

std::vector<CheckpointOffer> LockstepRun::safe_offers(Site& site) {
  std::vector<CheckpointOffer> offers;
  for (const SimulatedCheckpoint& each : site.disk.kept()) {
    const bool is_safe = !each.is_torn && each.synced_s <= clock_.now_s();
    if (!is_safe && !faulty_.offers_what_is_not_safe) continue;
    offers.push_back(
        {.step = each.step, .hash = hash_of(site.saved[each.step]), .data_step = each.step});
  }
  return offers;
}

bool LockstepRun::begin_fetch(Site& site, const StartWorkers& begin) {
  if (begin.mode != StartMode::kResume || begin.donors.empty()) return false;
  if (faulty_.begins_without_fetch) {
    start_workers(site, {.mode = StartMode::kFresh, .step = 0, .start_number = begin.start_number});
    return true;
  }
  site.fetch = std::make_unique<FetchedInStep>(begin);
  return true;
}

bool LockstepRun::hear_of_fetch(Site& site, const std::string& peer, const Message& message) {
  if (const auto* wanted = std::get_if<FetchPiece>(&message)) {
    CheckpointPiece piece{.step = wanted->step,
                          .hash = wanted->hash,
                          .file = wanted->file,
                          .offset = 0,
                          .payload = {}};
    const SimulatedCheckpoint* checkpoint = site.disk.find(wanted->step);
    const SavedInStep& saved = site.saved[wanted->step];
    if (checkpoint != nullptr && hash_of(saved) == wanted->hash) {
      piece.payload = files_of(saved).at(wanted->file);
    }
    site.transport->send(peer, encode(site.name, std::move(piece)));
    return true;
  }
  const auto* piece = std::get_if<CheckpointPiece>(&message);
  if (piece != nullptr && site.fetch) {
    ask(site, site.fetch->fetcher.on_piece(peer, *piece, clock_.now_s()));
  }
  return piece != nullptr;
}

void LockstepRun::ask(Site& site, CheckpointFetcher::Requests requests) {
  for (auto& [to, request] : requests) {
    site.transport->send(to, encode(site.name, std::move(request)));
  }
}

void LockstepRun::go_on_fetching(Site& site) {
  if (!site.fetch) return;
  ask(site, site.fetch->fetcher.on_tick(clock_.now_s()));
  if (!site.fetch->fetcher.failure().empty()) {
    return fail_workers(site, site.fetch->fetcher.failure());
  }
  if (!site.fetch->fetcher.is_done()) return;
  ++num_fetched_;
  const StartWorkers start = site.fetch->start;
  site.saved[start.step] = site.fetch->saved();
  site.disk.save({.incarnation = site.incarnation,
                  .step = start.step,
                  .data_step = start.step,
                  .state = *site.state,
                  .local = {},
                  .synced_s = clock_.now_s(),
                  .is_torn = false});
  site.fetch.reset();
  start_workers(site, start);
}

}  // namespace pelago::sites
