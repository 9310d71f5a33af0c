// A slice of a fragment as bytes on the line, in the width that the job asks for. Quantised values
// are coded by their frequencies (entropy_coder.h), so how many bytes they become depends on the
// values; a receiver knows the most that they can be before a byte has come.
//   32   plain f32
//   8, 4 levels by block of 128 with a scale of one byte (chips/kernels.h): scales, levels, each
//        coded; 4 bits of normally distributed values become 3.5, scales included
//   2    thin: the largest values alone (thin_codec.h)
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "base/error.h"

namespace pelago::sites {

/// The most bytes that so many values become.
size_t slice_bytes_max(size_t num_values, int bits);
/// Cuts at multiples of this change no value that is restored on either side of them.
int64_t slice_unit(int bits);

/// Quantises. bits: 2, 4, 8 or 32. decoded: as many values, receives what decode_slice() will make
/// of it. Throws Failure if a value is not finite.
std::string encode_slice(std::span<const float> values, int bits, std::span<float> decoded);
/// The same, for whoever sends nothing of it: only what decode_slice() would make of the values.
void round_slice(std::span<const float> values, int bits, std::span<float> decoded);
/// kCorrupt if payload is not exactly out.size() finite values.
Status decode_slice(const std::string& payload, int bits, std::span<float> out);

}  // namespace pelago::sites
