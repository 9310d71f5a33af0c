#include "sites/exchange/fragment_exchange.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>
#include <string_view>

#include "sites/exchange/coding/slice_codec.h"
#include "sites/trust/robust_mean.h"

namespace pelago::sites {

namespace {

constexpr size_t kLengthBytes = 4;

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

/// A part of a payload of several: its length, u32 little-endian, then its bytes.
void append_with_length(std::string_view bytes, std::string& out) {
  for (size_t i = 0; i < kLengthBytes; ++i) {
    out.push_back(static_cast<char>(bytes.size() >> (8 * i) & 0xFF));
  }
  out += bytes;
}

/// The first part, taken off the front; nothing if the bytes end before it does.
std::optional<std::string_view> take_with_length(std::string_view& bytes) {
  if (bytes.size() < kLengthBytes) return std::nullopt;
  size_t length = 0;
  for (size_t i = 0; i < kLengthBytes; ++i) {
    length |= static_cast<size_t>(static_cast<unsigned char>(bytes[i])) << (8 * i);
  }
  bytes.remove_prefix(kLengthBytes);
  if (bytes.size() < length) return std::nullopt;
  const std::string_view part = bytes.substr(0, length);
  bytes.remove_prefix(length);
  return part;
}

/// What each delta counts in the mean of a slice. shares: of each member in all tokens.
std::vector<float> coefficients(MergeRule rule,
                                std::span<const double> shares,
                                std::span<const std::span<const float>> deltas) {
  const size_t count = shares.size();
  std::vector<float> result(shares.begin(), shares.end());
  if (rule != MergeRule::kDirection) return result;
  double mean_norm = 0;
  std::vector<double> norms(count);
  for (size_t i = 0; i < count; ++i) {
    norms[i] = std::sqrt(product(deltas[i], deltas[i]));
    mean_norm += static_cast<double>(result[i]) * norms[i];
  }
  // The squared length of the weighted mean of directions, from products of pairs.
  double square = 0;
  for (size_t i = 0; i < count; ++i) {
    for (size_t j = 0; j < count; ++j) {
      if (norms[i] == 0 || norms[j] == 0) continue;
      const double cosine = product(deltas[i], deltas[j]) / (norms[i] * norms[j]);
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

ExchangeSpec ExchangeSpec::final() const {
  ExchangeSpec spec = *this;
  spec.bits = std::max(spec.bits, 4);
  return spec;
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
      thin_payloads_(is_thin() ? spec.tokens.size() : 0),
      sent_(is_thin() ? global.size() : 0),
      means_here_(spec.tokens.size(), false),
      mean_(global.size(), 0.0F),
      new_error_(global.size()) {
  PELAGO_ASSERT(
      local.size() == global.size() && (kept_error.empty() || kept_error.size() == global.size()),
      "a fragment has one length");
  // new_error_ first holds the delta, then what rounding lost of it.
  const auto decay = static_cast<float>(spec.error_decay);
  for (size_t i = 0; i < global.size(); ++i) {
    new_error_[i] = global[i] - local[i];
    if (!kept_error.empty()) new_error_[i] += decay * kept_error[i];
  }
  std::vector<float> sent;
  for (size_t idx = 0; idx < slices_.size(); ++idx) {
    const std::span<float> delta = part(std::span(new_error_), slices_[idx]);
    sent.resize(delta.size());
    const bool is_mine = static_cast<int64_t>(idx) == spec_.member_idx;
    if (is_mine && !is_thin()) {
      round_slice(delta, spec_.bits, sent);  // nobody else gets it
    } else {
      delta_payloads_[idx] = encode_slice(delta, spec_.bits, sent);
    }
    for (size_t i = 0; i < delta.size(); ++i) delta[i] -= sent[i];
    if (is_thin()) std::ranges::copy(sent, part(std::span(sent_), slices_[idx]).begin());
    if (is_mine) deltas_[idx] = sent;
  }
  if (is_thin()) thin_payloads_[index(spec_.member_idx)] = delta_slice(spec_.member_idx);
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

std::vector<float> FragmentExchange::mean_of(std::span<const std::span<const float>> deltas,
                                             std::span<float> mean) const {
  std::vector<double> shares;
  for (int64_t idx = 0; idx < num_members(); ++idx) shares.push_back(weight(idx));
  std::vector<float> counts = coefficients(spec_.rule, shares, deltas);
  robust_mean(mean_kind(spec_.rule), deltas, counts, mean);
  return counts;
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
  if (is_thin()) thin_payloads_[index(member_idx)] = payload;
  sum_my_slice();
  return ok();
}

void FragmentExchange::sum_my_slice() {
  const train::Fragment& mine = slices_[index(spec_.member_idx)];
  if (mine.begin == mine.end || has_summed_) return;
  for (int64_t idx = 0; idx < num_members(); ++idx) {
    if (!has_delta(idx)) return;
  }
  has_summed_ = true;
  means_here_[index(spec_.member_idx)] = true;
  const std::vector<std::span<const float>> deltas(deltas_.begin(), deltas_.end());
  const std::span<float> mean = part(std::span(mean_), mine);
  if (is_thin()) {
    mean_of(deltas, mean);
    return;
  }
  std::vector<float> sum(mean.size());
  const std::vector<float> counts = mean_of(deltas, sum);
  mean_payload_ = encode_slice(sum, spec_.bits, mean);
  // Without tokens this member's deltas count for nothing, so nothing can come back through them.
  const float my_count = counts[index(spec_.member_idx)];
  if (my_count == 0.0F) return;
  const float inverse = 1.0F / my_count;
  const std::span<float> error = part(std::span(new_error_), mine);
  for (size_t i = 0; i < sum.size(); ++i) error[i] += inverse * (sum[i] - mean[i]);
}

std::string FragmentExchange::mean_slice(int64_t member_idx) const {
  if (!is_thin()) return mean_payload_;
  std::string others;
  for (int64_t idx = 0; idx < num_members(); ++idx) {
    if (idx != member_idx) append_with_length(thin_payloads_[index(idx)], others);
  }
  return others;
}

Status FragmentExchange::accept_mean(int64_t member_idx, const std::string& payload) {
  if (has_mean(member_idx)) return ok();
  const train::Fragment& slice = slices_[index(member_idx)];
  Status decoded = is_thin() ? accept_thin_mean(slice, payload)
                             : decode_slice(payload, spec_.bits, part(std::span(mean_), slice));
  if (decoded) means_here_[index(member_idx)] = true;
  return decoded;
}

// The deltas of all members but this one, in site order.
Status FragmentExchange::accept_thin_mean(const train::Fragment& slice,
                                          const std::string& payload) {
  const auto num_values = static_cast<size_t>(slice.end - slice.begin);
  std::vector<std::vector<float>> others;
  std::string_view rest = payload;
  for (int64_t left = num_members() - 1; left > 0; --left) {
    const std::optional<std::string_view> bytes = take_with_length(rest);
    if (!bytes) {
      return Error{ErrorCode::kCorrupt,
                   fmt::format("{} bytes end within the thin slices of {} members",
                               payload.size(),
                               num_members() - 1)};
    }
    Status decoded = decode_slice(std::string(*bytes), spec_.bits, others.emplace_back(num_values));
    if (!decoded) return decoded;
  }
  if (!rest.empty()) {
    return Error{ErrorCode::kCorrupt, fmt::format("{} bytes behind the last slice", rest.size())};
  }
  std::vector<std::span<const float>> deltas(others.begin(), others.end());
  deltas.insert(deltas.begin() + spec_.member_idx, part(std::span(sent_), slice));
  mean_of(deltas, part(std::span(mean_), slice));
  return ok();
}

bool FragmentExchange::is_whole() const {
  return std::all_of(means_here_.begin(), means_here_.end(), [](bool here) { return here; });
}

}  // namespace pelago::sites
