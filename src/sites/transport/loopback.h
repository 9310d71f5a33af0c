// A network inside one process, in virtual time: the transport of simulations. Frames may be lost,
// delayed (and so overtake each other) and doubled, by a seeded generator; an endpoint that is cut
// off loses what is on its way to and from it.
#pragma once

#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/rng.h"
#include "sites/transport/transport.h"

namespace pelago::sites {

struct LoopbackOptions {
  double loss = 0;         // share of frames that never arrive
  double doubling = 0;     // share of frames that arrive twice
  double delay_s = 0.001;  // the least
  double jitter_s = 0;     // and at most this much more, each frame by itself
  uint64_t seed = 1;
};

class LoopbackNetwork {
 public:
  /// clock outlives the network and its endpoints.
  LoopbackNetwork(const LoopbackOptions& options, const Clock& clock);
  /// An endpoint under this name, in place of an earlier one and at a new address. The network
  /// outlives it.
  std::unique_ptr<Transport> open(const std::string& name);
  /// The same at the address it had: a coordinator is found where it was. It speaks under
  /// spoken_name, as others may.
  std::unique_ptr<Transport> reopen_as(const std::string& name, const std::string& spoken_name);
  /// Frames from one endpoint to another go nowhere from now on, one way, or go again.
  void set_blocked(const std::string& from, const std::string& to, bool is_blocked);
  /// Where the endpoint of this name is now. Frames to an older address are lost.
  std::string address(const std::string& name) const;
  /// Everything on its way to and from it is gone; its peers learn that the connection broke.
  void cut(const std::string& name);
  /// From now on nothing is lost or doubled: what is left must come to an end.
  void calm() {
    options_.loss = options_.doubling = 0;
    blocked_.clear();
  }
  int64_t num_lost() const { return num_lost_; }
  int64_t num_doubled() const { return num_doubled_; }

 private:
  friend class LoopbackTransport;
  struct Flight {
    double arrival_s;
    uint64_t number;       // ties go to the earlier
    std::string from, to;  // endpoints
    Arrival arrival;
    bool operator>(const Flight& other) const {
      return arrival_s != other.arrival_s ? arrival_s > other.arrival_s : number > other.number;
    }
  };
  void put(const std::string& from, const std::string& address, Arrival arrival);
  std::optional<Arrival> take(const std::string& name);

  LoopbackOptions options_;
  const Clock* clock_;
  Rng rng_;
  uint64_t num_flights_ = 0;
  int64_t num_lost_ = 0, num_doubled_ = 0;
  std::map<std::string, std::vector<Flight>> inboxes_;     // by receiver, unordered
  std::map<std::string, int64_t> num_opened_;              // by name
  std::map<std::string, std::string> spoken_names_;        // of endpoints that have another
  std::set<std::pair<std::string, std::string>> blocked_;  // from, to
};

}  // namespace pelago::sites
