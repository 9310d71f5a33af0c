// What a member fetches from others (fetch/fragment_fetcher.h), and gives to them.
#include "base/text/json.h"
#include "sites/protocol/member.h"

namespace pelago::sites {

using nlohmann::json;

void Member::begin_join() {
  act(PrepareWorkers{.step = welcome_->start_step,
                     .data_step = welcome_->data_step,
                     .first_exchange = welcome_->first_exchange});
  if (options_.recall) fetcher_.set_older(options_.recall());
  // Of each fragment, the newest exchange before the first that this site takes part in.
  const auto num_fragments = static_cast<int64_t>(state_->fragments().size());
  for (int64_t fragment = 0; fragment < num_fragments; ++fragment) {
    int64_t newest = welcome_->first_exchange - 1;
    while (newest >= welcome_->first_logged && newest % num_fragments != fragment) --newest;
    fetcher_.want(fragment, newest >= welcome_->first_logged ? newest : -1, welcome_->donors);
  }
}

MemberActions Member::on_lost(const std::string& peer, double now_s) {
  now_s_ = now_s;
  fetcher_.on_lost(peer, now_s);
  return take_actions();
}

// What a site that joins has fetched it gives away at once: those who had it may have died since.
bool Member::can_give(const std::string& from, int64_t fragment) {
  if (fragment < 0 || fragment >= static_cast<int64_t>(state_->fragments().size())) {
    refuse(from, "request for a fragment that is not there");
    return false;
  }
  if (status_.phase == SitePhase::kTraining || status_.phase == SitePhase::kFinished) return true;
  if (!welcome_ || welcome_->mode != StartMode::kJoin) return false;
  return !fetcher_.wants(fragment) || state_->applied()[static_cast<size_t>(fragment)] >= 0;
}

void Member::take(const std::string& from, const Fetch& fetch) {
  if (!can_give(from, fetch.fragment)) return;
  // Not yet here: whoever asked will ask again, perhaps another.
  if (state_->applied()[static_cast<size_t>(fetch.fragment)] < fetch.exchange_min) return;
  act(KnowAddress{.site = from, .address = fetch.address});
  act(SendMessage{.to = from, .message = shelf_.manifest(fetch.fragment, fetch.hash, now_s_)});
}

void Member::take(const std::string& from, const FetchLeaf& wanted) {
  if (!can_give(from, wanted.fragment)) return;
  act(KnowAddress{.site = from, .address = wanted.address});
  if (std::optional<LeafShelf::Answer> answer = shelf_.leaf(wanted, now_s_)) {
    act(SendMessage{.to = from, .message = std::move(answer->leaf), .again = answer->again});
  } else {
    act(SendMessage{.to = from, .message = shelf_.manifest(wanted.fragment, {}, now_s_)});
  }
}

void Member::take(const std::string& from, const FragmentManifest& manifest) {
  fetcher_.take(from, manifest, now_s_);
}

void Member::take(const std::string& from, const FragmentLeaf& leaf) {
  fetcher_.take(from, leaf, now_s_);
}

Vouch Member::vouch(int64_t exchange, const std::string& hash) const {
  if (!welcome_) return Vouch::kNotYet;
  if (exchange < welcome_->first_logged) return Vouch::kNobody;
  const auto known = known_commits_.find(exchange);
  if (known == known_commits_.end()) return Vouch::kNotYet;  // the donor heard of it first
  return known->second.hash == hash ? Vouch::kYes : Vouch::kNo;
}

// Every event ends here. What was taken over may settle an exchange, which may ask for more.
void Member::fetch_on() {
  bool has_taken = true;
  while (has_taken) {
    has_taken = false;
    fetcher_.advance(now_s_);
    for (const FetchedFragment& fetched : fetcher_.take_fetched()) {
      take_over(fetched);
      has_taken = true;
    }
    const bool is_there = status_.phase == SitePhase::kCatchingUp && fetcher_.is_idle();
    if (has_taken && is_there) end_join();
  }
  tell_new_donors();
  for (const auto& [donor, what] : fetcher_.take_refusals()) {
    refuse(donor, what);
    act(SendMessage{.to = kCoordinatorName,
                    .message = Report{.name = "donor_refused",
                                      .json = json{{"donor", donor}, {"reason", what}}.dump()}});
  }
  for (FetchRequest& request : fetcher_.take_requests()) {
    act(KnowAddress{.site = request.to.site, .address = request.to.address});
    act(SendMessage{.to = request.to.site, .message = std::move(request.message)});
  }
}

void Member::tell_new_donors() {
  const std::map<std::string, int64_t>& by_donor = fetcher_.counts().by_donor;
  if (status_.phase != SitePhase::kCatchingUp || by_donor.size() == num_donors_told_) return;
  num_donors_told_ = by_donor.size();
  act(SendMessage{
      .to = kCoordinatorName,
      .message = Report{.name = "catching_up", .json = json{{"donors", by_donor}}.dump()}});
}

void Member::change(int64_t fragment,
                    int64_t exchange,
                    int64_t epoch,
                    const FragmentOutcome& outcome) {
  shelf_.before_change(fragment, now_s_);
  state_->apply(fragment, exchange, outcome);
  status_.applied_epochs[static_cast<size_t>(fragment)] = epoch;
}

void Member::take_over(const FetchedFragment& fetched) {
  keep_unsent(fetched.fragment, fetched.exchange);
  const auto commit = known_commits_.find(fetched.exchange);
  change(fetched.fragment,
         fetched.exchange,
         commit == known_commits_.end() ? -1 : commit->second.epoch,
         fetched.outcome);
  status_changed_ = true;
  if (status_.phase == SitePhase::kCatchingUp) {
    // No exchange of this fragment since the checkpoint: what rounding lost then is still owed.
    const GlobalState* older = fetcher_.older();
    const bool is_as_it_was =
        older != nullptr &&
        older->applied()[static_cast<size_t>(fetched.fragment)] == fetched.exchange &&
        older->fragment_hash(fetched.fragment) == fetched.outcome.hash;
    if (is_as_it_was) {
      state_->keep_error(
          fetched.fragment, older->kept_error(fetched.fragment), welcome_->data_step);
    }
  }
  settle_all();
}

void Member::end_join() {
  const FetchCounts& counts = fetcher_.counts();
  act(SendMessage{.to = kCoordinatorName,
                  .message = Report{.name = "caught_up",
                                    .json = json{{"leaves_fetched", counts.fetched},
                                                 {"leaves_kept", counts.kept},
                                                 {"leaves_refused", counts.refused},
                                                 {"donors", counts.by_donor}}
                                                .dump()}});
  fetcher_.set_older(nullptr);
  state_->set_sent_data(welcome_->data_step);
  status_.phase = SitePhase::kStarting;
  act(StartWorkers{.mode = StartMode::kJoin,
                   .step = welcome_->start_step,
                   .data_step = welcome_->data_step,
                   .first_exchange = welcome_->first_exchange});
}

}  // namespace pelago::sites
