// A slice of a fragment as bytes on the line, in the width that the job asks for. The number of
// bytes follows from the number of values alone, so a receiver knows it before a byte has come.
//   32   plain f32
//   8, 4 levels by block of 128 with a scale of one byte (chips/kernels.h)
//   2    thin: the largest values alone (thin_codec.h)
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "base/error.h"

namespace pelago::sites {

/// Bytes of so many values; the planner's plan::delta_bytes() says the same.
size_t slice_bytes(size_t num_values, int bits);
/// Cuts at multiples of this change no byte of what is encoded on either side of them.
int64_t slice_unit(int bits);

/// Quantises. bits: 2, 4, 8 or 32. decoded: as many values, receives what decode_slice() will make
/// of it. Throws Failure if a value is not finite.
std::string encode_slice(std::span<const float> values, int bits, std::span<float> decoded);
/// kCorrupt if payload is not exactly out.size() finite values.
Status decode_slice(const std::string& payload, int bits, std::span<float> out);

}  // namespace pelago::sites
