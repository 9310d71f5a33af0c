// Bytes in as few bits as their frequencies allow, and back, without loss. Values of a block that
// are divided by its largest do not use all levels alike: of the four bits of a level about 3.4 are
// news. Coded by range asymmetric numeral systems (rANS, arXiv:1311.2540): four states take turns,
// which keeps a processor's units busy; frequencies add up to 4096 and stand before the bytes.
//
//   plain: [0][the bytes]                  where coding would gain nothing
//   coded: [1][table][4 states, u32][number of words, u32][words, u16]; little-endian
//   table: for each byte value, in 4 bits, how many bits its frequency has, then the bits below the
//          highest; 0 bits: not used, and 4 bits more say how many further ones are not
//
// What comes from a peer is checked here: whatever the bytes are, nothing is read or written out of
// bounds, and what was not made by the encoder is nearly always refused, since the states must come
// back to where they began.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "base/error.h"

namespace pelago::sites {

/// The most bytes that so many symbols become.
constexpr size_t coded_bytes_max(size_t num_symbols) { return num_symbols + 1; }

/// Adds the symbols, coded, to out. The same symbols make the same bytes on every machine.
void append_coded(std::span<const uint8_t> symbols, std::string& out);

/// Takes as many symbols as there is room for from the front of bytes. kCorrupt if they are not
/// there, or the table or the states are not those of an encoder; symbols may then hold anything.
Status take_coded(std::span<const uint8_t>& bytes, std::span<uint8_t> symbols);

}  // namespace pelago::sites
