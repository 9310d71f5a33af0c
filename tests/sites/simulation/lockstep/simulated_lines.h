// The lines over which workers of sites in step talk, as GrpcTransport keeps them: frames arrive in
// order, a lost packet only makes those behind it late, and a peer that cannot be reached for long
// has everything that waited for it dropped.
#pragma once

#include <deque>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/rng.h"
#include "sites/transport/transport.h"

namespace pelago::sites {

class SimulatedLines {
 public:
  struct Options {
    double loss = 0, jitter_s = 0;
    double patience_s = 10;
  };
  SimulatedLines(const Options& options, const Rng& rng) : options_(options), rng_(rng) {}

  /// address: where the sender believes the receiver to be.
  void send(const std::string& to, const std::string& address, Frame frame, double now_s);
  void set_blocked(const std::string& from, const std::string& to, bool is_blocked);
  void calm();
  /// The process has ended: what it had still to send goes with it.
  void end(const std::string& site);
  /// To whom a site has waited for too long, and how many frames it has dropped then.
  std::vector<std::pair<std::string, int64_t>> give_up(const std::string& site, double now_s);
  /// What has come for a site that is at this address.
  std::vector<Frame> take(const std::string& site, const std::string& address, double now_s);
  int64_t num_given_up() const { return num_given_up_; }

 private:
  struct Waiting {
    double due_s = 0;
    std::string address;
    Frame frame;
  };
  using Ends = std::pair<std::string, std::string>;  // from, to
  Options options_;
  Rng rng_;
  std::map<Ends, std::deque<Waiting>> queues_;
  std::set<Ends> blocked_;
  int64_t num_given_up_ = 0;
};

}  // namespace pelago::sites
