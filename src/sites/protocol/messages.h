// What the coordinator and the sites' agents tell each other. Every message states a fact that
// stays true ("this exchange, in this epoch, has these members"), none says "one more": twice, late
// or in another order, it does no harm. Whoever misses an answer says again where it stands
// (SiteStatus), and is sent again what it lacks.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/error.h"
#include "sites/fetch/fetch_messages.h"
#include "sites/leases/lane_shares.h"
#include "sites/protocol/member/site_status.h"
#include "sites/transport/transport.h"

namespace pelago::sites {

/// Changes when a message or its meaning does: sites of different versions refuse each other.
inline constexpr int64_t kWireVersion = 8;

struct SiteAddress {
  std::string site;
  std::string address;  // "HOST:PORT"
};
struct MemberShare {
  std::string site;
  std::string address;
  int64_t tokens = 0;  // behind its delta: the weight
  // The data steps of its lane that the delta contains, [begin, end): leases/token_ledger.h.
  int64_t data_begin = 0, data_end = 0;
};

// From a site to the coordinator.

struct CheckpointOffer {
  int64_t step = 0;
  std::string hash;       // of the global weights in it: only equal ones fit together
  int64_t data_step = 0;  // of the site's lane that the next step would read
};
/// A site asks to be taken in. The hashes must be those of every other site.
struct Hello {
  uint64_t incarnation = 0;  // new at each start of the agent
  int64_t wire_version = kWireVersion;
  std::string plan_hash, tokenizer_hash, dataset_hash;
  std::map<std::string, std::string> plan_facts = {};  // by key: to name what differs
  std::string weights_hash;                            // of the initial weights made from the seed
  std::string address;                                 // where other sites reach this one
  std::vector<CheckpointOffer> checkpoints;
};
/// "I am here, and so far", from a thread of its own, so that a long save is not taken for death.
struct Heartbeat {
  uint64_t incarnation = 0;
  int64_t completed_steps = 0;
};

/// A step, an evaluation or an event, for the run folder and the progress line.
struct Report {
  std::string name;  // "step", "evaluation", or the event's name
  std::string json;
};

// From the coordinator to a site.

enum class StartMode { kFresh, kResume, kJoin };
/// The site is taken in. kJoin: fetch every fragment from the donors first.
struct Welcome {
  uint64_t incarnation = 0;
  StartMode mode = StartMode::kFresh;
  int64_t start_step = 0;
  int64_t data_step = 0;       // the lease: its lane from this data step on, as long as it lives
  int64_t first_exchange = 0;  // that this site may take part in
  int64_t first_logged = 0;    // the coordinator knows the hash of every commit from here on
  std::vector<SiteAddress> donors;   // in step: who has the checkpoint of start_step, if it has not
  std::string checkpoint_hash = {};  // and what that one is
  std::vector<ShareChange> shares = {};  // after the plan's
  std::vector<SiteAddress> peers = {};   // of sites in step: where all are,
  int64_t start_number = 0;              // and which start of theirs this is
};
/// The site cannot take part, ever; or it has nothing left to do (exit_code 0).
struct Refused {
  uint64_t incarnation = 0;
  std::string reason;
  int exit_code = 2;
};
struct AllowTraining {
  uint64_t incarnation = 0;
};
/// These members exchange this fragment now. A higher epoch replaces a lower one.
struct Begin {
  int64_t exchange = 0;
  int64_t epoch = 0;
  std::vector<MemberShare> members;  // in site order
};
/// The exchange is done for ever; hash is what everyone must hold. Donors hold it.
struct Commit {
  int64_t exchange = 0;
  int64_t epoch = 0;
  std::vector<MemberShare> members;
  std::string hash;
  std::vector<SiteAddress> donors;
  // For whom this is sent: the newest exchange of this fragment that took its delta, and the epoch
  // in which it did; -1: none since this start. A site that missed that commit learns here that it
  // must not send those tokens again.
  int64_t taken_exchange = -1;
  int64_t taken_epoch = -1;
  // Later commits of the fragment with an epoch below this one had been taken back when this was
  // sent. A site that knows one of them would wait for ever for what nobody holds.
  int64_t lost_epoch = -1;
  // Those that this site has not said it knows: nobody reads the first data step of new shares
  // before it has heard a commit that tells of them.
  std::vector<ShareChange> shares = {};
};
struct StopAt {
  int64_t step = 0;
};
/// Every site is done: the agent may end.
struct Release {};
/// The answer to a heartbeat: "the coordinator of this term is at this address". One that has taken
/// over says so to every site that an earlier one knew, unasked.
struct Alive {
  int64_t term = 0;
  std::string address;  // "HOST:PORT"; empty: where it was
};
/// The others have completed so many steps: a site that lags leaves steps out until it is there.
struct OthersAt {
  uint64_t incarnation = 0;
  int64_t step = 0;
};

// Between sites.

/// A slice of the sender's delta for the member that sums it, or of the mean from that member.
struct Slice {
  int64_t exchange = 0, epoch = 0;
  int64_t part = 0;  // of the fragment: exchange/exchange_parts.h
  bool of_mean = false;
  std::string payload;  // scales, then quantised values
};
/// "Your piece has not come."
struct Want {
  int64_t exchange = 0, epoch = 0, part = 0;
  bool of_mean = false;
};
using Message = std::variant<Hello,
                             Heartbeat,
                             SiteStatus,
                             Report,
                             Welcome,
                             Refused,
                             AllowTraining,
                             Begin,
                             Commit,
                             StopAt,
                             Release,
                             Alive,
                             Slice,
                             Want,
                             Fetch,
                             FragmentManifest,
                             FetchLeaf,
                             FragmentLeaf,
                             FetchPiece,
                             CheckpointPiece,
                             OthersAt>;

/// "hello", "slice", ...: for logs.
std::string_view name_of(const Message& message);
Frame encode(const std::string& from, Message message);
/// kCorrupt, naming what is wrong, for an unknown kind or a head that does not fit it.
Result<Message> decode(Frame frame);

}  // namespace pelago::sites
