// Where the coordinator keeps the few kilobytes without which a run cannot go on: who is a member,
// where the run began, what is committed. Names and values: RoundMachine writes them, and goes on
// from them after a restart, here or on another machine.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "base/error.h"

namespace pelago::sites {

/// By name: "run", "term", "site/NAME", "commit/EXCHANGE", "shares". Values: JSON.
using DurableState = std::map<std::string, std::string>;

struct StateWrite {
  std::string key;
  std::string value;  // empty: forgotten
};

inline void apply(const StateWrite& write, DurableState& state) {
  if (write.value.empty()) {
    state.erase(write.key);
  } else {
    state[write.key] = write.value;
  }
}

class StateStore {
 public:
  virtual ~StateStore() = default;
  /// Throws Failure naming the store if it cannot be read.
  virtual DurableState load() = 0;
  /// All or nothing, and durable when this returns ok. kNoSpace: not yet durable, kept and written
  /// before whatever comes next; the run may go on. kRefused: another coordinator has taken over;
  /// nothing may be sent any more. kUnavailable: whether it is written is not known; nothing may be
  /// sent that rests on it until the same writes, asked for again, have succeeded.
  virtual Status write(const std::vector<StateWrite>& writes) = 0;
};

}  // namespace pelago::sites
