// Whether the pipelines of a site compute the same. From time to time all of them take the same
// microbatch through their own chips, and the loss and the size of each block's gradient are
// compared. Rounding makes them differ a little; a chip that is wrong in more than single elements
// differs by more. Pipelines that disagree repeat the microbatch: whoever then contradicts itself
// is wrong, and of three or more whoever stands apart.
//
// A site with one pipeline compares it with itself, a moment later.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace pelago::train {

/// What a pipeline made of the microbatch.
struct AuditSums {
  double loss = 0;                  // nats a token
  std::vector<double> block_norms;  // of each block's matrices' gradient
  // Of all its values: an error at right angles to the gradient hardly changes its norm.
  std::vector<double> block_sums;
};

/// How far two may differ, relative.
struct AuditBounds {
  double loss = 0;
  double block_norm = 0;
};
/// For pipelines of which some train in 16 bits, or all in f32.
AuditBounds audit_bounds(bool has_16_bits);

/// By how many bounds the two differ; infinite if a value is not finite.
double disagreement(const AuditSums& one, const AuditSums& other, const AuditBounds& bounds);

/// Whether all agree; otherwise they must repeat.
bool all_agree(const std::vector<AuditSums>& sums, const AuditBounds& bounds);
/// Pipelines that are wrong, as far as two passes can tell.
std::vector<size_t> wrong_pipelines(const std::vector<AuditSums>& first,
                                    const std::vector<AuditSums>& second,
                                    const AuditBounds& bounds);

}  // namespace pelago::train
