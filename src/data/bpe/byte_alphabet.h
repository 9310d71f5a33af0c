// GPT-2's alphabet: every byte has a printable character, so that tokens of any bytes can stand in
// a JSON file. Bytes that print in Latin-1 stand for themselves; the other 68, in order, become
// U+0100 and up (a space is "Ġ").
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace pelago::data {

/// Bytes as characters of the alphabet, in UTF-8.
std::string to_byte_alphabet(std::string_view bytes);

/// The way back; nothing if text has a character outside the alphabet.
std::optional<std::string> from_byte_alphabet(std::string_view text);

/// All bytes in the order of their characters: ids 0 to 255 of a vocabulary trained here, as in
/// GPT-2's.
std::array<uint8_t, 256> bytes_in_alphabet_order();

}  // namespace pelago::data
