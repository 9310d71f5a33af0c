// A site's side of the protocol as a pure state machine: (state, event, now) in, actions out. It
// opens no socket, reads no clock and knows no worker: the agent carries out what it says, the
// simulation does the same without processes.
//
// An exchange at a member:  snapshot taken -> begun(epoch) -> whole -> applied.
//   snapshot taken  told to the coordinator; slices of peers that are ahead are laid aside
//   begun           my slices are out; a higher epoch starts again from the same snapshot
//   whole           the outcome is computed and its hash told, nothing is changed yet
//   applied         after the commit only: by my outcome if its hash is the committed one, else by
//                   fetching the fragment from a site that holds it
// What of its delta the commit did not take stays in the site's local weights and goes out with the
// fragment's next exchange: all of it if the site was left out, most of a thin one.
// A commit waits for this site's own snapshot of that exchange: what a checkpoint of step s holds
// then depends on s alone, and all sites can go back to s together.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "sites/exchange/exchange_parts.h"
#include "sites/exchange/global_state.h"
#include "sites/exchange/step_pace.h"
#include "sites/fetch/fragment_fetcher.h"
#include "sites/fetch/leaf_shelf.h"
#include "sites/leases/lane_shares.h"
#include "sites/protocol/member/member_actions.h"
#include "sites/protocol/messages.h"
#include "sites/trust/delta_watch.h"

namespace pelago::sites {

class Member {
 public:
  /// state outlives the member.
  Member(MemberOptions options, GlobalState& state);

  MemberActions on_message(const std::string& from, const Message& message, double now_s);
  MemberActions on_tick(double now_s);
  MemberActions on_workers_ready(double now_s);
  /// local: the fragment's weights [N] f32; stays as it is until GiveMerged.
  MemberActions on_snapshot(int64_t exchange, std::span<const float> local, double now_s);
  MemberActions on_finished(double now_s);
  /// The connection to a peer broke: what was asked of it is asked of another.
  MemberActions on_lost(const std::string& peer, double now_s);
  /// Of a site in step: what was said once was lost on a line. The coordinator hears it until it
  /// has begun all sites again.
  MemberActions on_line_lost(const std::string& why, double now_s);
  /// A checkpoint is safe on the disk.
  void on_saved(int64_t step) { status_.saved_step = std::max(status_.saved_step, step); }
  /// step_s: of the last step, without waiting for the line.
  void on_step(int64_t completed_steps, double step_s);
  /// The step that completes so many is not trained: its samples are those of the next one that is.
  void on_left_out(int64_t completed_steps);
  /// Parts of an exchange are still to be quantised: call work() between messages.
  bool has_work() const;
  MemberActions work(double now_s);
  /// This site wants to leave: asks the coordinator to stop everyone.
  MemberActions ask_stop(double now_s);
  /// For the coordinator's account of the line.
  void set_sent_bytes(int64_t bytes) { status_.sent_bytes = bytes; }
  /// Of the line to a peer, as last measured under load.
  void set_rate(const std::string& peer, double mbit_s) { rates_mbit_s_[peer] = mbit_s; }

  SitePhase phase() const { return status_.phase; }
  const SiteStatus& status() const { return status_; }

 private:
  struct Record {
    std::span<const float> local;
    int64_t tokens = 0;
    int64_t data_begin = 0, data_end = 0;
    std::optional<Begin> begin;
    std::unique_ptr<ExchangeParts> work;        // null: not begun, or not a member
    std::set<int64_t> means_sent, steps_taken;  // of parts
    FragmentOutcome coming;                     // as far as parts' means are here
    std::optional<FragmentOutcome> outcome;
    std::optional<SliceGram> gram;  // of my slices, as far as they are summed
    bool is_judged = false;
    std::map<std::string, std::string> suspects;  // by site: what is wrong with its delta
    int64_t noted_epoch = -1;                     // in which my delta was taken, as far as I know
    // [N]; empty: nothing. What of local the others do not have after the commit, and so stays.
    std::vector<float> unsent;
    double progress_s = 0;
  };
  void take(const std::string& from, const Welcome& welcome);
  void take(const std::string& from, const Refused& refused);
  void take(const std::string& from, const AllowTraining& allow);
  void take(const std::string& from, const Begin& begin);
  void take(const std::string& from, const Commit& commit);
  void take(const std::string& from, const StopAt& stop);
  void take(const std::string& from, const Release& release);
  void take(const std::string& from, const Alive& alive);
  void take(const std::string& from, const OthersAt& others);
  void take(const std::string& from, const Slice& slice);
  void take(const std::string& from, const Want& want);
  void take(const std::string& from, const Fetch& fetch);
  void take(const std::string& from, const FragmentManifest& manifest);
  void take(const std::string& from, const FetchLeaf& wanted);
  void take(const std::string& from, const FragmentLeaf& leaf);
  void take(const std::string& from, const Hello&) { refuse(from, "hello"); }
  void take(const std::string& from, const Heartbeat&) { refuse(from, "heartbeat"); }
  void take(const std::string& from, const SiteStatus&) { refuse(from, "status"); }
  void take(const std::string& from, const Report&) { refuse(from, "report"); }
  // Whoever carries this answers: it knows the disk.
  void take(const std::string& from, const FetchPiece&) { refuse(from, "fetch of a checkpoint"); }
  void take(const std::string& from, const CheckpointPiece&) { refuse(from, "checkpoint"); }

  int64_t fragment_of(int64_t exchange) const;
  int64_t snapshot_step(int64_t exchange) const;
  bool is_possible(int64_t exchange) const;
  void start_work(int64_t exchange, Record& record);
  void begin_part(int64_t exchange, Record& record);
  void begin_parts_of(int64_t fragment);
  std::vector<int64_t> sending_order(const Record& record) const;
  void progress(int64_t exchange, Record& record, int64_t part);
  void weigh(int64_t exchange, Record& record, int64_t part);
  void judge(int64_t exchange, Record& record);
  void learn(int64_t exchange, const Record& record);
  void want_missing(int64_t exchange, Record& record);
  void settle(int64_t exchange, Record& record);  // applies or fetches if the commit is known
  void note_taken(const Commit& commit);
  bool is_final(int64_t exchange) const { return exchange >= options_.schedule.num_regular(); }
  bool is_thin() const { return options_.exchange.bits == kThinBits; }
  void keep_unsent(int64_t fragment, int64_t exchange_max);
  std::vector<float> merge_of(int64_t exchange, const Record& record) const;
  void take_shares(const std::vector<ShareChange>& changes);
  /// Of the next step: its data step less its number.
  int64_t data_shift() const {
    return welcome_->data_step - welcome_->start_step - status_.left_out_steps;
  }
  void settle_all();
  const Commit* newest_commit(int64_t fragment) const;
  void forget_lost(int64_t fragment, int64_t exchange, int64_t epoch);
  // member_fetch.cpp
  void begin_join();
  bool can_give(const std::string& from, int64_t fragment);
  Vouch vouch(int64_t exchange, const std::string& hash) const;
  void fetch_on();
  void take_over(const FetchedFragment& fetched);
  void tell_new_donors();
  void end_join();
  void change(int64_t fragment, int64_t exchange, int64_t epoch, const FragmentOutcome& outcome);
  std::vector<std::string> missing(const Record& record) const;
  void send_slice(const std::string& to, Slice slice, bool again);
  void seek_coordinator();
  void refuse(const std::string& from, const std::string& why);
  void tell_status();
  template <typename Action>
  void act(Action action) {
    // In place: g++ 12 warns falsely about a variant that is built elsewhere and moved.
    actions_.emplace_back(std::in_place_type<Action>, std::move(action));
  }
  MemberActions take_actions();

  MemberOptions options_;
  GlobalState* state_;
  SiteStatus status_;
  LaneShares shares_;
  StepPace pace_;
  std::optional<Welcome> welcome_;
  std::map<int64_t, Record> records_;                      // snapshot taken, not yet applied
  std::vector<std::pair<std::string, Slice>> laid_aside_;  // of peers that are ahead
  std::map<std::string, double> rates_mbit_s_;             // of the lines to peers
  std::map<int64_t, Commit> known_commits_;                // by exchange
  LeafShelf shelf_;
  FragmentFetcher fetcher_;
  std::map<std::pair<int64_t, size_t>, DeltaWatch> watches_;  // by fragment, number of members
  size_t num_donors_told_ = 0;  // donors of which the coordinator knows that they give
  bool status_changed_ = false;
  bool has_left_ = false;
  double now_s_ = 0;
  double told_s_ = -1e9;
  double greeted_s_ = -1e9;
  std::optional<double> ticked_s_;
  std::optional<double> heard_s_;  // from the coordinator
  double sought_s_ = -1e9;
  size_t coordinator_idx_ = 0;
  int64_t coordinator_term_ = 0;  // the newest heard of
  MemberActions actions_;
};

}  // namespace pelago::sites
