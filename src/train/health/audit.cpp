#include "train/health/audit.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace pelago::train {

namespace {

double relative(double one, double other) {
  const double difference = std::abs(one - other);
  const double size = std::max({std::abs(one), std::abs(other), 1e-12});
  return std::isfinite(difference) ? difference / size : std::numeric_limits<double>::infinity();
}

}  // namespace

AuditBounds audit_bounds(bool has_16_bits) {
  // A product of bf16 numbers is off by 2^-8, a mean over thousands of them by far less; what is
  // left is how errors in the residual stream add up over blocks. In f32 the same with 2^-24.
  return has_16_bits ? AuditBounds{.loss = 5e-3, .block_norm = 3e-2}
                     : AuditBounds{.loss = 1e-5, .block_norm = 1e-4};
}

double disagreement(const AuditSums& one, const AuditSums& other, const AuditBounds& bounds) {
  double most = relative(one.loss, other.loss) / bounds.loss;
  for (size_t i = 0; i < one.block_norms.size(); ++i) {
    most = std::max(most, relative(one.block_norms[i], other.block_norms[i]) / bounds.block_norm);
    const double shift = std::abs(one.block_sums[i] - other.block_sums[i]);
    most = std::max(most, shift / std::max(one.block_norms[i], 1e-12) / bounds.block_norm);
  }
  return most;
}

bool all_agree(const std::vector<AuditSums>& sums, const AuditBounds& bounds) {
  for (size_t i = 0; i < sums.size(); ++i) {
    if (!std::isfinite(disagreement(sums[i], sums[i], bounds))) return false;
    for (size_t k = 0; k < i; ++k) {
      if (disagreement(sums[i], sums[k], bounds) > 1) return false;
    }
  }
  return true;
}

std::vector<size_t> wrong_pipelines(const std::vector<AuditSums>& first,
                                    const std::vector<AuditSums>& second,
                                    const AuditBounds& bounds) {
  std::vector<size_t> wrong;
  for (size_t i = 0; i < first.size(); ++i) {
    if (disagreement(first[i], second[i], bounds) > 1) wrong.push_back(i);
  }
  if (!wrong.empty() || first.size() < 3) return wrong;
  for (size_t i = 0; i < first.size(); ++i) {
    size_t num_against = 0;
    for (size_t k = 0; k < first.size(); ++k) {
      num_against += k != i && disagreement(first[i], first[k], bounds) > 1 ? 1 : 0;
    }
    if (2 * num_against > first.size()) wrong.push_back(i);
  }
  return wrong;
}

}  // namespace pelago::train
