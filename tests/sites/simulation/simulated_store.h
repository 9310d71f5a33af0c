// Where simulated coordinators keep the state of a run: the disk of the only one, or a store that
// several share, with the fences of EtcdStore: a seat with a lease, and numbered writes. A request
// takes time to arrive and its answer to come back; one without an answer may arrive all the same,
// after its sender has died or been replaced. Nothing is half done.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/rng.h"
#include "sites/simulation/truth.h"
#include "sites/state/state_store.h"

namespace pelago::sites {

struct SimulatedStoreOptions {
  bool is_shared = false;
  double delay_s = 0;      // a request is on its way for up to so long, and its answer too
  double lease_s = 2;      // a holder that is silent for so long loses the seat
  double timeout_s = 1.5;  // no answer by then is none
};

class SimulatedStore {
 public:
  /// truth outlives the store.
  SimulatedStore(const SimulatedStoreOptions& options, Truth& truth, const Rng& rng)
      : options_(options), truth_(&truth), rng_(rng.fork("store")) {}

  /// The number of the seat if it was free, else 0.
  int64_t try_lead(double now_s);
  /// Who holds the seat still holds it. False: it knows that it has lost it.
  bool keep(int64_t seat, double now_s);

  struct Request {
    int64_t seat = 0, number = 0;    // of the seat; of the write, from 1
    std::vector<StateWrite> writes;  // as they should be, for the judge
    std::vector<StateWrite> kept;    // as faulty code writes them
  };
  /// On its way. Returns a ticket. reaches: false if the line to the store is cut.
  int64_t submit(Request request, bool reaches, double now_s);
  /// Nothing while there is no answer yet.
  std::optional<Status> answer(int64_t ticket, double now_s);
  /// At once: a healthy disk.
  void write_now(const Request& request);
  /// The only coordinator has died: what was on its way to its disk is there or is not.
  void lose_unsynced();
  /// What a planted bug leaves out.
  void leave_out(bool seats, bool numbers) {
    checks_seats_ = !seats;
    checks_numbers_ = !numbers;
  }
  /// No quorum until then: requests are not answered, leases do not pass.
  void lose_quorum(double now_s, double until_s);
  void turn(double now_s);

  const DurableState& state() const { return state_; }
  int64_t seat() const { return seat_; }  // 0: empty
  int64_t num_refused() const { return num_refused_; }
  bool is_shared() const { return options_.is_shared; }
  double delay_s() const { return options_.delay_s; }

 private:
  struct Flight {
    int64_t ticket = 0;
    Request request;
    double arrives_s = 0;  // at the store
    double answered_s = 0;
    std::optional<Status> outcome;  // absent: not arrived
    bool is_lost = false;
  };
  Status apply_request(const Request& request);

  SimulatedStoreOptions options_;
  Truth* truth_;
  Rng rng_;
  DurableState state_;
  std::vector<Flight> flights_;
  int64_t num_tickets_ = 0, num_seats_ = 0, num_refused_ = 0;
  int64_t seat_ = 0, written_ = 0;
  double lease_end_s_ = 0, away_until_s_ = -1;
  bool checks_seats_ = true, checks_numbers_ = true;
};

}  // namespace pelago::sites
