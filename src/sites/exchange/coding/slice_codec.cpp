#include "sites/exchange/coding/slice_codec.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "chips/kernels.h"
#include "sites/exchange/coding/entropy_coder.h"
#include "sites/exchange/coding/thin_codec.h"

namespace pelago::sites {

namespace {

// No weight of a model that trains comes near, and sums of values below it stay finite.
constexpr float kMagnitudeMax = 1e30F;

bool all_sound(std::span<const float> values) {
  return std::all_of(
      values.begin(), values.end(), [](float x) { return std::abs(x) <= kMagnitudeMax; });
}

std::span<const uint8_t> bytes_of(const std::string& payload) {
  return {reinterpret_cast<const uint8_t*>(payload.data()), payload.size()};
}

size_t num_scales(size_t num_values) {
  constexpr auto kBlock = static_cast<size_t>(chips::kLineBlock);
  return (num_values + kBlock - 1) / kBlock;
}

Error wrong_length(size_t num_bytes, size_t num_values, int bits) {
  return {
      ErrorCode::kCorrupt,
      fmt::format("slice of {} bytes is not {} values at {} bits", num_bytes, num_values, bits)};
}

std::vector<uint8_t> quantised(std::span<const float> values, int bits, std::span<float> decoded) {
  std::vector<uint8_t> bytes(chips::line_bytes(values.size(), bits));
  chips::quantise_for_line(values, bits, bytes);
  chips::dequantise_from_line(bytes, bits, decoded);
  return bytes;
}

std::string encode_blocks(std::span<const float> values, int bits, std::span<float> decoded) {
  const std::vector<uint8_t> bytes = quantised(values, bits, decoded);
  const std::span<const uint8_t> all(bytes);
  std::string payload;
  payload.reserve(slice_bytes_max(values.size(), bits));
  append_coded(all.first(num_scales(values.size())), payload);
  append_coded(all.subspan(num_scales(values.size())), payload);
  return payload;
}

Status decode_blocks(std::span<const uint8_t> payload, int bits, std::span<float> out) {
  const size_t num_bytes = payload.size();
  std::vector<uint8_t> bytes(chips::line_bytes(out.size(), bits));
  const std::span<uint8_t> all(bytes);
  Status taken = take_coded(payload, all.first(num_scales(out.size())));
  if (taken) taken = take_coded(payload, all.subspan(num_scales(out.size())));
  if (!taken) return taken;
  if (!payload.empty()) return wrong_length(num_bytes, out.size(), bits);
  chips::dequantise_from_line(bytes, bits, out);
  return ok();
}

}  // namespace

size_t slice_bytes_max(size_t num_values, int bits) {
  if (num_values == 0) return 0;
  if (bits == 32) return num_values * sizeof(float);
  if (bits == kThinBits) return thin_bytes_max(num_values);
  return coded_bytes_max(num_scales(num_values)) +
         coded_bytes_max(chips::line_bytes(num_values, bits) - num_scales(num_values));
}

int64_t slice_unit(int bits) { return bits == kThinBits ? kThinChunk : chips::kLineBlock; }

std::string encode_slice(std::span<const float> values, int bits, std::span<float> decoded) {
  if (values.empty()) return {};
  if (bits == 4 || bits == 8) return encode_blocks(values, bits, decoded);
  if (!all_sound(values)) fail("a delta holds a value not finite or past 1e30: it cannot be sent");
  if (bits == kThinBits) return encode_thin(values, decoded);
  std::copy(values.begin(), values.end(), decoded.begin());
  return {reinterpret_cast<const char*>(values.data()), values.size_bytes()};
}

void round_slice(std::span<const float> values, int bits, std::span<float> decoded) {
  if (!values.empty() && (bits == 4 || bits == 8)) {
    quantised(values, bits, decoded);
  } else {
    encode_slice(values, bits, decoded);
  }
}

Status decode_slice(const std::string& payload, int bits, std::span<float> out) {
  const size_t most_bytes = slice_bytes_max(out.size(), bits);
  const bool is_exact = bits == 32 || out.empty();
  if (payload.size() > most_bytes || (is_exact && payload.size() != most_bytes)) {
    return wrong_length(payload.size(), out.size(), bits);
  }
  if (out.empty()) return ok();
  if (bits == kThinBits) return decode_thin(bytes_of(payload), out);
  if (bits != 32) return decode_blocks(bytes_of(payload), bits, out);
  std::memcpy(out.data(), payload.data(), payload.size());
  if (!all_sound(out)) {
    return Error{ErrorCode::kCorrupt, "slice with a value not finite or past 1e30"};
  }
  return ok();
}

}  // namespace pelago::sites
