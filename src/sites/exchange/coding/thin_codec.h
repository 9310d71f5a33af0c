// The thinnest way to send a delta: of every 4096 values only the 112 largest, with two bits each
// (sign, and which of two magnitudes), as SparseLoCo does (arXiv:2508.15706: chunks of 4096, the 64
// largest, 2 bits, positions of 12 bits: 0.0273 byte a value). The rest waits in the kept error.
// Positions rise, so the gaps between them are sent, a byte each, coded by their frequencies
// (entropy_coder.h): 6.6 bits a position where they lie at random, so that 112 values fit where 64
// would: 0.029 byte a value.
//
//   [number of gap bytes, u32][scales, coded: low and high of each chunk, as in chips::line_scale]
//   [gaps, coded: what lies before a value since the last one of its chunk; 255: that much, and
//   more follows][signs and scales, coded: 1 negative, 2 the high scale, four values a byte]
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "base/error.h"

namespace pelago::sites {

/// What stands for this codec where a number of bits is asked for.
inline constexpr int kThinBits = 2;
inline constexpr int64_t kThinChunk = 4096;

/// Values that are sent of a chunk of so many, 1 to 4096: 7 of 256, rounded up.
constexpr size_t thin_count(size_t num_values) { return (num_values * 7 + 255) / 256; }
/// The most bytes that so many values become; the last chunk may be shorter than the others.
size_t thin_bytes_max(size_t num_values);

/// values: finite, not empty. decoded: what decode_thin() will make of it, mostly zeros. Equal
/// magnitudes: the earlier value goes first, so the same values make the same bytes.
std::string encode_thin(std::span<const float> values, std::span<float> decoded);
/// kCorrupt if the bytes are not whole, or a position lies outside. out: not empty.
Status decode_thin(std::span<const uint8_t> bytes, std::span<float> out);

}  // namespace pelago::sites
