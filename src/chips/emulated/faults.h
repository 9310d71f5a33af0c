// Faults on order: what an emulated chip is to do wrong, and when, so that what notices faults can
// be tested. A fleet's device carries them as text.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace pelago::chips {

class Device;

enum class FaultKind {
  kWrong,        // one element of a matmul's result is wrong
  kStuck,        // from then on, waiting for the chip never ends
  kSlow,         // from then on, everything takes `value` times as long
  kOutOfMemory,  // an operator runs out of memory
  kLost,         // from then on, every operator throws
};

/// One of the triggers is set. They count from the opening of the device, or from order_fault().
struct EmulatedFault {
  FaultKind kind = FaultKind::kWrong;
  double value = 1;              // kWrong: value * max(1, |x|) is added to x; kSlow: the factor
  int64_t after_operators = -1;  // at this operator, counted from 1 (kWrong: the next matmul)
  double after_s = -1;           // at the first operator after so many seconds
  double probability = 0;        // at each operator by chance
  uint64_t seed = 0;             // of chance, and of which element is wrong

  friend bool operator==(const EmulatedFault&, const EmulatedFault&) = default;
};

/// KIND[=VALUE]@TRIGGER: "wrong@op=120", "wrong=nan@p=0.001,seed=7", "slow=1.8@s=3", "stuck@op=9",
/// "oom@op=40", "lost@s=1.5". Throws Failure (exit 2) that quotes the text and says what is wrong.
EmulatedFault parse_fault(std::string_view text);

/// The text that parse_fault reads as this fault.
std::string text_of(const EmulatedFault& fault);

/// Orders a fault of an open emulated device now. Throws Failure (exit 2) for another device.
void order_fault(Device& device, const EmulatedFault& fault);
/// Mends the device: takes back what was ordered of it, and lets a stuck or lost one go on.
void clear_faults(Device& device);

}  // namespace pelago::chips
