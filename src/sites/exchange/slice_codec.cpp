#include "sites/exchange/slice_codec.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "chips/kernels.h"
#include "sites/exchange/thin_codec.h"

namespace pelago::sites {

namespace {

// No weight of a model that trains comes near, and sums of values below it stay finite.
constexpr float kMagnitudeMax = 1e30F;

bool all_sound(std::span<const float> values) {
  return std::all_of(
      values.begin(), values.end(), [](float x) { return std::abs(x) <= kMagnitudeMax; });
}

std::span<uint8_t> bytes_of(std::string& payload) {
  return {reinterpret_cast<uint8_t*>(payload.data()), payload.size()};
}

std::span<const uint8_t> bytes_of(const std::string& payload) {
  return {reinterpret_cast<const uint8_t*>(payload.data()), payload.size()};
}

}  // namespace

size_t slice_bytes(size_t num_values, int bits) {
  if (bits == 32) return num_values * sizeof(float);
  return bits == kThinBits ? thin_bytes(num_values) : chips::line_bytes(num_values, bits);
}

int64_t slice_unit(int bits) { return bits == kThinBits ? kThinChunk : chips::kLineBlock; }

std::string encode_slice(std::span<const float> values, int bits, std::span<float> decoded) {
  std::string payload(slice_bytes(values.size(), bits), '\0');
  if (values.empty()) return payload;
  if (bits == 4 || bits == 8) {
    chips::quantise_for_line(values, bits, bytes_of(payload));
    chips::dequantise_from_line(bytes_of(payload), bits, decoded);
    return payload;
  }
  if (!all_sound(values)) fail("a delta holds a value not finite or past 1e30: it cannot be sent");
  if (bits == kThinBits) {
    encode_thin(values, bytes_of(payload), decoded);
  } else {
    std::memcpy(payload.data(), values.data(), values.size_bytes());
    std::copy(values.begin(), values.end(), decoded.begin());
  }
  return payload;
}

Status decode_slice(const std::string& payload, int bits, std::span<float> out) {
  const size_t num_bytes = slice_bytes(out.size(), bits);
  if (payload.size() != num_bytes) {
    return Error{ErrorCode::kCorrupt,
                 fmt::format("slice of {} bytes where {} values at {} bits need {}",
                             payload.size(),
                             out.size(),
                             bits,
                             num_bytes)};
  }
  if (out.empty()) return ok();
  if (bits == kThinBits) return decode_thin(bytes_of(payload), out);
  if (bits != 32) {
    chips::dequantise_from_line(bytes_of(payload), bits, out);
    return ok();
  }
  std::memcpy(out.data(), payload.data(), payload.size());
  if (!all_sound(out)) {
    return Error{ErrorCode::kCorrupt, "slice with a value not finite or past 1e30"};
  }
  return ok();
}

}  // namespace pelago::sites
