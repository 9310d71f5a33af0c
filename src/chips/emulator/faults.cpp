#include "chips/emulator/faults.h"

namespace pelago::emulator {

void Faults::order(const Fault& fault, double now_s) {
  ordered_.push_back(
      {.fault = fault, .ordered_s = now_s, .rng = Rng(fault.seed).fork("emulated fault")});
}

void Faults::clear() {
  const int64_t num_fired = num_fired_;
  *this = Faults();
  num_fired_ = num_fired;
}

void Faults::on_operator(double now_s) {
  for (Order& order : ordered_) {
    const Fault& fault = order.fault;
    ++order.num_operators;
    if (fault.probability > 0) {
      if (order.rng.next_uniform() < fault.probability) fire(order);
    } else if (fault.after_operators >= 0 ? order.num_operators >= fault.after_operators
                                          : now_s >= order.ordered_s + fault.after_s) {
      fire(order);
      order.is_done = true;
    }
  }
  drop_done();
}

void Faults::on_wait(double now_s) {
  for (Order& order : ordered_) {
    const Fault& fault = order.fault;
    const bool is_by_time = fault.probability <= 0 && fault.after_operators < 0;
    // A wrong element or a lack of memory needs an operator that it can happen to.
    const bool lasts = fault.kind == kStuck || fault.kind == kSlow || fault.kind == kLost;
    if (!is_by_time || !lasts || now_s < order.ordered_s + fault.after_s) continue;
    fire(order);
    order.is_done = true;
  }
  drop_done();
}

void Faults::fire(Order& order) {
  switch (order.fault.kind) {
    case kWrong:
      wrong_elements_.push_back({.value = order.fault.value, .draw = order.rng.next_u64()});
      return;  // counted when it is taken
    case kStuck:
      is_stuck_ = true;
      break;
    case kSlow:
      slow_factor_ *= order.fault.value;
      break;
    case kOutOfMemory:
      ++num_out_of_memory_;
      break;
    default:
      is_lost_ = true;
  }
  if (order.fault.kind != kOutOfMemory) order.is_done = true;  // it lasts; chance needs no second
  ++num_fired_;
}

void Faults::drop_done() {
  std::erase_if(ordered_, [](const Order& order) { return order.is_done; });
}

bool Faults::take_out_of_memory() {
  if (num_out_of_memory_ == 0) return false;
  --num_out_of_memory_;
  return true;
}

std::optional<WrongElement> Faults::take_wrong_element() {
  if (wrong_elements_.empty()) return std::nullopt;
  const WrongElement element = wrong_elements_.front();
  wrong_elements_.erase(wrong_elements_.begin());
  ++num_fired_;
  return element;
}

}  // namespace pelago::emulator
