// Pieces of an exchange that members send each other, part by part: deltas out, deltas in, summed,
// means out, means in, outer step. Each piece is asked for again where it does not come.
#include <algorithm>
#include <limits>

#include "base/error.h"
#include "sites/protocol/member.h"

namespace pelago::sites {

// Its pieces go out before the next part is quantised.
void Member::begin_part(int64_t exchange, Record& record) {
  const int64_t part = record.work->begin_next();
  for (const int64_t idx : sending_order(record)) {
    send_slice(record.begin->members[static_cast<size_t>(idx)].site,
               {.exchange = exchange,
                .epoch = record.begin->epoch,
                .part = part,
                .of_mean = false,
                .payload = record.work->part(part).delta_slice(idx)},
               /*again=*/false);
  }
  record.progress_s = now_s_;
  auto waiting = std::exchange(laid_aside_, {});
  progress(exchange, record, part);
  for (auto& [from, slice] : waiting) take(from, slice);
}

// The slowest line first: its pieces come last anyway. Where rates are not known yet everybody
// begins with the member behind it, so that not all send to the first one first.
std::vector<int64_t> Member::sending_order(const Record& record) const {
  const ExchangeParts& work = *record.work;
  std::vector<int64_t> order;
  for (int64_t i = 1; i < work.num_members(); ++i) {
    order.push_back((work.member_idx() + i) % work.num_members());
  }
  std::ranges::stable_sort(order, {}, [&](int64_t idx) {
    const auto rate = rates_mbit_s_.find(record.begin->members[static_cast<size_t>(idx)].site);
    return rate == rates_mbit_s_.end() ? std::numeric_limits<double>::infinity() : rate->second;
  });
  return order;
}

bool Member::has_work() const {
  return std::ranges::any_of(records_, [](const auto& entry) {
    return entry.second.work && entry.second.work->has_more();
  });
}

MemberActions Member::work(double now_s) {
  now_s_ = now_s;
  for (auto& [exchange, record] : records_) {
    if (!record.work || !record.work->has_more()) continue;
    begin_part(exchange, record);
    settle_all();
    break;
  }
  return take_actions();
}

// What parts are quantised from is about to change.
void Member::begin_parts_of(int64_t fragment) {
  for (auto& [exchange, record] : records_) {
    if (fragment_of(exchange) != fragment || !record.work) continue;
    while (record.work->has_more()) begin_part(exchange, record);
  }
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
  if (slice.epoch < 0 || slice.epoch < epoch || slice.exchange <= applied) {
    return refuse(from, "slice of an old epoch");
  }
  // The peer heard of this epoch first, or is faster.
  const bool is_early = slice.epoch > epoch || (found->second.work && slice.part >= 0 &&
                                                slice.part >= found->second.work->num_begun() &&
                                                slice.part < found->second.work->num_parts());
  if (is_early) {
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
  if (slice.part < 0 || slice.part >= record.work->num_parts()) {
    return refuse(from, "slice of no part");
  }
  const int64_t idx = member - members.begin();
  FragmentExchange& part = record.work->part(slice.part);
  const Status accepted =
      slice.of_mean ? part.accept_mean(idx, slice.payload) : part.accept_delta(idx, slice.payload);
  if (!accepted) {
    if (!slice.of_mean && record.suspects.emplace(from, "malformed").second) status_changed_ = true;
    return refuse(from, accepted.error().message);
  }
  record.progress_s = now_s_;
  progress(slice.exchange, record, slice.part);
}

void Member::progress(int64_t exchange, Record& record, int64_t part_idx) {
  ExchangeParts& work = *record.work;
  FragmentExchange& part = work.part(part_idx);
  if (part.has_summed() && record.means_sent.insert(part_idx).second) {
    weigh(exchange, record, part_idx);
    for (const int64_t idx : sending_order(record)) {
      send_slice(record.begin->members[static_cast<size_t>(idx)].site,
                 {.exchange = exchange,
                  .epoch = record.begin->epoch,
                  .part = part_idx,
                  .of_mean = true,
                  .payload = part.mean_slice(idx)},
                 /*again=*/false);
    }
  }
  if (record.gram && !record.is_judged && work.has_summed()) judge(exchange, record);
  if (!part.is_whole() || !record.steps_taken.insert(part_idx).second) return;
  state_->outer_step_of_part(fragment_of(exchange),
                             work.range(part_idx).begin,
                             part.mean(),
                             is_final(exchange) ? OuterOptions::final() : options_.outer,
                             record.coming);
  if (static_cast<int64_t>(record.steps_taken.size()) < work.num_parts()) return;
  record.coming.hash = state_->hash_of(record.coming);
  record.outcome = std::move(record.coming);
  status_changed_ = true;
}

std::vector<std::string> Member::missing(const Record& record) const {
  std::vector<std::string> names;
  if (!record.work || record.outcome) return names;
  for (int64_t idx = 0; idx < record.work->num_members(); ++idx) {
    const std::string& name = record.begin->members[static_cast<size_t>(idx)].site;
    if (!record.work->has_all_of(idx) && name != options_.site) names.push_back(name);
  }
  return names;
}

void Member::want_missing(int64_t exchange, Record& record) {
  record.progress_s = now_s_;
  for (int64_t part = 0; part < record.work->num_begun(); ++part) {
    const FragmentExchange& exchanged = record.work->part(part);
    for (int64_t idx = 0; idx < record.work->num_members(); ++idx) {
      const std::string& name = record.begin->members[static_cast<size_t>(idx)].site;
      if (name == options_.site) continue;
      Want want{.exchange = exchange, .epoch = record.begin->epoch, .part = part, .of_mean = false};
      if (!exchanged.has_delta(idx)) act(SendMessage{.to = name, .message = want});
      want.of_mean = true;
      if (!exchanged.has_mean(idx)) act(SendMessage{.to = name, .message = want});
    }
  }
}

void Member::take(const std::string& from, const Want& want) {
  const auto found = records_.find(want.exchange);
  if (found == records_.end() || !found->second.work || found->second.begin->epoch != want.epoch) {
    return refuse(from, "request for a slice of another epoch");
  }
  const Record& record = found->second;
  const std::vector<MemberShare>& members = record.begin->members;
  if (want.part < 0 || want.part >= record.work->num_parts()) {
    return refuse(from, "request for a slice of no part");
  }
  if (want.part >= record.work->num_begun()) return;  // goes out when it is there
  const FragmentExchange& part = record.work->part(want.part);
  if (want.of_mean && !part.has_summed()) return;
  for (size_t idx = 0; idx < members.size(); ++idx) {
    if (members[idx].site != from) continue;
    Slice slice{.exchange = want.exchange,
                .epoch = want.epoch,
                .part = want.part,
                .of_mean = want.of_mean,
                .payload = {}};
    slice.payload = want.of_mean ? part.mean_slice(static_cast<int64_t>(idx))
                                 : part.delta_slice(static_cast<int64_t>(idx));
    send_slice(from, std::move(slice), /*again=*/true);
  }
}

}  // namespace pelago::sites
