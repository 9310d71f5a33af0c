// What must hold in every run, judged from outside: from what workers read and what became durable,
// never from what the protocol code says of itself.
//   - An exchange has one commit, unless that was taken back.
//   - Its members are the sites' starts that were not yet replaced, and the data steps it names are
//     those that went into the members' deltas.
//   - Every sample is read by one site only, whatever the shares; a delta weighs as many tokens as
//     its samples have.
//   - No data step is in two committed deltas of a fragment; between the deltas of one start no
//     data step falls out.
//   - Whoever holds a fragment as of an exchange holds the committed bits.
//   - At the end the ledger's account is what really happened.
#pragma once

#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "sites/exchange/global_state.h"
#include "sites/protocol/round_machine.h"

namespace pelago::sites {

class Truth {
 public:
  Truth(const train::ExchangeSchedule& schedule, int64_t sequence_tokens)
      : schedule_(schedule), sequence_tokens_(sequence_tokens) {}
  virtual ~Truth() = default;

  struct Start {
    int64_t step = 0;
    int64_t data = 0;
  };
  // What happened at a site. first_data: the data step that this start's first step reads.
  void on_start(const std::string& site, uint64_t incarnation, int64_t step, int64_t first_data);
  /// From a checkpoint of an earlier start: what that one had learned is in this one.
  void on_resume(const std::string& site, uint64_t incarnation, uint64_t saver, Start from);
  /// The step that completes so many reads nothing, and takes no data step.
  void on_left_out(const std::string& site, uint64_t incarnation, int64_t completed_steps);
  /// samples: [begin, end) of the run's, those of this data step in the site's lane.
  void on_read(const std::string& site, int64_t data_step, StepRange samples);
  // What became durable.
  virtual void on_writes(const std::vector<StateWrite>& writes);

  /// A start that was expelled or replaced may hold what it likes: nobody takes it from there. One
  /// that holds what was taken back has learned nothing that may be committed since.
  void check_held(const std::string& site,
                  uint64_t incarnation,
                  const GlobalState& state,
                  int64_t completed_steps);
  /// Everything has died: from now on the run may begin once more, from a checkpoint.
  void go_back() { may_go_back_ = true; }
  /// It has no checkpoint left: what it had read is given back before it comes again.
  void lose_disk(const std::string& site) {
    std::erase_if(readers_, [&](const auto& reader) { return reader.second.site == site; });
  }
  void check_account(const std::string& site, const LaneAccount& account);
  void complain(const std::string& what) {
    if (complaint_.empty()) complaint_ = what;
  }
  const std::string& complaint() const { return complaint_; }
  int64_t num_commits() const { return static_cast<int64_t>(commits_.size()); }
  int64_t num_lost_commits() const { return num_lost_; }

 protected:
  void on_site(const std::string& site, const std::string& value);

 private:
  struct Made {
    Commit commit;
    std::map<std::string, uint64_t> incarnations;
  };
  void on_commit(Made made);
  int64_t next_data(int64_t exchange, const std::string& site, uint64_t incarnation);
  void check_tokens(int64_t exchange, const MemberShare& member, StepRange steps);
  uint64_t origin(uint64_t incarnation) const;
  int64_t fragment_of(int64_t exchange) const;
  int64_t snapshot_step(int64_t exchange) const;
  int64_t weigh(const std::string& site, const std::set<int64_t>& steps) const;
  /// Data steps of a site in committed deltas of the fragment; -1: of any.
  std::set<int64_t> spent(const std::string& site, int64_t fragment) const;

  train::ExchangeSchedule schedule_;
  int64_t sequence_tokens_;
  struct Reader {
    std::string site;
    int64_t data_step = 0;
  };
  std::map<int64_t, Reader> readers_;  // by sample
  struct Read {
    int64_t sequences = 0;
    uint64_t start = 0;
  };
  std::map<std::pair<std::string, int64_t>, Read> sequences_;  // by site and data step
  std::map<std::string, uint64_t> newest_starts_;              // incarnations
  std::map<std::pair<std::string, uint64_t>, Start> starts_;
  std::map<std::pair<std::string, uint64_t>, std::set<int64_t>> left_out_;  // steps, by start
  std::map<uint64_t, uint64_t>
      savers_;  // of starts that went on from a checkpoint: the first start
  std::set<uint64_t> expelled_;
  std::set<uint64_t> replaced_;                     // starts that a later one took the place of
  std::map<std::string, uint64_t> taken_in_;        // the newest start that was made durable
  std::map<std::string, std::set<int64_t>> read_;   // data steps, by site
  std::map<int64_t, Made> commits_;                 // by exchange
  std::set<std::pair<int64_t, std::string>> lost_;  // exchanges and hashes that were taken back
  std::map<uint64_t, int64_t> astray_;  // starts that hold such: the steps they had completed then
  int phase_ = 0;
  bool may_go_back_ = false;
  int64_t num_lost_ = 0;
  std::string complaint_;
};

}  // namespace pelago::sites
