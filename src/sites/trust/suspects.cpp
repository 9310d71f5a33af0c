#include "sites/trust/suspects.h"

#include <algorithm>

namespace pelago::sites {

std::vector<Accusation> Suspects::convict(const std::vector<std::vector<Accusation>>& votes) {
  std::map<std::string, std::map<std::string, size_t>> faults;  // by site, then by fault
  for (const std::vector<Accusation>& vote : votes) {
    for (const Accusation& accusation : vote) ++faults[accusation.site][accusation.fault];
  }
  std::vector<Accusation> convicted;
  for (const auto& [site, counts] : faults) {
    size_t num_accusers = 0;
    auto most = counts.begin();
    for (auto count = counts.begin(); count != counts.end(); ++count) {
      num_accusers += count->second;
      if (count->second > most->second) most = count;
    }
    if (2 * num_accusers >= votes.size()) convicted.push_back({.site = site, .fault = most->first});
  }
  // If everybody is at fault, it is the model that does something odd, and nobody is to blame.
  if (convicted.size() >= votes.size()) convicted.clear();
  return convicted;
}

int64_t Suspects::suspend(const std::string& site, int64_t exchange) {
  Record& record = records_[site];
  record.rounds_out = std::min(std::max<int64_t>(1, 2 * record.rounds_out), kRoundsOutMax);
  record.back_at = exchange + record.rounds_out * exchanges_per_round_;
  record.num_clean = 0;
  return record.back_at;
}

bool Suspects::sits_out(const std::string& site, int64_t exchange) const {
  const auto record = records_.find(site);
  return record != records_.end() && exchange < record->second.back_at;
}

std::vector<std::string> Suspects::on_commit(int64_t exchange,
                                             const std::vector<std::string>& members) {
  std::vector<std::string> cleared;
  for (const std::string& site : members) {
    const auto record = records_.find(site);
    if (record == records_.end() || exchange < record->second.back_at) continue;
    if (++record->second.num_clean < kCleanRounds * exchanges_per_round_) continue;
    records_.erase(record);
    cleared.push_back(site);
  }
  return cleared;
}

}  // namespace pelago::sites
