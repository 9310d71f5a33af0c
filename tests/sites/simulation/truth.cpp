#include "sites/simulation/truth.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

namespace pelago::sites {

using nlohmann::json;

int64_t Truth::fragment_of(int64_t exchange) const {
  const int64_t num_regular = schedule_.num_regular();
  return exchange < num_regular ? exchange % schedule_.num_fragments : exchange - num_regular;
}

int64_t Truth::snapshot_step(int64_t exchange) const {
  return exchange < schedule_.num_regular() ? (exchange + 1) * schedule_.interval()
                                            : schedule_.num_steps;
}

void Truth::on_read(const std::string& site, int64_t data_step, StepRange samples) {
  read_[site].insert(data_step);
  const int64_t num_sequences = samples.end - samples.begin;
  const uint64_t start = newest_starts_[site];
  const auto known = sequences_.try_emplace({site, data_step}, Read{num_sequences, start}).first;
  // What an earlier start had read and not given is read anew, under whatever shares hold now.
  if (known->second.start != start) known->second = {num_sequences, start};
  if (known->second.sequences != num_sequences) {
    complain(fmt::format("{} reads {} sequences of data step {}, before it were {}",
                         site,
                         num_sequences,
                         data_step,
                         known->second.sequences));
  }
  for (int64_t sample = samples.begin; sample < samples.end; ++sample) {
    const Reader& reader =
        readers_.try_emplace(sample, Reader{.site = site, .data_step = data_step}).first->second;
    if (reader.site != site) {
      complain(fmt::format("sample {} is read by {} and {}", sample, reader.site, site));
    }
  }
}

void Truth::on_start(const std::string& site,
                     uint64_t incarnation,
                     int64_t step,
                     int64_t first_data) {
  starts_[{site, incarnation}] = {.step = step, .data = first_data};
  newest_starts_[site] = incarnation;
  // What the start before had read beyond has returned to the lanes of whatever shares hold then.
  std::erase_if(readers_, [&](const auto& entry) {
    return entry.second.site == site && entry.second.data_step >= first_data;
  });
}

void Truth::on_resume(const std::string& site, uint64_t incarnation, uint64_t saver, Start from) {
  // What was read since is read again, perhaps with other shares.
  std::erase_if(sequences_, [&](const auto& read) {
    return read.first.first == site && read.first.second >= from.data;
  });
  std::erase_if(readers_, [&](const auto& reader) { return reader.second.site == site; });
  savers_[incarnation] = origin(saver);
  starts_[{site, incarnation}] = starts_[{site, saver}];
  std::set<int64_t>& left_out = left_out_[{site, incarnation}] = left_out_[{site, saver}];
  left_out.erase(left_out.upper_bound(from.step), left_out.end());
}

void Truth::on_left_out(const std::string& site, uint64_t incarnation, int64_t completed_steps) {
  left_out_[{site, incarnation}].insert(completed_steps);
}

uint64_t Truth::origin(uint64_t incarnation) const {
  const auto saver = savers_.find(incarnation);
  return saver == savers_.end() ? incarnation : saver->second;
}

void Truth::on_writes(const std::vector<StateWrite>& writes) {
  for (const StateWrite& write : writes) {
    if (write.key == "run") {
      const int phase = json::parse(write.value).at("phase").get<int>();
      const bool goes_back = phase < std::exchange(phase_, phase);
      const bool loses_some = !commits_.empty() || num_lost_ > 0;
      const bool may = std::exchange(may_go_back_, may_go_back_ && !goes_back) || !loses_some;
      if (goes_back && !may) complain("the run has begun anew");
    }
    if (write.key.rfind("site/", 0) == 0) on_site(write.key.substr(5), write.value);
    if (write.key.rfind("commit/", 0) != 0) continue;
    if (write.value.empty()) {
      const auto lost = commits_.find(std::stoll(write.key.substr(7)));
      if (lost != commits_.end()) {
        lost_.emplace(lost->first, lost->second.commit.hash);
        commits_.erase(lost);
      }
      ++num_lost_;
      continue;
    }
    const json kept = json::parse(write.value);
    const Frame frame{.from = "",
                      .kind = static_cast<uint32_t>(Message(Commit{}).index()),
                      .head = kept.at("commit").dump(),
                      .payload = {}};
    const Result<Message> commit = decode(frame);
    if (!commit) return complain(commit.error().message);
    Made made{.commit = std::get<Commit>(*commit), .incarnations = {}};
    kept.at("incarnations").get_to(made.incarnations);
    on_commit(std::move(made));
  }
}

void Truth::on_site(const std::string& site, const std::string& value) {
  const json kept = json::parse(value);
  const auto incarnation = kept.at("hello").at("incarnation").get<uint64_t>();
  if (kept.contains("welcome")) {
    expelled_.erase(incarnation);
  } else {
    expelled_.insert(incarnation);
  }
  const uint64_t before = std::exchange(taken_in_[site], incarnation);
  if (before != 0 && before != incarnation) replaced_.insert(before);
  if (replaced_.contains(incarnation))
    complain(site + ": a start that was replaced is taken in again");
}

// What this fragment has had of this start, then where its next delta begins.
int64_t Truth::next_data(int64_t exchange, const std::string& site, uint64_t incarnation) {
  int64_t begin = starts_.at({site, incarnation}).data;
  for (const auto& [other, earlier] : commits_) {
    if (fragment_of(other) != fragment_of(exchange)) continue;
    const auto was = earlier.incarnations.find(site);
    if (was == earlier.incarnations.end() || origin(was->second) != origin(incarnation)) {
      continue;
    }
    for (const MemberShare& share : earlier.commit.members) {
      if (share.site == site) begin = std::max(begin, share.data_end);
    }
  }
  return begin;
}

void Truth::on_commit(Made made) {
  const Commit& commit = made.commit;
  const int64_t exchange = commit.exchange;
  if (commits_.contains(exchange)) {
    return complain(fmt::format("exchange {} is committed twice", exchange));
  }
  if (commit.donors.size() != commit.members.size()) {
    complain(fmt::format("exchange {}: results differ", exchange));
  }
  if (commit.members.empty() || commit.hash.empty()) {
    complain(fmt::format("exchange {} is committed by nobody", exchange));
  }
  for (const MemberShare& member : commit.members) {
    const uint64_t incarnation = made.incarnations[member.site];
    if (incarnation != taken_in_[member.site]) {
      complain(
          fmt::format("exchange {} takes a delta of {}, which was fenced", exchange, member.site));
    }
    const auto astray = astray_.find(incarnation);
    if (astray != astray_.end() && snapshot_step(exchange) > astray->second) {
      complain(fmt::format(
          "exchange {} takes what {} learned from lost weights", exchange, member.site));
    }
    const auto start = starts_.find({member.site, incarnation});
    if (start == starts_.end()) {
      complain(fmt::format(
          "exchange {} takes a delta of a start of {} that never was", exchange, member.site));
      continue;
    }
    const int64_t begin = next_data(exchange, member.site, incarnation);
    const int64_t last = snapshot_step(exchange);
    const std::set<int64_t>& left_out = left_out_[{member.site, incarnation}];
    const int64_t end = start->second.data + last - start->second.step -
                        std::distance(left_out.begin(), left_out.upper_bound(last));
    if (member.data_begin != begin || member.data_end != end) {
      complain(fmt::format("exchange {}: {} gives data steps {}-{}, its delta has {}-{}",
                           exchange,
                           member.site,
                           member.data_begin,
                           member.data_end,
                           begin,
                           end));
    }
    check_tokens(exchange, member, {.begin = begin, .end = end});
    const std::set<int64_t> before = spent(member.site, fragment_of(exchange));
    const auto repeated = before.lower_bound(member.data_begin);
    if (repeated != before.end() && *repeated < member.data_end) {
      complain(fmt::format(
          "exchange {}: data step {} of {} is spent twice", exchange, *repeated, member.site));
    }
  }
  commits_.emplace(exchange, std::move(made));
}

void Truth::check_tokens(int64_t exchange, const MemberShare& member, StepRange steps) {
  int64_t tokens = 0;
  for (int64_t step = steps.begin; step < steps.end; ++step) {
    const auto read = sequences_.find({member.site, step});
    if (read != sequences_.end()) tokens += read->second.sequences * sequence_tokens_;
  }
  if (member.tokens == tokens) return;
  complain(fmt::format("exchange {}: {} gives {} tokens, its delta has {}",
                       exchange,
                       member.site,
                       member.tokens,
                       tokens));
}

std::set<int64_t> Truth::spent(const std::string& site, int64_t fragment) const {
  std::set<int64_t> steps;
  for (const auto& [exchange, made] : commits_) {
    if (fragment >= 0 && fragment_of(exchange) != fragment) continue;
    for (const MemberShare& share : made.commit.members) {
      for (int64_t step = share.data_begin; share.site == site && step < share.data_end; ++step) {
        steps.insert(step);
      }
    }
  }
  return steps;
}

void Truth::check_held(const std::string& site,
                       uint64_t incarnation,
                       const GlobalState& state,
                       int64_t completed_steps) {
  if (replaced_.contains(incarnation) || expelled_.contains(incarnation)) return;
  for (size_t fragment = 0; fragment < state.applied().size(); ++fragment) {
    const int64_t exchange = state.applied()[fragment];
    if (exchange < 0) continue;
    const auto made = commits_.find(exchange);
    const std::string hash = state.fragment_hash(static_cast<int64_t>(fragment));
    if (made != commits_.end() && hash == made->second.commit.hash) continue;
    if (lost_.contains({exchange, hash})) {
      astray_.try_emplace(incarnation, completed_steps);
    } else if (made == commits_.end()) {
      complain(fmt::format("{} applied {} before its commit", site, exchange));
    } else {
      complain(fmt::format("{} holds other weights than were committed", site));
    }
  }
}

/// The sequences of those of these data steps that were read.
int64_t Truth::weigh(const std::string& site, const std::set<int64_t>& steps) const {
  int64_t sum = 0;
  for (const int64_t step : steps) {
    const auto read = sequences_.find({site, step});
    if (read != sequences_.end()) sum += read->second.sequences;
  }
  return sum;
}

void Truth::check_account(const std::string& site, const LaneAccount& account) {
  const std::set<int64_t> any = spent(site, -1);
  const int64_t all_spent = weigh(site, any);
  if (account.spent != all_spent || account.repeated != 0) {
    complain(fmt::format("{}: the ledger has {} sequences spent and {} repeated, in truth {} and 0",
                         site,
                         account.spent,
                         account.repeated,
                         all_spent));
  }
  std::set<int64_t> partly;
  for (const int64_t step : any) {
    for (int64_t fragment = 0; fragment < schedule_.num_fragments; ++fragment) {
      if (!spent(site, fragment).contains(step)) partly.insert(step);
    }
  }
  if (account.partly != weigh(site, partly)) {
    complain(fmt::format("{}: the ledger has {} sequences in part of the fragments, in truth {}",
                         site,
                         account.partly,
                         weigh(site, partly)));
  }
  // Below the last data step spent, where no later lease begins, nothing is passed over in silence.
  // What lies beyond is still in the lane, whoever had read it.
  const std::set<int64_t>& read = read_[site];
  const int64_t end = any.empty() ? 0 : *any.rbegin() + 1;
  int64_t skipped = 0;  // data steps, at least a sequence each
  std::set<int64_t> unspent;
  for (int64_t step = 0; step < end; ++step) {
    if (any.contains(step)) continue;
    unspent.insert(step);
    skipped += read.contains(step) ? 0 : 1;
  }
  if (skipped > account.lost ||
      weigh(site, unspent) > account.lost + account.in_hand + account.returned) {
    complain(fmt::format(
        "{}: {} sequences are in no commit, {} data steps were never read; the ledger lists {}",
        site,
        weigh(site, unspent),
        skipped,
        account.lost));
  }
}

}  // namespace pelago::sites
