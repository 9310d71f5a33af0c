// The scalar products of all deltas of one slice with each other: everything that the check of
// deltas needs to know of them, in n^2 numbers, gathered while the slice is summed. Norms and
// angles of a slice stand for those of the whole fragment, because a slice is a large part of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace pelago::sites {

class SliceGram {
 public:
  /// Of num_members deltas and, where there is one, a reference direction (the outer momentum).
  explicit SliceGram(size_t num_members);

  /// The same range of every delta; reference: of the reference, or empty. Ranges may come in
  /// any number of pieces.
  void add(std::span<const std::span<const float>> deltas, std::span<const float> reference);

  size_t num_members() const { return num_members_; }
  int64_t num_values() const { return num_values_; }
  /// Root mean square of a member's values; 0: it did not move.
  double rms(size_t member_idx) const;
  /// Cosine of the angle between two deltas, or to the reference; 0 if one of the two is zero.
  double cosine(size_t one, size_t other) const { return cosine_of(one, other); }
  double cosine_to_reference(size_t member_idx) const {
    return cosine_of(member_idx, num_members_);
  }

 private:
  double product(size_t one, size_t other) const {
    return products_[one * (num_members_ + 1) + other];
  }
  double cosine_of(size_t one, size_t other) const;

  size_t num_members_;
  int64_t num_values_ = 0;
  std::vector<double> products_;  // [n + 1, n + 1], the reference last
};

}  // namespace pelago::sites
