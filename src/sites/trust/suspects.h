// The coordinator's list of sites whose deltas the others found at fault. Half of an exchange's
// members must say so: each sees another slice. A suspect sits that round out, then takes part
// again; found at fault once more before it has been clean for two rounds, it sits out twice as
// long as the last time. It loses nothing: what it learns meanwhile stays in its weights, and it
// fetches what the others agree on.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace pelago::sites {

/// What one member says of another's delta.
struct Accusation {
  std::string site;
  std::string fault;  // name_of(DeltaFault)
};

class Suspects {
 public:
  /// exchanges_per_round: P.
  explicit Suspects(int64_t exchanges_per_round) : exchanges_per_round_(exchanges_per_round) {}

  /// The sites that enough of an exchange's members accuse, with what most say. votes: of each
  /// member, in any order.
  static std::vector<Accusation> convict(const std::vector<std::vector<Accusation>>& votes);

  /// From this exchange on it sits out; returns the exchange at which it is back.
  int64_t suspend(const std::string& site, int64_t exchange);
  bool sits_out(const std::string& site, int64_t exchange) const;
  /// The exchange was committed with these members; returns those that are suspects no more.
  std::vector<std::string> on_commit(int64_t exchange, const std::vector<std::string>& members);

 private:
  static constexpr int64_t kCleanRounds = 2;
  static constexpr int64_t kRoundsOutMax = 64;
  struct Record {
    int64_t rounds_out = 0;  // this time
    int64_t back_at = 0;     // exchange
    int64_t num_clean = 0;   // exchanges since
  };
  int64_t exchanges_per_round_;
  std::map<std::string, Record> records_;
};

}  // namespace pelago::sites
