// A member's exchanges: snapshot taken -> begun(epoch) -> whole -> applied.
#include <algorithm>

#include "base/error.h"
#include "base/log.h"
#include "sites/protocol/member.h"

namespace pelago::sites {

int64_t Member::fragment_of(int64_t exchange) const {
  const int64_t num_regular = options_.schedule.num_regular();
  return exchange < num_regular ? exchange % options_.schedule.num_fragments
                                : exchange - num_regular;
}

int64_t Member::snapshot_step(int64_t exchange) const {
  return exchange < options_.schedule.num_regular() ? (exchange + 1) * options_.schedule.interval()
                                                    : options_.schedule.num_steps;
}

bool Member::is_possible(int64_t exchange) const {
  return exchange >= 0 &&
         exchange < options_.schedule.num_regular() + options_.schedule.num_fragments;
}

MemberActions Member::on_snapshot(int64_t exchange, std::span<const float> local, double now_s) {
  now_s_ = now_s;
  PELAGO_ASSERT(is_possible(exchange), "the workers follow the schedule");
  const int64_t fragment = fragment_of(exchange);
  const int64_t sent_step = state_->sent_steps()[static_cast<size_t>(fragment)];
  PELAGO_ASSERT(welcome_.has_value(), "workers start after the welcome");
  Record& record = records_[exchange];
  record.local = local;
  record.data_begin = sent_step + data_shift();
  record.data_end = snapshot_step(exchange) + data_shift();
  record.tokens =
      shares_.count(options_.lane, StepRange{.begin = record.data_begin, .end = record.data_end}) *
      options_.sequence_tokens;
  status_changed_ = true;
  settle_all();
  return take_actions();
}

void Member::take(const std::string& from, const Begin& begin) {
  if (from != kCoordinatorName) return refuse(from, "begin");
  if (!is_possible(begin.exchange)) return refuse(from, "begin of no exchange");
  forget_lost(fragment_of(begin.exchange), begin.exchange, begin.epoch);
  const auto found = records_.find(begin.exchange);
  if (found == records_.end()) return;  // told again once this site's snapshot is reported
  Record& record = found->second;
  if (record.begin && begin.epoch <= record.begin->epoch) {
    if (begin.epoch < record.begin->epoch) refuse(from, "begin of an old epoch");
    return;
  }
  record.begin = begin;
  record.work.reset();
  record.outcome.reset();
  record.mean_sent = false;
  record.gram.reset();
  record.suspects.clear();
  record.progress_s = now_s_;
  status_changed_ = true;
  start_work(begin.exchange, record);
  settle_all();
}

void Member::start_work(int64_t exchange, Record& record) {
  ExchangeSpec spec = options_.exchange;
  spec.member_idx = -1;
  spec.tokens.clear();
  for (const MemberShare& member : record.begin->members) {
    if (member.site == options_.site) spec.member_idx = static_cast<int64_t>(spec.tokens.size());
    spec.tokens.push_back(member.tokens);
  }
  if (spec.member_idx < 0) return;
  const int64_t fragment = fragment_of(exchange);
  record.work = std::make_unique<FragmentExchange>(
      spec, state_->global(fragment), record.local, state_->kept_error(fragment));
  for (int64_t idx = 0; idx < record.work->num_members(); ++idx) {
    if (idx == spec.member_idx) continue;
    const MemberShare& peer = record.begin->members[static_cast<size_t>(idx)];
    act(KnowAddress{.site = peer.site, .address = peer.address});
    send_slice(peer.site,
               {.exchange = exchange,
                .epoch = record.begin->epoch,
                .of_mean = false,
                .payload = record.work->delta_slice(idx)},
               /*again=*/false);
  }
  auto waiting = std::exchange(laid_aside_, {});
  progress(exchange, record);
  for (auto& [from, slice] : waiting) take(from, slice);
}

void Member::send_slice(const std::string& to, Slice slice, bool again) {
  status_.exchange_payload_bytes += static_cast<int64_t>(slice.payload.size());
  act(SendMessage{.to = to, .message = std::move(slice), .again = again});
}

void Member::take(const std::string& from, const Slice& slice) {
  if (!is_possible(slice.exchange)) return refuse(from, "slice of no exchange");
  const auto found = records_.find(slice.exchange);
  const int64_t epoch =
      found != records_.end() && found->second.begin ? found->second.begin->epoch : -1;
  const int64_t applied = state_->applied()[static_cast<size_t>(fragment_of(slice.exchange))];
  if (slice.epoch < epoch || slice.exchange <= applied) {
    return refuse(from, "slice of an old epoch");
  }
  if (slice.epoch > epoch) {  // the peer heard of this epoch first
    const size_t num_aside_max = 64 * state_->fragments().size();
    if (laid_aside_.size() >= num_aside_max) laid_aside_.erase(laid_aside_.begin());
    laid_aside_.emplace_back(from, slice);
    return;
  }
  Record& record = found->second;
  if (!record.work) return refuse(from, "slice of an exchange this site is not in");
  const std::vector<MemberShare>& members = record.begin->members;
  const auto member = std::find_if(
      members.begin(), members.end(), [&](const MemberShare& share) { return share.site == from; });
  if (member == members.end()) return refuse(from, "slice of a site that is not a member");
  const int64_t idx = member - members.begin();
  const Status accepted = slice.of_mean ? record.work->accept_mean(idx, slice.payload)
                                        : record.work->accept_delta(idx, slice.payload);
  if (!accepted) {
    if (!slice.of_mean && record.suspects.emplace(from, "malformed").second) status_changed_ = true;
    return refuse(from, accepted.error().message);
  }
  record.progress_s = now_s_;
  progress(slice.exchange, record);
}

void Member::progress(int64_t exchange, Record& record) {
  FragmentExchange& work = *record.work;
  if (work.mean_slice() && !record.gram) judge(exchange, record);
  if (work.mean_slice() && !record.mean_sent) {
    record.mean_sent = true;
    for (const MemberShare& peer : record.begin->members) {
      if (peer.site == options_.site) continue;
      send_slice(peer.site,
                 {.exchange = exchange,
                  .epoch = record.begin->epoch,
                  .of_mean = true,
                  .payload = *work.mean_slice()},
                 /*again=*/false);
    }
  }
  if (!work.is_whole() || record.outcome) return;
  record.outcome = state_->outer_step(fragment_of(exchange), work.mean(), options_.outer);
  status_changed_ = true;
}

std::vector<std::string> Member::missing(const Record& record) const {
  std::vector<std::string> names;
  if (!record.work || record.outcome) return names;
  for (int64_t idx = 0; idx < record.work->num_members(); ++idx) {
    const bool has_all =
        record.work->has_mean(idx) && (record.work->mean_slice() || record.work->has_delta(idx));
    const std::string& name = record.begin->members[static_cast<size_t>(idx)].site;
    if (!has_all && name != options_.site) names.push_back(name);
  }
  return names;
}

void Member::want_missing(int64_t exchange, Record& record) {
  record.progress_s = now_s_;
  for (int64_t idx = 0; idx < record.work->num_members(); ++idx) {
    const std::string& name = record.begin->members[static_cast<size_t>(idx)].site;
    if (name == options_.site) continue;
    Want want{.exchange = exchange, .epoch = record.begin->epoch, .of_mean = false};
    if (!record.work->has_delta(idx)) act(SendMessage{.to = name, .message = want});
    want.of_mean = true;
    if (!record.work->has_mean(idx)) act(SendMessage{.to = name, .message = want});
  }
}

void Member::take(const std::string& from, const Want& want) {
  const auto found = records_.find(want.exchange);
  if (found == records_.end() || !found->second.work || found->second.begin->epoch != want.epoch) {
    return refuse(from, "request for a slice of another epoch");
  }
  const Record& record = found->second;
  const std::vector<MemberShare>& members = record.begin->members;
  for (size_t idx = 0; idx < members.size(); ++idx) {
    if (members[idx].site != from) continue;
    Slice slice{
        .exchange = want.exchange, .epoch = want.epoch, .of_mean = want.of_mean, .payload = {}};
    if (want.of_mean && !record.work->mean_slice()) return;  // goes out when it is there
    slice.payload = want.of_mean ? *record.work->mean_slice()
                                 : record.work->delta_slice(static_cast<int64_t>(idx));
    send_slice(from, std::move(slice), /*again=*/true);
  }
}

void Member::take(const std::string& from, const Commit& commit) {
  if (from != kCoordinatorName || !is_possible(commit.exchange)) return refuse(from, "commit");
  if (welcome_) take_shares(commit.shares);
  const int64_t fragment = fragment_of(commit.exchange);
  // Epochs rise from commit to commit of a fragment: one that does not fit was taken back.
  const bool was_taken_back =
      std::any_of(known_commits_.begin(), known_commits_.end(), [&](const auto& entry) {
        return entry.first <= commit.exchange && entry.second.epoch > commit.epoch &&
               fragment_of(entry.first) == fragment;
      });
  if (was_taken_back) return refuse(from, "commit of an old epoch");
  forget_lost(fragment, commit.exchange, commit.epoch);
  forget_lost(fragment, commit.exchange + 1, commit.lost_epoch);
  known_commits_[commit.exchange] = commit;
  note_taken(commit);
  const auto fetching = fetches_.find(fragment);
  if (fetching != fetches_.end()) {
    if (!commit.donors.empty()) fetching->second.donors = commit.donors;
    if (fetching->second.early) believe(fragment, fetching->second);
  }
  settle_all();
}

const Commit* Member::newest_commit(int64_t fragment) const {
  for (auto commit = known_commits_.rbegin(); commit != known_commits_.rend(); ++commit) {
    if (fragment_of(commit->first) == fragment) return &commit->second;
  }
  return nullptr;
}

// Commits from this exchange on and below this epoch are taken back: the exchange begins again, or
// the coordinator says so. Whoever held the outcome has died with it.
void Member::forget_lost(int64_t fragment, int64_t exchange, int64_t epoch) {
  // This site may have missed the commit itself and know only of later ones.
  const size_t num_lost = std::erase_if(known_commits_, [&](const auto& entry) {
    return entry.first >= exchange && fragment_of(entry.first) == fragment &&
           entry.second.epoch < epoch;
  });
  if (num_lost == 0) return;
  // A site that catches up still needs the fragment, from whoever will hold it.
  if (status_.phase != SitePhase::kCatchingUp) fetches_.erase(fragment);
}

void Member::settle_all() {
  for (auto& [exchange, record] : records_) settle(exchange, record);
  std::erase_if(records_, [&](const auto& entry) {
    const int64_t fragment = fragment_of(entry.first);
    if (state_->applied()[static_cast<size_t>(fragment)] < entry.first) return false;
    act(GiveMerged{.exchange = entry.first, .fragment = fragment});
    status_changed_ = true;
    return true;
  });
}

// My delta is in that mean, whatever I made of it: only what rounding lost is still owed. Told with
// every commit of the fragment, so that a site that missed this one does not send its tokens again.
void Member::note_taken(const Commit& commit) {
  const auto found = records_.find(commit.taken_exchange);
  if (found == records_.end()) return;
  Record& record = found->second;
  const bool is_that = record.outcome && record.begin->epoch == commit.taken_epoch;
  if (!is_that || record.noted_epoch == commit.taken_epoch) return;
  record.noted_epoch = commit.taken_epoch;
  state_->keep_error(fragment_of(commit.taken_exchange),
                     record.work->new_error(),
                     snapshot_step(commit.taken_exchange));
}

void Member::settle(int64_t exchange, Record& record) {
  const int64_t fragment = fragment_of(exchange);
  const Commit* newest = newest_commit(fragment);
  if (newest == nullptr || newest->exchange < exchange ||
      state_->applied()[static_cast<size_t>(fragment)] >= exchange) {
    return;
  }
  const Commit& commit = *newest;
  const bool is_mine =
      commit.exchange == exchange && record.outcome && record.begin->epoch == commit.epoch;
  if (is_mine) {
    learn(exchange, record);
    if (record.outcome->hash == commit.hash) {
      state_->apply(fragment, exchange, *record.outcome);
      ++status_.num_commits;
      // Alone it exchanged nothing with anybody.
      if (commit.members.size() > 1) {
        status_.exchanged_values += static_cast<int64_t>(record.outcome->global.size());
      }
      return;
    }
    log_warn("result differs from the others, fetching theirs exchange={}", exchange);
    record.outcome.reset();
    record.work.reset();
  }
  if (fetches_.contains(fragment)) return;
  ++status_.num_missed;
  fetch(fragment, exchange, commit.donors);
}

}  // namespace pelago::sites
