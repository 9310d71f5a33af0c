#include "sites/exchange/slice_codec.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "chips/kernels.h"

namespace pelago::sites {

std::string encode_slice(std::span<const float> values, int bits, std::span<float> decoded) {
  if (values.empty()) return {};
  const chips::QuantisedVector quantised = chips::quantise(values, bits);
  chips::dequantise(quantised, decoded);
  const size_t num_scale_bytes = quantised.scales.size() * sizeof(float);
  std::string payload(num_scale_bytes + quantised.payload.size(), '\0');
  if (num_scale_bytes > 0) std::memcpy(payload.data(), quantised.scales.data(), num_scale_bytes);
  std::memcpy(payload.data() + num_scale_bytes, quantised.payload.data(), quantised.payload.size());
  return payload;
}

Status decode_slice(const std::string& payload, int bits, std::span<float> out) {
  const auto num_values = static_cast<int64_t>(out.size());
  const auto num_scales = static_cast<size_t>(
      bits == 32 ? 0 : (num_values + chips::kQuantBlock - 1) / chips::kQuantBlock);
  const auto num_packed_bytes = static_cast<size_t>((num_values * bits + 7) / 8);
  const size_t num_bytes = num_scales * sizeof(float) + num_packed_bytes;
  if (payload.size() != num_bytes) {
    return Error{ErrorCode::kCorrupt,
                 fmt::format("slice of {} bytes where {} values at {} bits need {}",
                             payload.size(),
                             num_values,
                             bits,
                             num_bytes)};
  }
  if (out.empty()) return ok();
  chips::QuantisedVector quantised;
  quantised.bits = bits;
  quantised.num_values = num_values;
  quantised.scales.resize(num_scales);
  if (num_scales > 0) {
    std::memcpy(quantised.scales.data(), payload.data(), num_scales * sizeof(float));
  }
  const auto* packed = reinterpret_cast<const uint8_t*>(payload.data());
  quantised.payload.assign(packed + num_scales * sizeof(float), packed + payload.size());
  // A level is at most 127, so a scale below this bound makes no value that is not finite.
  constexpr float kScaleMax = std::numeric_limits<float>::max() / 128;
  for (const float scale : quantised.scales) {
    if (!(std::abs(scale) <= kScaleMax)) {
      return Error{ErrorCode::kCorrupt, "slice with a scale not finite"};
    }
  }
  chips::dequantise(quantised, out);
  if (bits != 32) return ok();
  bool all_finite = true;
  for (const float value : out) all_finite &= std::isfinite(value);
  if (!all_finite) return Error{ErrorCode::kCorrupt, "slice with a value not finite"};
  return ok();
}

}  // namespace pelago::sites
