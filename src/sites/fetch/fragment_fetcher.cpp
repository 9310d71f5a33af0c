#include "sites/fetch/fragment_fetcher.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "base/files.h"

namespace pelago::sites {

namespace {

constexpr double kSilentHeartbeats = 5;
constexpr double kAskHeartbeats = 0.2;  // for the first manifest: it may be there any moment
constexpr double kPatienceHeartbeatsMax = 40;
constexpr double kPenaltyHeartbeatsMax = 10;  // the only donor may be right every other time
constexpr size_t kHashChars = 32;

size_t at(int64_t index) { return static_cast<size_t>(index); }

std::vector<std::string> hashes_in(const std::string& payload) {
  std::vector<std::string> hashes;
  for (size_t begin = 0; begin + kHashChars <= payload.size(); begin += kHashChars) {
    hashes.push_back(payload.substr(begin, kHashChars));
  }
  return hashes;
}

std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text));
}

}  // namespace

FragmentFetcher::FragmentFetcher(FetcherOptions options, const GlobalState& state, Voucher voucher)
    : options_(std::move(options)), state_(&state), voucher_(std::move(voucher)) {}

void FragmentFetcher::want(int64_t fragment,
                           int64_t exchange_min,
                           const std::vector<SiteAddress>& donors,
                           std::string own) {
  const auto known = wants_.find(fragment);
  if (known != wants_.end() && known->second.exchange_min >= exchange_min) return;
  drop(fragment);
  Want& want = wants_[fragment];
  want.exchange_min = exchange_min;
  want.own = std::move(own);
  set_donors(fragment, donors);
}

void FragmentFetcher::set_donors(int64_t fragment, const std::vector<SiteAddress>& donors) {
  const auto found = wants_.find(fragment);
  if (found == wants_.end()) return;
  Want& want = found->second;
  std::vector<std::string> names;
  for (const SiteAddress& each : donors) {
    if (each.site == options_.site) continue;
    names.push_back(each.site);
    Donor& donor = donors_[each.site];
    if (donor.address == each.address) continue;
    // It has started anew: it may hold something else.
    free_flights(each.site, want);
    want.offers.erase(each.site);
    want.asked_s.erase(each.site);
    donor.address = each.address;
    donor.patience_s = kSilentHeartbeats * options_.heartbeat_s;
    donor.penalty_s = options_.heartbeat_s;
    donor.rests_until_s = -1;
  }
  if (names.empty()) return;  // those known so far are as good as none
  for (const std::string& name : want.donors) {
    if (std::find(names.begin(), names.end(), name) != names.end()) continue;
    free_flights(name, want);
    want.offers.erase(name);
  }
  want.donors = std::move(names);
}

void FragmentFetcher::drop(int64_t fragment) {
  const auto found = wants_.find(fragment);
  if (found == wants_.end()) return;
  for (auto& [name, donor] : donors_) free_flights(name, found->second);
  wants_.erase(found);
}

void FragmentFetcher::reconsider(int64_t fragment) {
  const auto found = wants_.find(fragment);
  if (found == wants_.end() || !found->second.target) return;
  Want& want = found->second;
  const Vouch vouch = voucher_(want.target->exchange, want.target->hash);
  if (vouch == Vouch::kYes || vouch == Vouch::kNobody) return;
  for (auto& [name, donor] : donors_) free_flights(name, want);
  want.target.reset();
  want.offers.clear();
  want.asked_s.clear();
}

bool FragmentFetcher::rests(const std::string& name) const {
  const auto donor = donors_.find(name);
  return donor == donors_.end() || now_s_ < donor->second.rests_until_s;
}

void FragmentFetcher::free_flights(const std::string& name, Want& want) {
  if (!want.target) return;
  const size_t num_freed = std::erase_if(want.target->flights,
                                         [&](const auto& flight) { return flight.second == name; });
  donors_[name].num_in_flight -= static_cast<int64_t>(num_freed);
}

// Afterwards it is asked what it has before it is asked for leaves: if it is gone, no leaf waits.
void FragmentFetcher::rest(const std::string& name, double for_s) {
  for (auto& [fragment, want] : wants_) {
    free_flights(name, want);
    want.offers.erase(name);
    want.asked_s.erase(name);
  }
  donors_[name].window = kFirstWindow;
  donors_[name].rests_until_s = now_s_ + for_s;
}

// There may be nobody else, and the fault may pass: it is not left alone for ever.
void FragmentFetcher::blame(const std::string& name, const std::string& what) {
  ++counts_.refused;
  refusals_.emplace_back(name, what);
  for (auto& [fragment, want] : wants_) want.offers.erase(name);
  if (!donors_.contains(name) || rests(name)) return;
  Donor& donor = donors_[name];
  rest(name, donor.penalty_s);
  donor.penalty_s = std::min(2 * donor.penalty_s, kPenaltyHeartbeatsMax * options_.heartbeat_s);
}

void FragmentFetcher::take(const std::string& from,
                           const FragmentManifest& manifest,
                           double now_s) {
  now_s_ = now_s;
  const auto found = wants_.find(manifest.fragment);
  if (found == wants_.end()) return;  // another donor was faster
  Want& want = found->second;
  if (std::find(want.donors.begin(), want.donors.end(), from) == want.donors.end()) return;
  const std::vector<std::string> hashes = hashes_in(manifest.payload);
  const int64_t num_leaves = state_->leaf_layout(manifest.fragment).num_leaves();
  const bool is_good =
      manifest.payload.size() == at(num_leaves) * kHashChars && root_of(hashes) == manifest.hash;
  if (!is_good) {
    return blame(from,
                 fmt::format("a manifest of fragment {} that is not true", manifest.fragment));
  }
  donors_[from].heard_s = now_s;
  if (manifest.exchange < want.exchange_min) return;  // not yet there: it is asked again
  if (want.target && want.target->hash != manifest.hash) free_flights(from, want);
  want.offers[from] = manifest;
}

void FragmentFetcher::take(const std::string& from, const FragmentLeaf& leaf, double now_s) {
  now_s_ = now_s;
  const auto found = wants_.find(leaf.fragment);
  if (found == wants_.end() || !found->second.target) return;
  Want& want = found->second;
  Target& target = *want.target;
  if (target.hash != leaf.hash || leaf.leaf >= static_cast<int64_t>(target.here.size()) ||
      leaf.leaf < 0 || !donors_.contains(from)) {
    return;  // of what was wanted before
  }
  donors_[from].heard_s = now_s;
  if (target.here[at(leaf.leaf)]) return;  // another donor was faster
  const train::Fragment range = state_->leaf_layout(leaf.fragment).bytes(leaf.leaf);
  if (static_cast<int64_t>(leaf.payload.size()) != range.end - range.begin ||
      hash_hex(bytes_of(leaf.payload)) != target.leaf_hashes[at(leaf.leaf)]) {
    return blame(from,
                 fmt::format("wrong bytes for leaf {} of fragment {}", leaf.leaf, leaf.fragment));
  }
  std::memcpy(target.bytes.data() + range.begin, leaf.payload.data(), leaf.payload.size());
  target.here[at(leaf.leaf)] = true;
  --target.num_missing;
  if (const auto flight = target.flights.find(leaf.leaf); flight != target.flights.end()) {
    --donors_[flight->second].num_in_flight;
    target.flights.erase(flight);
  }
  ++donors_[from].window;
  ++counts_.fetched;
  ++counts_.by_donor[from];
}

void FragmentFetcher::on_lost(const std::string& name, double now_s) {
  now_s_ = now_s;
  const auto donor = donors_.find(name);
  if (donor == donors_.end() || donor->second.num_in_flight == 0) return;
  rest(name, options_.heartbeat_s);
}

void FragmentFetcher::advance(double now_s) {
  now_s_ = now_s;
  watch_silence();
  for (auto entry = wants_.begin(); entry != wants_.end();) {
    auto& [fragment, want] = *entry;
    choose(fragment, want);
    ask_for_manifests(fragment, want);
    if (want.target) ask_for_leaves(fragment, want);
    entry = finish(fragment, want) ? wants_.erase(entry) : std::next(entry);
  }
}

void FragmentFetcher::watch_silence() {
  for (auto& [name, donor] : donors_) {
    if (donor.num_in_flight == 0 || now_s_ - donor.heard_s <= donor.patience_s) continue;
    rest(name, options_.heartbeat_s);
    donor.patience_s =
        std::min(2 * donor.patience_s, kPatienceHeartbeatsMax * options_.heartbeat_s);
  }
}

void FragmentFetcher::ask_for_manifests(int64_t fragment, Want& want) {
  if (!want.first_asked_s) want.first_asked_s = now_s_;
  for (const std::string& name : want.donors) {
    const auto offer = want.offers.find(name);
    const bool offers_it =
        offer != want.offers.end() && (!want.target || want.target->hash == offer->second.hash);
    // Its commit may never be heard of: the coordinator repeats the newest only, and the donor will
    // hold that.
    const bool may_be_outdated =
        offers_it && !want.target &&
        voucher_(offer->second.exchange, offer->second.hash) == Vouch::kNotYet;
    const bool has_it = offers_it && !may_be_outdated;
    const auto asked = want.asked_s.find(name);
    const double pause_s = (want.target || may_be_outdated ? kSilentHeartbeats : kAskHeartbeats) *
                           options_.heartbeat_s;
    const bool is_due = asked == want.asked_s.end() || now_s_ - asked->second > pause_s;
    if (has_it || !is_due || rests(name)) continue;
    want.asked_s[name] = now_s_;
    requests_.push_back({.to = {.site = name, .address = donors_[name].address},
                         .message = Fetch{.fragment = fragment,
                                          .exchange_min = want.exchange_min,
                                          .hash = want.target ? want.target->hash : "",
                                          .address = options_.address}});
  }
}

// The newest that is vouched for, and of unlike ones the one that most donors hold. One that was
// begun is given up only when nobody has it any more and there is another.
void FragmentFetcher::choose(int64_t fragment, Want& want) {
  std::map<std::string, int64_t> num_holders;  // by hash
  for (const auto& [name, offer] : want.offers) ++num_holders[offer.hash];
  if (want.target && num_holders.contains(want.target->hash)) return;
  const bool all_have_said = want.offers.size() == want.donors.size();
  const bool has_waited = want.first_asked_s && now_s_ - *want.first_asked_s > options_.heartbeat_s;
  const FragmentManifest* best = nullptr;
  for (const auto& [name, offer] : want.offers) {
    const Vouch vouch = voucher_(offer.exchange, offer.hash);
    const bool is_possible =
        vouch == Vouch::kYes || (vouch == Vouch::kNobody && (all_have_said || has_waited));
    if (!is_possible) continue;
    if (best == nullptr || std::pair(offer.exchange, num_holders[offer.hash]) >
                               std::pair(best->exchange, num_holders[best->hash])) {
      best = &offer;
    }
  }
  if (best != nullptr) {
    begin(fragment, want, *best);
    return;
  }
  // Refused by the commits: whoever says so is asked again later, it may be about to start anew.
  std::vector<std::string> wrong;
  for (const auto& [name, offer] : want.offers) {
    if (voucher_(offer.exchange, offer.hash) == Vouch::kNo) wrong.push_back(name);
  }
  for (const std::string& name : wrong) {
    blame(name, fmt::format("fragment {} with a hash that is not the committed one", fragment));
  }
}

void FragmentFetcher::begin(int64_t fragment, Want& want, const FragmentManifest& offer) {
  for (auto& [name, donor] : donors_) free_flights(name, want);
  const LeafLayout layout = state_->leaf_layout(fragment);
  Target& target = want.target.emplace();
  target.exchange = offer.exchange;
  target.hash = offer.hash;
  target.leaf_hashes = hashes_in(offer.payload);
  target.bytes.resize(at(layout.num_leaves() == 0 ? 0 : layout.bytes(layout.num_leaves() - 1).end));
  target.here.resize(target.leaf_hashes.size());
  target.num_missing = target.here.size();
  take_own(fragment, want);
}

void FragmentFetcher::take_own(int64_t fragment, Want& want) {
  Target& target = *want.target;
  const LeafLayout layout = state_->leaf_layout(fragment);
  const auto take_from = [&](const auto& leaf_of) {
    for (int64_t idx = 0; idx < layout.num_leaves(); ++idx) {
      if (target.here[at(idx)]) continue;
      const std::string bytes = leaf_of(idx);
      if (hash_hex(bytes_of(bytes)) != target.leaf_hashes[at(idx)]) continue;
      std::memcpy(target.bytes.data() + layout.bytes(idx).begin, bytes.data(), bytes.size());
      target.here[at(idx)] = true;
      --target.num_missing;
      ++counts_.kept;
    }
  };
  take_from([&](int64_t idx) { return state_->leaf(fragment, idx); });
  if (older_) take_from([&](int64_t idx) { return older_->leaf(fragment, idx); });
  if (want.own.size() != target.bytes.size()) return;
  take_from([&](int64_t idx) {
    const train::Fragment range = layout.bytes(idx);
    return want.own.substr(at(range.begin), at(range.end - range.begin));
  });
}

void FragmentFetcher::ask_for_leaves(int64_t fragment, Want& want) {
  Target& target = *want.target;
  const auto num_leaves = static_cast<int64_t>(target.here.size());
  int64_t next = 0;
  const auto has_next = [&] {
    while (next < num_leaves && (target.here[at(next)] || target.flights.contains(next))) ++next;
    return next < num_leaves;
  };
  // One each in turn: with few leaves left, the donors share them.
  for (bool was_asked = true; was_asked && has_next();) {
    was_asked = false;
    for (const auto& [name, offer] : want.offers) {
      Donor& donor = donors_[name];
      const bool can = offer.hash == target.hash && !rests(name) &&
                       donor.num_in_flight < std::min(donor.window, options_.in_flight_leaves);
      if (!can || !has_next()) continue;
      if (donor.num_in_flight++ == 0) donor.heard_s = now_s_;
      target.flights[next] = name;
      was_asked = true;
      requests_.push_back({.to = {.site = name, .address = donor.address},
                           .message = FetchLeaf{.fragment = fragment,
                                                .hash = target.hash,
                                                .address = options_.address,
                                                .leaf = next}});
    }
  }
}

bool FragmentFetcher::finish(int64_t fragment, Want& want) {
  if (!want.target || want.target->num_missing > 0) return false;
  const Target& target = *want.target;
  Result<FragmentOutcome> outcome = state_->from_bytes(fragment, target.bytes, target.hash);
  if (outcome) {
    fetched_.push_back(
        {.fragment = fragment, .exchange = target.exchange, .outcome = std::move(*outcome)});
    return true;
  }
  // Its hashes were right and it is not finite: nobody vouched for it, and no donor is to be told
  // from another.
  want.target.reset();
  for (const auto& [name, offer] : std::map(want.offers)) blame(name, outcome.error().message);
  return false;
}

}  // namespace pelago::sites
