// The inner loops of block quantisation: whole blocks of kQuantBlock values.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pelago::chips::cpu {

/// Values whose magnitude's bits reach this are infinite or not numbers.
inline constexpr uint32_t kInfinityBits = 0x7F800000;

/// Quantises num_blocks blocks to 4 or 8 bits: scales [num_blocks], payload [num_blocks * 64 * bits
/// / 8]. Returns the largest magnitude's bits over all values: kInfinityBits or more if one is not
/// finite, and then what was written is worthless.
uint32_t quantise_blocks(
    const float* values, size_t num_blocks, int bits, float* scales, uint8_t* payload);

/// The way back.
void dequantise_blocks(
    const uint8_t* payload, const float* scales, size_t num_blocks, int bits, float* values);

/// The same in blocks of kLineBlock with scales of one byte: codes [num_blocks], payload
/// [num_blocks
/// * 128 * bits / 8].
uint32_t quantise_line_blocks(
    const float* values, size_t num_blocks, int bits, uint8_t* codes, uint8_t* payload);
void dequantise_line_blocks(
    const uint8_t* payload, const uint8_t* codes, size_t num_blocks, int bits, float* values);

}  // namespace pelago::chips::cpu
