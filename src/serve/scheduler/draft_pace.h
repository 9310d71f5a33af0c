#pragma once

#include <cstdint>

namespace pelago::serve {

/// How many guesses a sequence may take: few after a wrong one, more while they hold.
class DraftPace {
 public:
  /// 0: let this token pass.
  int num_wanted(int draft_max);
  void note(int64_t num_guessed, int64_t num_held);

 private:
  int length_ = 4;
  int num_misses_ = 0, num_to_pass_ = 0;
};

}  // namespace pelago::serve
