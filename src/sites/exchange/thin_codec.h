// The thinnest way to send a delta: of every 4096 values only the 112 largest, with two bits each
// (sign, and which of two magnitudes), as SparseLoCo does (arXiv:2508.15706: chunks of 4096, the 64
// largest, 2 bits, positions of 12 bits: 0.0273 byte a value). The rest waits in the kept error.
// Positions in rising order need less than 12 bits: their upper 7 bits are sent in unary (a one for
// each position, a zero for each group of 32 values passed; Elias-Fano), their lower 5 as they are.
// That is 8.1 bits a position, so that 112 values fit where 64 would, in 130 bytes a chunk: 0.0317
// byte a value, always.
//
//   a chunk: [low scale][high scale][unary: k + ceil(n/32) bits][k times 5 bits of position, sign,
//            1 for the high scale], scales as in chips::line_scale, bits from the low end of a byte
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/error.h"

namespace pelago::sites {

/// What stands for this codec where a number of bits is asked for.
inline constexpr int kThinBits = 2;
inline constexpr int64_t kThinChunk = 4096;

/// Values that are sent of a chunk of so many, 1 to 4096: 7 of 256, rounded up.
constexpr size_t thin_count(size_t num_values) { return (num_values * 7 + 255) / 256; }
/// Bytes of so many values; the last chunk may be shorter than the others.
size_t thin_bytes(size_t num_values);

/// values: finite. bytes: thin_bytes() of them. decoded: what decode_thin() will make of it, mostly
/// zeros. Equal magnitudes: the earlier value goes first, so the same values make the same bytes.
void encode_thin(std::span<const float> values, std::span<uint8_t> bytes, std::span<float> decoded);
/// kCorrupt if the positions are not rising or lie outside. bytes: thin_bytes(out.size()).
Status decode_thin(std::span<const uint8_t> bytes, std::span<float> out);

}  // namespace pelago::sites
