#include "sites/exchange/fragment_exchange.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "sites/exchange/coding/slice_codec.h"
#include "sites/trust/robust_mean.h"

namespace pelago::sites {

namespace {

template <typename T>
std::span<T> part(std::span<T> values, const train::Fragment& range) {
  return values.subspan(static_cast<size_t>(range.begin),
                        static_cast<size_t>(range.end - range.begin));
}

double product(std::span<const float> a, std::span<const float> b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  }
  return sum;
}

MeanKind mean_kind(MergeRule rule) {
  if (rule == MergeRule::kTrimmed) return MeanKind::kTrimmed;
  return rule == MergeRule::kMedianOfMeans ? MeanKind::kMedianOfMeans : MeanKind::kPlain;
}

}  // namespace

std::vector<train::Fragment> cut_slices(int64_t num_values, int64_t num_members, int64_t unit) {
  const int64_t num_units = (num_values + unit - 1) / unit;
  std::vector<train::Fragment> slices;
  for (int64_t idx = 0; idx < num_members; ++idx) {
    const auto edge = [&](int64_t i) {
      return std::min(num_values, num_units * i / num_members * unit);
    };
    slices.push_back({.begin = edge(idx), .end = edge(idx + 1)});
  }
  return slices;
}

FragmentExchange::FragmentExchange(const ExchangeSpec& spec,
                                   std::span<const float> global,
                                   std::span<const float> local,
                                   std::span<const float> kept_error)
    : spec_(spec),
      slices_(cut_slices(static_cast<int64_t>(global.size()),
                         static_cast<int64_t>(spec.tokens.size()),
                         slice_unit(spec.bits))),
      delta_payloads_(spec.tokens.size()),
      deltas_(spec.tokens.size()),
      means_here_(spec.tokens.size(), false),
      mean_(global.size(), 0.0F),
      new_error_(global.size()) {
  PELAGO_ASSERT(local.size() == global.size() && kept_error.size() == global.size(),
                "a fragment has one length");
  // new_error_ first holds the delta, then what rounding lost of it.
  const auto decay = static_cast<float>(spec.error_decay);
  for (size_t i = 0; i < global.size(); ++i) {
    new_error_[i] = (global[i] - local[i]) + decay * kept_error[i];
  }
  std::vector<float> sent;
  for (size_t idx = 0; idx < slices_.size(); ++idx) {
    const std::span<float> delta = part(std::span(new_error_), slices_[idx]);
    sent.resize(delta.size());
    if (static_cast<int64_t>(idx) == spec_.member_idx) {
      round_slice(delta, spec_.bits, sent);
      deltas_[idx] = sent;
    } else {
      delta_payloads_[idx] = encode_slice(delta, spec_.bits, sent);
    }
    for (size_t i = 0; i < delta.size(); ++i) delta[i] -= sent[i];
  }
  for (size_t idx = 0; idx < slices_.size(); ++idx) {
    if (slices_[idx].begin == slices_[idx].end) means_here_[idx] = true;  // nothing will come
  }
  sum_my_slice();
}

double FragmentExchange::weight(int64_t member_idx) const {
  const int64_t total = std::accumulate(spec_.tokens.begin(), spec_.tokens.end(), int64_t{0});
  // Nobody has trained: equal weights keep the mean defined; the deltas are then all zero.
  if (total == 0) return 1.0 / static_cast<double>(num_members());
  return static_cast<double>(spec_.tokens[index(member_idx)]) / static_cast<double>(total);
}

std::vector<float> FragmentExchange::coefficients() const {
  const auto count = static_cast<size_t>(num_members());
  std::vector<float> result(count);
  for (size_t i = 0; i < count; ++i) {
    result[i] = static_cast<float>(weight(static_cast<int64_t>(i)));
  }
  if (spec_.rule != MergeRule::kDirection) return result;
  double mean_norm = 0;
  std::vector<double> norms(count);
  for (size_t i = 0; i < count; ++i) {
    norms[i] = std::sqrt(product(deltas_[i], deltas_[i]));
    mean_norm += static_cast<double>(result[i]) * norms[i];
  }
  // The squared length of the weighted mean of directions, from products of pairs.
  double square = 0;
  for (size_t i = 0; i < count; ++i) {
    for (size_t j = 0; j < count; ++j) {
      if (norms[i] == 0 || norms[j] == 0) continue;
      const double cosine = product(deltas_[i], deltas_[j]) / (norms[i] * norms[j]);
      square += static_cast<double>(result[i]) * static_cast<double>(result[j]) * cosine;
    }
  }
  // Directions that cancel out have no mean direction: then the plain mean, which is near zero.
  constexpr double kSquareMin = 1e-6;
  if (!(square > kSquareMin) || !std::isfinite(mean_norm)) return result;
  const double stretch = mean_norm / std::sqrt(square);
  for (size_t i = 0; i < count; ++i) {
    if (norms[i] == 0) continue;  // adds nothing whatever it counts
    result[i] = static_cast<float>(static_cast<double>(result[i]) * stretch / norms[i]);
  }
  return result;
}

std::string FragmentExchange::delta_slice(int64_t member_idx) const {
  return delta_payloads_[index(member_idx)];
}

Status FragmentExchange::accept_delta(int64_t member_idx, const std::string& payload) {
  const train::Fragment& mine = slices_[index(spec_.member_idx)];
  if (has_delta(member_idx) || mine.begin == mine.end) return ok();
  std::vector<float> values(static_cast<size_t>(mine.end - mine.begin));
  Status decoded = decode_slice(payload, spec_.bits, values);
  if (!decoded) return decoded;
  deltas_[index(member_idx)] = std::move(values);
  sum_my_slice();
  return ok();
}

void FragmentExchange::sum_my_slice() {
  const train::Fragment& mine = slices_[index(spec_.member_idx)];
  if (mine.begin == mine.end || mean_slice_) return;
  for (int64_t idx = 0; idx < num_members(); ++idx) {
    if (!has_delta(idx)) return;
  }
  std::vector<float> sum(static_cast<size_t>(mine.end - mine.begin), 0.0F);
  const std::vector<float> shares = coefficients();
  const std::vector<std::span<const float>> deltas(deltas_.begin(), deltas_.end());
  robust_mean(mean_kind(spec_.rule), deltas, shares, sum);
  const std::span<float> mean = part(std::span(mean_), mine);
  mean_slice_ = encode_slice(sum, spec_.bits, mean);
  means_here_[index(spec_.member_idx)] = true;
  // Without tokens this member's deltas count for nothing, so nothing can come back through them.
  const float my_share = shares[index(spec_.member_idx)];
  if (my_share == 0.0F) return;
  const float inverse = 1.0F / my_share;
  const std::span<float> error = part(std::span(new_error_), mine);
  for (size_t i = 0; i < sum.size(); ++i) error[i] += inverse * (sum[i] - mean[i]);
}

Status FragmentExchange::accept_mean(int64_t member_idx, const std::string& payload) {
  if (has_mean(member_idx)) return ok();
  Status decoded =
      decode_slice(payload, spec_.bits, part(std::span(mean_), slices_[index(member_idx)]));
  if (decoded) means_here_[index(member_idx)] = true;
  return decoded;
}

bool FragmentExchange::is_whole() const {
  return std::all_of(means_here_.begin(), means_here_.end(), [](bool here) { return here; });
}

}  // namespace pelago::sites
