// A quantised slice as bytes on the line: the scales as little-endian f32, then the packed values.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "base/error.h"

namespace pelago::sites {

/// Quantises by block. decoded: as many values, receives what decode_slice() will make of it.
/// Throws Failure if a value is not finite.
std::string encode_slice(std::span<const float> values, int bits, std::span<float> decoded);
/// kCorrupt if payload is not exactly out.size() values with finite scales.
Status decode_slice(const std::string& payload, int bits, std::span<float> out);

}  // namespace pelago::sites
