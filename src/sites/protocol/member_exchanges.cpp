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
  PELAGO_ASSERT(welcome_.has_value(), "workers start after the welcome");
  Record& record = records_[exchange];
  record.local = local;
  record.data_begin = state_->sent_data()[static_cast<size_t>(fragment)];
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
  record.means_sent.clear();
  record.steps_taken.clear();
  record.coming = {};
  record.outcome.reset();
  record.gram.reset();
  record.is_judged = false;
  record.suspects.clear();
  record.unsent.clear();
  record.noted_epoch = -1;
  record.progress_s = now_s_;
  status_changed_ = true;
  start_work(begin.exchange, record);
  settle_all();
}

void Member::start_work(int64_t exchange, Record& record) {
  ExchangeSpec spec = is_final(exchange) ? options_.exchange.final() : options_.exchange;
  spec.member_idx = -1;
  spec.tokens.clear();
  for (const MemberShare& member : record.begin->members) {
    if (member.site == options_.site) spec.member_idx = static_cast<int64_t>(spec.tokens.size());
    spec.tokens.push_back(member.tokens);
  }
  if (spec.member_idx < 0) return;
  const int64_t fragment = fragment_of(exchange);
  const std::span<const float> owed =
      is_thin() ? std::span<const float>() : state_->kept_error(fragment);
  record.work = std::make_unique<ExchangeParts>(spec, state_->global(fragment), record.local, owed);
  for (const MemberShare& peer : record.begin->members) {
    if (peer.site != options_.site) act(KnowAddress{.site = peer.site, .address = peer.address});
  }
  begin_part(exchange, record);
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
  if (!commit.donors.empty()) fetcher_.set_donors(fragment, commit.donors);
  fetcher_.reconsider(fragment);
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
  if (status_.phase == SitePhase::kCatchingUp) {
    fetcher_.reconsider(fragment);
  } else {
    fetcher_.drop(fragment);
  }
}

void Member::settle_all() {
  for (auto& [exchange, record] : records_) settle(exchange, record);
  std::erase_if(records_, [&](const auto& entry) {
    const int64_t fragment = fragment_of(entry.first);
    if (state_->applied()[static_cast<size_t>(fragment)] < entry.first) return false;
    act(GiveMerged{.exchange = entry.first,
                   .fragment = fragment,
                   .given = merge_of(entry.first, entry.second)});
    status_changed_ = true;
    return true;
  });
}

std::vector<float> Member::merge_of(int64_t exchange, const Record& record) const {
  const int64_t fragment = fragment_of(exchange);
  const std::span<const float> global = state_->global(fragment);
  std::vector<float> given(global.begin(), global.end());
  if (!record.unsent.empty() && !is_final(exchange)) {
    for (size_t i = 0; i < given.size(); ++i) given[i] -= record.unsent[i];
  }
  if (options_.schedule.overlap_steps > 0 && !is_final(exchange)) {
    for (size_t i = 0; i < given.size(); ++i) given[i] -= record.local[i];
  }
  return given;
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
  const std::vector<float> error = record.work->new_error();
  if (is_thin()) {
    const auto keep = static_cast<float>(options_.exchange.error_decay);
    record.unsent.assign(error.begin(), error.end());
    for (float& value : record.unsent) value *= keep;
  }
  begin_parts_of(fragment_of(commit.taken_exchange));
  state_->keep_error(fragment_of(commit.taken_exchange),
                     is_thin() ? std::span<const float>() : std::span<const float>(error),
                     record.data_end);
}

// Nobody has taken my delta of an exchange that was committed without me: all of it stays in the
// local weights, and goes out with the fragment's next exchange.
void Member::keep_unsent(int64_t fragment, int64_t exchange_max) {
  for (auto& [exchange, record] : records_) {
    const bool is_lost =
        exchange <= exchange_max && fragment_of(exchange) == fragment && record.noted_epoch < 0;
    if (!is_lost) continue;
    const std::span<const float> global = state_->global(fragment);
    record.unsent.resize(global.size());
    for (size_t i = 0; i < global.size(); ++i) record.unsent[i] = global[i] - record.local[i];
  }
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
  std::string own;
  if (is_mine) {
    learn(exchange, record);
    if (record.outcome->hash == commit.hash) {
      change(fragment, exchange, commit.epoch, *record.outcome);
      ++status_.num_commits;
      // Alone it exchanged nothing with anybody.
      if (commit.members.size() > 1) {
        status_.exchanged_values += static_cast<int64_t>(record.outcome->global.size());
      }
      return;
    }
    log_warn("result differs from the others, fetching theirs exchange={}", exchange);
    // What of it is right need not travel.
    own = bytes_of(*record.outcome);
    record.outcome.reset();
    record.work.reset();
  }
  if (fetcher_.wants(fragment)) return;
  ++status_.num_missed;
  fetcher_.want(fragment, exchange, commit.donors, std::move(own));
}

}  // namespace pelago::sites
