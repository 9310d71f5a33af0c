// What goes into a Member, and what it asks of whoever carries it: the agent, or a simulation.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "sites/exchange/fragment_exchange.h"
#include "sites/exchange/global_state.h"
#include "sites/protocol/messages.h"
#include "train/messages.h"

namespace pelago::sites {

struct MemberOptions {
  std::string site;
  train::ExchangeSchedule schedule;
  ExchangeSpec exchange;  // all but member and tokens
  OuterOptions outer;
  size_t lane = 0;                    // of this site
  std::vector<int64_t> shares = {1};  // the plan's: sequences of a batch, by lane
  int64_t sequence_tokens = 0;
  double heartbeat_s = 1;
  double coordinator_silence_s = 60;      // then the site gives up; a restart of it takes less
  std::vector<std::string> coordinators;  // where one may be; a silent one is sought at the next
  Hello hello;                            // with a new incarnation
  /// The newest checkpoint of this site, if it has one. Asked once, when it joins: what is still
  /// true of it need not travel.
  std::function<std::unique_ptr<const GlobalState>()> recall;
};

struct SendMessage {
  std::string to;
  Message message;
  bool again = false;  // not needed if the line to this peer is still busy
};
struct KnowAddress {
  std::string site, address;
};
/// Start the workers; kJoin: from the global weights, which are here now.
struct StartWorkers {
  StartMode mode = StartMode::kFresh;
  int64_t step = 0;
  int64_t data_step = 0;       // of the lane, that the first step reads
  int64_t first_exchange = 0;  // what earlier ones gave is in the weights
  int64_t start_number = 0;    // of sites that train in step
  // Of these, if this one lacks the checkpoint of that step: what it must be, and who has it.
  std::string hash = {};
  std::vector<SiteAddress> donors = {};
};
/// From this data step on, the sites take so many sequences of a batch.
struct TakeShares {
  int64_t data_step = 0;
  std::vector<int64_t> sequences;  // by lane
};
/// As StartWorkers with kJoin is going to say; only the weights are not here yet. Whoever does not
/// start them now does so then.
struct PrepareWorkers {
  int64_t step = 0;
  int64_t data_step = 0;
  int64_t first_exchange = 0;
};
struct LetTrain {};
/// The others have completed so many steps: leave out those between.
struct CatchUp {
  int64_t step = 0;
};
/// What the workers wait for. given: f32 [N] of the fragment: its weights, or, if the exchange is
/// overlapped, by how much they differ from the snapshot.
struct GiveMerged {
  int64_t exchange = 0;
  int64_t fragment = 0;
  std::vector<float> given;
};
struct StopTraining {
  int64_t step = 0;
};
/// Done, or nothing can be done: the agent ends.
struct Leave {
  int exit_code = 0;
  std::string reason;
  bool is_to_return = false;  // the coordinator waits for this site's next start
};
using MemberAction = std::variant<SendMessage,
                                  KnowAddress,
                                  PrepareWorkers,
                                  StartWorkers,
                                  LetTrain,
                                  CatchUp,
                                  TakeShares,
                                  GiveMerged,
                                  StopTraining,
                                  Leave>;
using MemberActions = std::vector<MemberAction>;

}  // namespace pelago::sites
