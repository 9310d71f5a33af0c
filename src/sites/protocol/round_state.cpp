// What outlives a coordinator: the run's start and stop, the last start of each site with its
// lease, every commit. The rest follows from these and from what the sites say next:
//   - A site known here is waited for as long as a live one would be, though it has not spoken yet:
//     until then it may hold commits, and no exchange begins without it before the grace is over.
//   - Exchanges in flight begin again, in an epoch of this term: nobody has changed its weights.
//   - Answers that were lost with the old coordinator are asked for by the next status.
#include <algorithm>

#include "base/error.h"
#include "base/text/json.h"
#include "sites/protocol/round_machine.h"

namespace pelago::sites {

using nlohmann::json;

namespace {

// A coordinator of a later term has higher epochs, and a person can read both in the number.
constexpr int64_t kTermEpochs = 1'000'000'000;
constexpr const char* kRunKey = "run";
constexpr const char* kTermKey = "term";
constexpr const char* kSitePrefix = "site/";
constexpr const char* kCommitPrefix = "commit/";
constexpr const char* kSharesKey = "shares";

bool has_prefix(const std::string& key, const std::string& prefix) {
  return key.compare(0, prefix.size(), prefix) == 0;
}

json json_of(const Message& message) { return parse_json(encode(kCoordinatorName, message).head); }

template <typename T>
T message_of(const json& value) {
  const Frame frame{.from = kCoordinatorName,
                    .kind = static_cast<uint32_t>(Message(T{}).index()),
                    .head = value.dump(),
                    .payload = {}};
  const Result<Message> message = decode(frame);
  if (!message) fail("{}", message.error().message);
  return std::get<T>(*message);
}

}  // namespace

void RoundMachine::restore(const DurableState& known) {
  try {
    if (const auto term = known.find(kTermKey); term != known.end()) {
      term_ = parse_json(term->second).get<int64_t>() + 1;
    }
    for (const auto& [key, value] : known) {
      if (!has_prefix(key, kCommitPrefix)) continue;
      const json kept = parse_json(value);
      Made made{.commit = message_of<Commit>(kept.at("commit")), .incarnations = {}};
      kept.at("incarnations").get_to(made.incarnations);
      const int64_t exchange = made.commit.exchange;
      earlier_.emplace(exchange, std::move(made));
    }
    restore_shares(known);
    const auto run = known.find(kRunKey);
    if (run != known.end()) {
      const json kept = parse_json(run->second);
      const int phase = kept.at("phase").get<int>();
      if (kept.contains("stop_step")) stopped_step_ = kept.at("stop_step").get<int64_t>();
      in_step_.saved_step = kept.value("saved_step", int64_t{-1});
      in_step_.saved_at = kept.value("saved_at", std::string());
      const bool was_live = phase == static_cast<int>(RunPhase::kStarting) ||
                            phase == static_cast<int>(RunPhase::kTraining);
      if (!options_.resume) {
        go_on(known);
      } else if (was_live) {
        live_ = known;
      }
    }
  } catch (const json::exception& error) {
    fail("the coordinator's state cannot be read: {}; start from a checkpoint with --resume",
         error.what());
  }
  epoch_ = lost_epoch_ = term_ * kTermEpochs;
  out_.writes.push_back({.key = kTermKey, .value = std::to_string(term_)});
  count_again();
}

void RoundMachine::go_on(const DurableState& known) {
  const json kept = parse_json(known.at(kRunKey));
  phase_ = static_cast<RunPhase>(kept.at("phase").get<int>());
  start_mode_ = static_cast<StartMode>(kept.at("start_mode").get<int>());
  start_step_ = kept.at("start_step");
  first_logged_ = kept.at("first_logged");
  stop_requested_ = kept.at("stop_requested");
  if (kept.contains("stop_step")) stop_step_ = kept.at("stop_step").get<int64_t>();
  const auto first = earlier_.lower_bound(first_logged_);
  commits_.insert(first, earlier_.end());
  earlier_.erase(first, earlier_.end());
  num_commits_ = static_cast<int64_t>(commits_.size());
  next_exchange_ = first_logged_;
  while (commits_.contains(next_exchange_)) ++next_exchange_;
  for (Site& site : sites_) {
    const auto kept_site = known.find(kSitePrefix + site.name);
    if (kept_site == known.end()) continue;
    site = Site{};
    site.name = kept_site->first.substr(std::string(kSitePrefix).size());
    restore_site(site, kept_site->second);
    site.heard_s = now_s_;
  }
  record("coordinator_restarted", json{{"term", term_}, {"commits", num_commits_}}.dump());
}

// Asked to go back to a checkpoint, while the sites of the run have never ended: going on loses
// nothing. The first that speaks as a member of that run shows it.
void RoundMachine::go_on_if_alive(const std::string& from, const Message& message) {
  const auto kept_site = live_->find(kSitePrefix + from);
  if (kept_site == live_->end()) return;
  uint64_t incarnation = 0;
  if (const auto* heartbeat = std::get_if<Heartbeat>(&message))
    incarnation = heartbeat->incarnation;
  if (const auto* status = std::get_if<SiteStatus>(&message)) incarnation = status->incarnation;
  const json kept = parse_json(kept_site->second);
  const bool is_member = incarnation != 0 && kept.contains("welcome") &&
                         kept.at("hello").at("incarnation").get<uint64_t>() == incarnation;
  if (!is_member) return;
  options_.resume = false;
  go_on(*std::exchange(live_, std::nullopt));
}

void RoundMachine::restore_site(Site& site, const std::string& value) {
  const json kept = parse_json(value);
  site.hello = message_of<Hello>(kept.at("hello"));
  // A site that was not taken in, or was expelled, has to greet again.
  site.incarnation = kept.contains("welcome") ? site.hello.incarnation : 0;
  site.is_unheard = site.incarnation != 0;
  site.returned = kept.at("returned");
  kept.at("past").get_to(site.past);
  if (kept.contains("welcome")) site.welcome = message_of<Welcome>(kept.at("welcome"));
  for (const auto& [exchange, made] : commits_) {
    const auto member = made.incarnations.find(site.name);
    const bool was_member = member != made.incarnations.end() && member->second == site.incarnation;
    const std::vector<SiteAddress>& donors = made.commit.donors;
    const bool was_donor =
        was_member && std::any_of(donors.begin(), donors.end(), [&](const SiteAddress& donor) {
          return donor.site == site.name;
        });
    if (was_donor) site.held.insert(exchange);
  }
}

// The start is decided: commits of an earlier course from here on are forgotten, and their data
// steps are to be read again.
void RoundMachine::go_back() {
  const auto first = earlier_.lower_bound(first_logged_);
  for (auto given_up = first; given_up != earlier_.end(); ++given_up) {
    out_.writes.push_back(
        {.key = fmt::format("{}{}", kCommitPrefix, given_up->first), .value = {}});
  }
  earlier_.erase(first, earlier_.end());
  count_again();
  forget_shares();
  count_again();
}

// Of another plan they mean nothing: its lanes are others.
void RoundMachine::restore_shares(const DurableState& known) {
  const auto kept = known.find(kSharesKey);
  if (kept == known.end()) return;
  const json found = parse_json(kept->second);
  if (found.at("sites") != json(options_.sites) ||
      found.at("first") != json(shares().at(0).sequences)) {
    return;
  }
  for (const json& change : found.at("changes")) {
    const Status added =
        ledger_.change_shares({.data_step = change.at("data_step"),
                               .sequences = change.at("sequences").get<std::vector<int64_t>>()});
    if (!added) fail("the coordinator's state cannot be read: {}", added.error().message);
  }
}

void RoundMachine::keep_shares() {
  json changes = json::array();
  for (const ShareChange& change : shares().changes()) {
    changes.push_back({{"data_step", change.data_step}, {"sequences", change.sequences}});
  }
  const json kept{
      {"sites", options_.sites}, {"first", shares().at(0).sequences}, {"changes", changes}};
  out_.writes.push_back({.key = kSharesKey, .value = kept.dump()});
}

// Back at a checkpoint, shares of data steps that nobody will have read by then were given up with
// the course that they belonged to.
void RoundMachine::forget_shares() {
  int64_t read_end = 0;
  for (const Site& site : sites_) {
    read_end = std::max(
        read_end,
        has_start(site) ? first_welcome(site).data_step : ledger_.next_data_step(lane_of(site)));
  }
  LaneShares kept = shares();
  const size_t num_before = kept.changes().size();
  kept.forget_from(std::max<int64_t>(read_end, 1));
  if (kept.changes().size() == num_before) return;
  ledger_ = TokenLedger(std::move(kept), options_.schedule.num_fragments);
  keep_shares();
}

void RoundMachine::keep_run() {
  json run{{"phase", static_cast<int>(phase_)},
           {"start_mode", static_cast<int>(start_mode_)},
           {"start_step", start_step_},
           {"first_logged", first_logged_},
           {"stop_requested", stop_requested_}};
  if (stop_step_) run["stop_step"] = *stop_step_;
  if (in_step_.saved_step >= 0) {
    run["saved_step"] = in_step_.saved_step;
    run["saved_at"] = in_step_.saved_at;
  }
  if (phase_ == RunPhase::kGathering) return;  // nothing is decided
  out_.writes.push_back({.key = kRunKey, .value = run.dump()});
}

void RoundMachine::keep_site(const Site& site) {
  json kept{{"hello", json_of(site.hello)}, {"returned", site.returned}, {"past", site.past}};
  if (site.welcome) kept["welcome"] = json_of(*site.welcome);
  out_.writes.push_back({.key = kSitePrefix + site.name, .value = kept.dump()});
}

void RoundMachine::keep_commit(const Made& made) {
  const json kept{{"commit", json_of(made.commit)}, {"incarnations", made.incarnations}};
  out_.writes.push_back(
      {.key = fmt::format("{}{}", kCommitPrefix, made.commit.exchange), .value = kept.dump()});
}

void RoundMachine::spend(const Commit& commit) {
  for (const MemberShare& member : commit.members) {
    const Site* site = find(member.site);
    if (site == nullptr) continue;  // of an earlier plan
    ledger_.spend(lane_of(*site),
                  fragment_of(commit.exchange),
                  {.begin = member.data_begin, .end = member.data_end});
  }
}

void RoundMachine::count_again() {
  ledger_ = TokenLedger(ledger_.shares(), options_.schedule.num_fragments);
  for (const auto* course : {&earlier_, &commits_}) {
    for (const auto& [exchange, made] : *course) spend(made.commit);
  }
}

std::vector<std::pair<std::string, std::string>> RoundMachine::addresses() const {
  std::vector<std::pair<std::string, std::string>> addresses;
  for (const Site& site : sites_) {
    const auto kept = live_ ? live_->find(kSitePrefix + site.name) : DurableState::const_iterator();
    if (live_ && site.incarnation == 0 && kept != live_->end()) {
      addresses.emplace_back(site.name, json::parse(kept->second).at("hello").at("address"));
    } else if (site.incarnation != 0) {
      addresses.emplace_back(site.name, site.hello.address);
    }
  }
  return addresses;
}

LaneAccount RoundMachine::account(const std::string& name) const {
  const Site& site = *const_cast<RoundMachine*>(this)->find(name);
  int64_t begin = ledger_.next_data_step(lane_of(site)), read_end = 0;
  if (site.welcome) {
    begin = site.welcome->data_step;
    const int64_t steps =
        site.status ? site.status->completed_steps - site.status->left_out_steps : 0;
    read_end = begin + steps - site.welcome->start_step;
  }
  LaneAccount account = ledger_.account(lane_of(site), begin, read_end);
  account.returned += site.returned;
  if (site.dead) account.returned += std::exchange(account.in_hand, 0);
  return account;
}

}  // namespace pelago::sites
