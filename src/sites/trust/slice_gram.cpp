#include "sites/trust/slice_gram.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "base/error.h"

namespace pelago::sites {

namespace {

/// In f32 lanes over a stretch short enough that rounding does not matter, summed up in f64.
double product_of(std::span<const float> one, std::span<const float> other) {
  constexpr size_t kLanes = 16, kStretch = 4096;
  double sum = 0;
  for (size_t begin = 0; begin < one.size(); begin += kStretch) {
    const size_t end = std::min(one.size(), begin + kStretch);
    std::array<float, kLanes> lanes{};
    size_t i = begin;
    for (; i + kLanes <= end; i += kLanes) {
      for (size_t lane = 0; lane < kLanes; ++lane) lanes[lane] += one[i + lane] * other[i + lane];
    }
    for (; i < end; ++i) lanes[0] += one[i] * other[i];
    for (const float lane : lanes) sum += static_cast<double>(lane);
  }
  return sum;
}

}  // namespace

SliceGram::SliceGram(size_t num_members)
    : num_members_(num_members), products_((num_members + 1) * (num_members + 1), 0.0) {}

void SliceGram::add(std::span<const std::span<const float>> deltas,
                    std::span<const float> reference) {
  PELAGO_ASSERT(deltas.size() == num_members_, "every member has a delta");
  const auto row = [&](size_t idx) { return idx < num_members_ ? deltas[idx] : reference; };
  for (size_t one = 0; one <= num_members_; ++one) {
    for (size_t other = 0; other <= one; ++other) {
      if (row(one).size() != row(other).size()) continue;  // there is no reference
      const double added = product_of(row(one), row(other));
      products_[one * (num_members_ + 1) + other] += added;
      if (one != other) products_[other * (num_members_ + 1) + one] += added;
    }
  }
  num_values_ += static_cast<int64_t>(deltas.front().size());
}

double SliceGram::rms(size_t member_idx) const {
  if (num_values_ == 0) return 0;
  return std::sqrt(product(member_idx, member_idx) / static_cast<double>(num_values_));
}

double SliceGram::cosine_of(size_t one, size_t other) const {
  const double norms = std::sqrt(product(one, one)) * std::sqrt(product(other, other));
  return norms > 0 ? product(one, other) / norms : 0;
}

}  // namespace pelago::sites
