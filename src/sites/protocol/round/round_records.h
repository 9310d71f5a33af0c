// What a RoundMachine knows of the sites, the exchanges under way and the commits made.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>

#include "sites/protocol/messages.h"

namespace pelago::sites {

/// How a site that trains comes to be too late for exchanges.
struct Lateness {
  int64_t exchange = -1;     // the last that began without it
  int64_t behind_steps = 0;  // the furthest of the others, then
  int64_t num_times = 0;     // in a row, without catching up
  int64_t num_anew = 0;      // starts that were told to begin anew since it last was a member
};

struct KnownSite {
  std::string name;
  uint64_t incarnation = 0;  // 0: never heard of
  std::set<uint64_t> past;   // incarnations of earlier starts: they are refused
  Hello hello;
  std::optional<Welcome> welcome;  // absent: not taken in
  std::optional<SiteStatus> status;
  // Known from an earlier coordinator, or back from silence: it has not yet said where it stands.
  bool is_unheard = false;
  int64_t returned = 0;     // sequences read by starts that died, and given back
  std::set<int64_t> held;   // commits that this start of the site held when they were made
  int64_t heard_steps = 0;  // that its heartbeats told it has completed
  bool dead = false;
  double died_s = 0;
  double heard_s = 0;
  std::optional<double> lost_s;
  double sent_s = -1e9;   // when something was last sent to it
  double alive_s = -1e9;  // when its heartbeat was last answered
  Lateness late;
};

inline bool is_finished(const KnownSite& site) {
  return site.status && site.status->phase == SitePhase::kFinished;
}

inline bool is_live(const KnownSite& site) {
  return site.incarnation != 0 && !site.dead && site.welcome.has_value();
}

/// Its workers are at work, or have just been told to be.
inline bool trains(const KnownSite& site) {
  if (!is_live(site) || !site.status) return false;
  return site.status->phase == SitePhase::kTraining ||
         (site.status->phase == SitePhase::kReady && site.welcome->mode != StartMode::kJoin);
}

/// It was told to start where the run began, and is not there yet.
inline bool begins(const KnownSite& site) {
  return is_live(site) && site.welcome->mode != StartMode::kJoin &&
         (!site.status || site.status->phase < SitePhase::kTraining);
}

/// Data step less step, of its first step; each that it leaves out takes one off.
inline int64_t data_shift(const KnownSite& site) {
  return site.welcome->data_step - site.welcome->start_step;
}

/// Of a site that trains.
inline int64_t completed_steps(const KnownSite& site) {
  return std::max(site.status->completed_steps, site.heard_steps);
}

struct OpenExchange {
  double first_ready_s = 0;
  std::map<std::string, double> ready_s;  // when each site's snapshot was first told of
  std::optional<Begin> begin;             // absent: gathering
  double begun_s = 0;
  std::set<std::string> left_out;  // for not holding it in time, in an earlier epoch
};

/// Of sites that train in step: how often they had to start again.
struct InStep {
  int64_t start_number = 0;
  int64_t num_restarts = 0, num_vain_restarts = 0;
  int64_t progress_step = 0;  // the most steps that any start of them came to
  double gathering_s = 0;     // since when they are gathered again
  int64_t saved_step = -1;    // the newest that is known to be safe on a disk; -1: none
  std::string saved_at = {};  // on whose
};

struct MadeCommit {
  Commit commit;
  std::map<std::string, uint64_t> incarnations;  // of its members
};

/// The exchange of a commit that this site has applied and that was taken back since; -1: none. It
/// was the last to hold it, and nobody knew yet. commits: of this course, from first_logged on.
inline int64_t lost_commit(const SiteStatus& status,
                           const std::map<int64_t, MadeCommit>& commits,
                           int64_t first_logged) {
  const size_t num_told = std::min(status.applied.size(), status.applied_epochs.size());
  for (size_t fragment = 0; fragment < num_told; ++fragment) {
    const int64_t exchange = status.applied[fragment], epoch = status.applied_epochs[fragment];
    if (exchange < first_logged || epoch < 0) continue;
    const auto made = commits.find(exchange);
    if (made == commits.end() || made->second.commit.epoch != epoch) return exchange;
  }
  return -1;
}

}  // namespace pelago::sites
