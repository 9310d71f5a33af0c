// The coordinator's side of the protocol as a pure state machine: (state, event, now) in, messages
// and records out. No weights, sockets or clock: the simulation runs it through thousands of seeds.
//
// An exchange goes  gathering -> exchanging(epoch) -> committed.  What keeps it right:
//   - A commit is made once, from the reports of all members of one epoch that hold one result, and
//     is written to the journal before anyone hears of it.
//   - Losing a member raises the epoch; reports of an older epoch are refused and counted. A site
//     that was left out keeps its own progress for the fragment's next exchange.
//   - A commit whose every holder has died before anyone else had fetched it is lost with them: it
//     is taken back and done again among those left; a holder that was only silent starts anew.
//   - Whatever a site missed it is sent again when its next status shows the gap.
//   - The coordinator may die at any moment: what it decided was durable before anyone heard of it,
//     and the next one goes on from there (round_state.cpp).
//   - A delta counts with its data steps (leases/token_ledger.h), each of them once.
//   - New shares are decided with a commit that no site can pass without hearing of them.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "sites/exchange/batch_shares.h"
#include "sites/exchange/grace_window.h"
#include "sites/leases/token_ledger.h"
#include "sites/protocol/round/round_records.h"
#include "sites/protocol/round_options.h"
#include "sites/state/state_store.h"
#include "sites/trust/suspects.h"
#include "train/messages.h"

namespace pelago::sites {

class RoundMachine {
 public:
  /// known: what an earlier coordinator of this run made durable; empty: there was none. Goes on
  /// with that run; if options.resume is set, only if one of its sites is still at work, and else
  /// back to a checkpoint. Throws Failure if known cannot be read.
  explicit RoundMachine(RoundOptions options, const DurableState& known = {});

  RoundOutput on_message(const std::string& from, const Message& message, double now_s);
  /// The connection from a site broke. It is dead unless it is heard again within a heartbeat.
  RoundOutput on_lost(const std::string& site, double now_s);
  /// Whatever is due by time alone. Call it several times a heartbeat.
  RoundOutput on_tick(double now_s);
  /// All sites stop at one quiet step with a checkpoint.
  RoundOutput request_stop(double now_s);

  enum class RunPhase {
    kGathering,  // waiting for every site's hello; nothing is decided, any site may come or go, and
                 // a coordinator that dies leaves nothing behind but its term
    kStarting,  // the start is decided, workers start; a site that starts again gets the same start
    kTraining,  // exchanges happen; a site that starts again must join and gets a new lease
    kOver,      // every site that lives has finished; only Release is sent
  };
  RunPhase phase() const { return phase_; }
  /// Why the run cannot go on; set once.
  const std::optional<std::string>& failure() const { return failure_; }
  bool was_stopped() const { return stop_requested_; }
  int64_t num_commits() const { return num_commits_; }
  int64_t num_differing() const { return num_differing_; }
  int64_t num_refused() const { return num_refused_; }
  int64_t start_step() const { return start_step_; }
  /// Whether this greeting decides where the site is found: not that of a start that was replaced,
  /// or of a second one while the first is heard.
  bool may_answer(const std::string& site, const Hello& hello) const;
  /// Where the sites of an earlier coordinator were last heard: it may speak to them at once.
  std::vector<std::pair<std::string, std::string>> addresses() const;
  int64_t term() const { return term_; }  // how many coordinators of this run there were before
  /// What became of a site's lane so far, in sequences.
  LaneAccount account(const std::string& site) const;
  const LaneShares& shares() const { return ledger_.shares(); }
  int64_t first_logged() const { return first_logged_; }  // earlier ones: of the checkpoint
  const std::optional<SiteStatus>& status(const std::string& site) const;
  /// Its sites were at work before, and are to start again together.
  bool is_restarting() const { return in_step_.num_restarts > 0 && phase_ != RunPhase::kOver; }

 private:
  using Site = KnownSite;
  using Exchange = OpenExchange;
  using Made = MadeCommit;
  static constexpr double kSilentHeartbeats = 5;  // after which a site is dead

  Site* find(const std::string& name);
  const ReadyExchange* ready(const Site& site, int64_t exchange) const;
  Welcome first_welcome(const Site& site) const;
  bool has_start(const Site& site) const;
  bool can_start(const Site& site) const { return is_lockstep() || has_start(site); }
  std::optional<int64_t> step_to_resume() const;
  bool is_awaited(const Site& site, int64_t exchange) const;
  int64_t fragment_of(int64_t exchange) const;
  int64_t snapshot_step(int64_t exchange) const;
  size_t lane_of(const Site& site) const { return static_cast<size_t>(&site - sites_.data()); }
  bool is_good_delta(const Site& site, const ReadyExchange& held);

  void take_hello(Site& site, const Hello& hello);
  void take_status(Site& site, const SiteStatus& status);
  void answer_gaps(Site& site);
  void answer_heartbeat(Site& site);
  void tell_to_return(const Site& site, uint64_t incarnation);
  void hear(Site& site);
  void mark_dead(Site& site, const std::string& why);
  bool refuse_mismatch(Site& site, const Hello& hello);
  void answer_hello(Site& site);
  int64_t first_untouched() const;
  int64_t joining_step(const Site& site, int64_t first) const;
  void welcome_joiner(Site& site);
  void allow(Site& site);
  void dismiss(Site& site, const std::string& reason, int exit_code);
  // round/round_pace.cpp
  void note_times(int64_t exchange, const Exchange& state);
  void share_anew(int64_t exchange);
  double pace_s(const Site& site) const;
  int64_t others_step(const Site& site) const;
  void tell_if_behind(const Site& site);
  std::vector<ShareChange> unknown_shares(const Site& site) const;
  // round_state.cpp
  void restore(const DurableState& known);
  void go_on(const DurableState& known);
  void go_on_if_alive(const std::string& from, const Message& message);
  void restore_site(Site& site, const std::string& value);
  void go_back();
  void keep_run();
  void keep_site(const Site& site);
  void keep_commit(const Made& made);
  void spend(const Commit& commit);
  void count_again();
  void restore_shares(const DurableState& known);
  void keep_shares();
  void forget_shares();
  // across/round_lockstep.cpp
  bool is_lockstep() const { return options_.schedule.num_fragments == 0; }
  void restart_together(const std::string& why);
  void hear_last_words(Site& site, const Report& report);
  bool note_in_step(const Site& site);
  void name_donors(Welcome& welcome) const;
  void note_start();
  std::string what_is_lost() const;
  void miss_absent_sites();
  void stop_in_step();
  void give_up(const std::string& why);
  void advance();
  void start_if_gathered();
  void allow_if_ready();
  void collect_ready();
  void advance_exchange(int64_t exchange, Exchange& state);
  bool is_due(int64_t exchange, const Exchange& state) const;
  void begin(int64_t exchange, Exchange& state);
  void leave_out_late(int64_t exchange, Exchange& state);
  bool leave_out_suspects(int64_t exchange, Exchange& state);
  const Made* newest_commit(int64_t fragment) const;
  void expel(Site& site);
  void note_late(int64_t exchange);
  bool is_needed(const Site& site) const;
  bool may_hold(const Site& site, const Commit& commit) const;
  Commit for_site(const Made& made, const Site& site) const;
  void revoke_lost();
  bool commit_if_held(int64_t exchange, const Begin& begin);
  Commit agreed(int64_t exchange, const Begin& begun);
  void decide_stop();
  bool stop_is_known() const;
  void finish_if_done();
  Alive alive() const { return {.term = term_, .address = options_.address}; }
  void call_unheard();
  void send(Site& site, const Message& message);
  void send_live(const Message& message);
  void record(const std::string& name, const std::string& fields_json);
  RoundOutput take_output() { return std::exchange(out_, {}); }

  RoundOptions options_;
  std::optional<DurableState> live_;  // of a run that may still be going on, while gathering
  RunPhase phase_ = RunPhase::kGathering;
  std::vector<Site> sites_;                // plan order
  std::map<int64_t, Exchange> exchanges_;  // begun or gathering
  std::map<int64_t, Made> commits_;        // by exchange, from first_logged_ on
  std::map<int64_t, Made> earlier_;        // of the course that this run was resumed from
  Suspects suspects_;
  TokenLedger ledger_;  // follows from commits_ and earlier_, and from shares made durable
  GraceWindow grace_;
  ShareWatch share_watch_;
  int64_t next_exchange_ = 0;  // the first that is not committed, as long as they come in order
  int64_t first_logged_ = 0;
  int64_t term_ = 0;
  int64_t epoch_ = 0, lost_epoch_ = 0;  // when commits were last taken back, or a term began
  int64_t start_step_ = 0;
  StartMode start_mode_ = StartMode::kFresh;
  bool stop_requested_ = false;
  std::optional<int64_t> stop_step_, stopped_step_;  // the latter of the run that this one resumes
  std::optional<std::string> failure_;
  int64_t num_commits_ = 0, num_differing_ = 0, num_refused_ = 0;
  double now_s_ = 0, called_s_ = -1e9;  // of the event at hand; of the last call to the unheard
  std::optional<double> ticked_s_, forsaken_s_;  // the last on_tick; since when no site trains
  InStep in_step_;
  RoundOutput out_;
};

}  // namespace pelago::sites
