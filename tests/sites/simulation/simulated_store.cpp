#include "sites/simulation/simulated_store.h"

#include <algorithm>
#include <utility>

namespace pelago::sites {

int64_t SimulatedStore::try_lead(double now_s) {
  if (now_s < away_until_s_ || seat_ != 0) return 0;
  seat_ = ++num_seats_;
  written_ = 0;
  lease_end_s_ = now_s + options_.lease_s;
  return seat_;
}

bool SimulatedStore::keep(int64_t seat, double now_s) {
  if (now_s < away_until_s_) return true;  // no answer is no news
  if (seat != seat_) return false;
  lease_end_s_ = now_s + options_.lease_s;
  return true;
}

int64_t SimulatedStore::submit(Request request, bool reaches, double now_s) {
  const bool is_away = now_s < away_until_s_;
  Flight flight;
  flight.ticket = ++num_tickets_;
  flight.request = std::move(request);
  flight.arrives_s = now_s + options_.delay_s * rng_.next_uniform();
  flight.answered_s = flight.arrives_s + options_.delay_s * rng_.next_uniform();
  if (is_away || !reaches) {
    flight.answered_s = now_s + options_.timeout_s;
    flight.arrives_s = std::max(now_s, away_until_s_) + 5 * rng_.next_uniform();
    flight.is_lost = !reaches || rng_.next_uniform() < 0.5;
  } else if (options_.is_shared && rng_.next_uniform() < 0.02) {
    flight.answered_s = now_s + options_.timeout_s;  // its answer is lost
    flight.arrives_s = now_s + 4 * rng_.next_uniform();
  }
  flights_.push_back(std::move(flight));
  return num_tickets_;
}

std::optional<Status> SimulatedStore::answer(int64_t ticket, double now_s) {
  const auto flight = std::find_if(
      flights_.begin(), flights_.end(), [&](const Flight& each) { return each.ticket == ticket; });
  if (flight == flights_.end() || now_s < flight->answered_s) return std::nullopt;
  if (flight->is_lost || !flight->outcome) {
    return Status(Error{ErrorCode::kUnavailable, "no answer"});
  }
  return flight->outcome;
}

void SimulatedStore::write_now(const Request& request) { (void)apply_request(request); }

Status SimulatedStore::apply_request(const Request& request) {
  if (options_.is_shared && checks_seats_ && request.seat != seat_) {
    ++num_refused_;
    return Error{ErrorCode::kRefused, "another coordinator has taken over"};
  }
  if (options_.is_shared && checks_numbers_ && request.seat == seat_) {
    if (request.number <= written_) return ok();  // its answer was lost, and it was asked again
    PELAGO_ASSERT(request.number == written_ + 1, "writes of one coordinator come in order");
    written_ = request.number;
  }
  truth_->on_writes(request.writes);
  for (const StateWrite& write : request.kept) apply(write, state_);
  return ok();
}

void SimulatedStore::lose_unsynced() {
  for (const Flight& flight : flights_) {
    if (!flight.outcome && rng_.next_uniform() < 0.5) (void)apply_request(flight.request);
  }
  flights_.clear();
}

void SimulatedStore::lose_quorum(double now_s, double until_s) {
  away_until_s_ = std::max(away_until_s_, until_s);
  lease_end_s_ = std::max(lease_end_s_, until_s + options_.lease_s);
  for (Flight& flight : flights_) {
    if (flight.outcome) continue;
    flight.arrives_s = until_s + 5 * rng_.next_uniform();
    flight.answered_s = now_s + options_.timeout_s;
    flight.is_lost = rng_.next_uniform() < 0.5;
  }
}

void SimulatedStore::turn(double now_s) {
  constexpr double kKeptS = 30;
  if (options_.is_shared && seat_ != 0 && now_s > lease_end_s_) seat_ = 0;
  // In the order in which they arrive, which may not be that in which they were sent.
  while (true) {
    Flight* first = nullptr;
    for (Flight& flight : flights_) {
      const bool is_due = !flight.outcome && !flight.is_lost && now_s >= flight.arrives_s;
      if (is_due && (first == nullptr || flight.arrives_s < first->arrives_s)) first = &flight;
    }
    if (first == nullptr) break;
    first->outcome = apply_request(first->request);
  }
  std::erase_if(flights_, [&](const Flight& flight) {
    const double last_s = std::max(flight.answered_s, flight.arrives_s);
    return now_s > last_s + kKeptS;
  });
}

}  // namespace pelago::sites
