// The exchange of a large fragment in parts, so that its stages overlap: while the first part is on
// the line, the second is quantised; while one is summed, the next arrives; the outer step is taken
// part by part as means come. A part is an exchange of its own (fragment_exchange.h) over a range
// of the fragment, cut alike by all members, and each adds what it would have added to the whole.
//
// A part is begun when its turn comes, so global, local and kept error stay as they are until all
// have begun. Small fragments have one part.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "sites/exchange/fragment_exchange.h"
#include "sites/exchange/global_state.h"

namespace pelago::sites {

class ExchangeParts {
 public:
  /// global, local, kept_error: [N] f32, the fragment's; they outlive the parts' beginnings.
  /// kept_error may be empty: nothing is owed.
  ExchangeParts(const ExchangeSpec& spec,
                std::span<const float> global,
                std::span<const float> local,
                std::span<const float> kept_error);

  int64_t num_parts() const { return static_cast<int64_t>(ranges_.size()); }
  int64_t num_begun() const { return static_cast<int64_t>(begun_.size()); }
  bool has_more() const { return num_begun() < num_parts(); }
  /// Quantises the next part and returns which it is. Throws Failure if a delta is not finite.
  int64_t begin_next();
  /// One that has begun.
  FragmentExchange& part(int64_t idx) { return *begun_[static_cast<size_t>(idx)]; }
  const FragmentExchange& part(int64_t idx) const { return *begun_[static_cast<size_t>(idx)]; }
  /// Of a part within the fragment.
  const train::Fragment& range(int64_t idx) const { return ranges_[static_cast<size_t>(idx)]; }
  /// My slice of a part within the fragment.
  train::Fragment my_slice(int64_t idx) const;
  int64_t num_members() const { return static_cast<int64_t>(spec_.tokens.size()); }
  int64_t member_idx() const { return spec_.member_idx; }

  /// Nothing is to come of this member any more.
  bool has_all_of(int64_t member_idx) const;
  /// Every delta of all my slices is here.
  bool has_summed() const;
  /// [N]: the kept error of the next exchange, if this one is committed; once all have begun.
  std::vector<float> new_error() const;

 private:
  ExchangeSpec spec_;
  std::span<const float> global_, local_, kept_error_;
  std::vector<train::Fragment> ranges_;
  std::vector<std::unique_ptr<FragmentExchange>> begun_;
};

}  // namespace pelago::sites
