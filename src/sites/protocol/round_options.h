// What goes into a RoundMachine and what comes out of it.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "sites/exchange/batch_shares.h"
#include "sites/protocol/messages.h"
#include "sites/state/state_store.h"
#include "train/messages.h"

namespace pelago::sites {

struct RoundOptions {
  std::vector<std::string> sites;  // in plan order, which is the order of every sum
  train::ExchangeSchedule schedule;
  std::vector<int64_t> shares;        // sequences of a batch, by site; empty: one each
  std::vector<int64_t> shares_least;  // that a site can work with, by site; empty: one each
  ShareOptions share_watch;
  double grace_s = 10;      // how long ready sites wait for a late one, at most
  double behind_s = 1;      // a site so far behind is told where the others are; 0: none is
  double heartbeat_s = 1;   // a site silent for five of these is dead
  double exchange_s = 60;   // longest time from Begin to the last Held; then somebody is left out
  double absence_s = 60;    // a site silent for so long is not waited for by what only it may hold
  bool resume = false;      // go on from a checkpoint, unless a site of the run still lives
  bool takes_over = false;  // nobody asked for that: another coordinator was at it
  std::string address;  // where sites reach this coordinator; empty: where they reached the last
  Hello expected;       // the run's own hashes, which a site's must be; empty ones: not known
};

struct RoundOutput {
  std::vector<StateWrite> writes;  // to be durable, together, before any message is sent
  std::vector<Commit> commits;     // of these: for the journal's readers
  std::vector<std::pair<std::string, std::string>> events;  // name, JSON fields
  std::vector<std::pair<std::string, Message>> messages;    // to a site
};

/// To a start of a site that is not heard any more.
inline std::string start_anew_reason(const std::string& site) {
  return "site " + site +
         ": was away or behind for so long that the others went on without what it holds; it must "
         "start anew, where they are";
}

}  // namespace pelago::sites
