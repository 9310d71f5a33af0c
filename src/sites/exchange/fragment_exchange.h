// One exchange of one fragment, as one member carries it out: arithmetic and bookkeeping, no
// network.
//   1. delta = global - local + kept error, quantised; what that lost is the new error.
//   2. The fragment is cut into one slice a member. Each member gets its slice of every delta, adds
//      them in site order in f32, weighted by tokens / all tokens, and quantises the mean.
//   3. Everybody gets every slice of the mean. A member takes its own slice through the same
//      quantise and dequantise, so that all hold the same bits.
// The mean is quantised with the bits of the deltas: at 4 bits two sites send 0.42 byte a
// parameter and round, scales included. What that second rounding lost belongs to the member that
// summed the slice: divided by its coefficient it joins that member's new error, and so comes back
// whole with the next exchange. Only that member computes the mean, the others take its bytes.
// Thin deltas (bits 2) are not summed on the way: their mean has values in more places than one of
// them, and cut down to as many again it would lose half. The member that gets a slice of every
// delta sends each of the others those that it lacks, and all compute the same mean in the same
// order, with + - x / and sqrt only: N - 1 times a thin delta a site, as much as the sum for two.
// What a thin delta leaves out is not kept as an error: it stays in the site's local weights
// (protocol/member.h). Else the site finds the same improvement anew in each of the 37 rounds
// until it is sent, and all of them go out.
// Nothing outside changes until new_error() is taken: an exchange that is given up is destroyed.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "sites/exchange/coding/thin_codec.h"
#include "train/messages.h"

namespace pelago::sites {

/// The ranges of a fragment of num_values, one a member, cut at multiples of `unit` values, equal
/// but for one unit. A slice may be empty if there are more members than units.
std::vector<train::Fragment> cut_slices(int64_t num_values, int64_t num_members, int64_t unit);

/// How the deltas of a slice become one.
enum class MergeRule {
  kMean,  // weighted by tokens (Streaming DiLoCo, arXiv:2501.18512)
  // Weighted mean of the directions, stretched to the weighted mean of the norms (RDA of Decoupled
  // DiLoCo, arXiv:2604.21428). Deltas of different data are nearly orthogonal, so their mean
  // shrinks as 1/sqrt(sites); this does not.
  kDirection,
  // Value by value, so that one bad delta of four or more cannot pull it far (trust/robust_mean.h).
  kTrimmed,
  kMedianOfMeans,
};

struct ExchangeSpec {
  int bits = 4;                 // 2 (thin), 4, 8 or 32
  int64_t member_idx = 0;       // mine, in site order
  std::vector<int64_t> tokens;  // of each member, in site order: the weights
  MergeRule rule = MergeRule::kMean;
  // Of the kept error, this much goes into the delta. Below 1 old error fades, in place of outer
  // momentum (SparseLoCo, arXiv:2508.15706: 0.95); at 1 nothing is ever lost.
  double error_decay = 1;
  // A fragment of twice as many or more is exchanged in parts (exchange_parts.h). At 4 bits two
  // sites send 0.44 MB for one part: 35 ms of a line of 100 Mbit/s.
  int64_t part_values = 1 << 20;

  /// Of an exchange after the last step: what is left out then never comes, so at least 4 bits.
  ExchangeSpec final() const;
};

class FragmentExchange {
 public:
  /// global, local, kept_error: [N] f32, the fragment's part; kept_error may be empty: nothing is
  /// owed. Throws Failure if a delta is not finite.
  FragmentExchange(const ExchangeSpec& spec,
                   std::span<const float> global,
                   std::span<const float> local,
                   std::span<const float> kept_error);

  /// My delta's slice for another member, as bytes.
  std::string delta_slice(int64_t member_idx) const;
  /// kCorrupt if the bytes are not a slice of the right length with finite scales. A slice that is
  /// already here is ignored.
  Status accept_delta(int64_t member_idx, const std::string& payload);
  /// True once every delta of my slice is here; never, if it is empty.
  bool has_summed() const { return has_summed_; }
  /// My slice of the mean for another member, as bytes; once has_summed().
  std::string mean_slice(int64_t member_idx) const;
  Status accept_mean(int64_t member_idx, const std::string& payload);
  /// Of my slice, one a member, dequantised; whole once has_summed(). For whoever judges.
  std::span<const std::vector<float>> slice_deltas() const { return deltas_; }
  const train::Fragment& my_slice() const { return slices_[index(spec_.member_idx)]; }
  bool has_delta(int64_t member_idx) const { return !deltas_[index(member_idx)].empty(); }
  bool has_mean(int64_t member_idx) const { return means_here_[index(member_idx)]; }
  bool is_whole() const;
  int64_t num_members() const { return static_cast<int64_t>(spec_.tokens.size()); }
  const ExchangeSpec& spec() const { return spec_; }

  /// [N]; valid once is_whole().
  std::span<const float> mean() const { return mean_; }
  /// [N]: the kept error of the next exchange, if this one is committed.
  std::span<const float> new_error() const { return new_error_; }

 private:
  static size_t index(int64_t member_idx) { return static_cast<size_t>(member_idx); }
  double weight(int64_t member_idx) const;
  bool is_thin() const { return spec_.bits == kThinBits; }
  /// Returns what each delta counts.
  std::vector<float> mean_of(std::span<const std::span<const float>> deltas,
                             std::span<float> mean) const;
  void sum_my_slice();
  Status accept_thin_mean(const train::Fragment& slice, const std::string& payload);

  ExchangeSpec spec_;
  std::vector<train::Fragment> slices_;      // one a member
  std::vector<std::string> delta_payloads_;  // my delta, one slice a member
  std::vector<std::vector<float>> deltas_;   // of my slice, dequantised; empty: not here
  bool has_summed_ = false;
  std::string mean_payload_;                // my slice of the mean; thin: none
  std::vector<std::string> thin_payloads_;  // thin: of my slice, one a member
  std::vector<float> sent_;                 // [N]; thin: my delta as the others get it
  std::vector<bool> means_here_;
  std::vector<float> mean_;       // [N]
  std::vector<float> new_error_;  // [N]
};

}  // namespace pelago::sites
