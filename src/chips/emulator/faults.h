// Faults that were ordered of the chip, and which of them have fired. Pure: time comes in, chance
// comes from the order's seed, and what a fault does is up to the machine.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "base/rng.h"
#include "chips/emulator/abi.h"

namespace pelago::emulator {

/// What an element of a matmul's result becomes: x + value * max(1, |x|).
struct WrongElement {
  double value = 1;
  uint64_t draw = 0;  // which element: this modulo their number
};

class Faults {
 public:
  void order(const Fault& fault, double now_s);
  void clear();  // keeps the count of those that have fired

  /// Another operator begins; fires what is due.
  void on_operator(double now_s);
  /// The host waits for the chip; fires what is due by time.
  void on_wait(double now_s);

  bool has_orders() const { return !ordered_.empty(); }
  bool is_lost() const { return is_lost_; }
  bool is_stuck() const { return is_stuck_; }
  double slow_factor() const { return slow_factor_; }
  /// True once for each time that memory is to run out.
  bool take_out_of_memory();
  /// Once for each wrong element that is due; it has fired when it is taken.
  bool has_wrong_element() const { return !wrong_elements_.empty(); }
  std::optional<WrongElement> take_wrong_element();
  int64_t num_fired() const { return num_fired_; }
  void reset_stats() { num_fired_ = 0; }

 private:
  struct Order {
    Fault fault;
    double ordered_s = 0;
    int64_t num_operators = 0;  // since the order
    Rng rng;
    bool is_done = false;
  };
  void fire(Order& order);
  void drop_done();

  std::vector<Order> ordered_;
  std::vector<WrongElement> wrong_elements_;
  int num_out_of_memory_ = 0;
  bool is_lost_ = false;
  bool is_stuck_ = false;
  double slow_factor_ = 1;
  int64_t num_fired_ = 0;
};

}  // namespace pelago::emulator
