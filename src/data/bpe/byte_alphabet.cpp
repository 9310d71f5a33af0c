#include "data/bpe/byte_alphabet.h"

#include <algorithm>
#include <numeric>

namespace pelago::data {

namespace {

constexpr uint32_t kNumCodePoints = 256 + 68;

struct Alphabet {
  std::array<uint32_t, 256> code_point_of{};
  std::array<int, kNumCodePoints> byte_of{};

  constexpr Alphabet() {
    byte_of.fill(-1);
    uint32_t next = 256;
    for (uint32_t byte = 0; byte < 256; ++byte) {
      const bool prints = (byte >= 33 && byte <= 126) || (byte >= 161 && byte != 173);
      code_point_of[byte] = prints ? byte : next++;
      byte_of[code_point_of[byte]] = static_cast<int>(byte);
    }
  }
};

constexpr Alphabet kAlphabet;

}  // namespace

std::string to_byte_alphabet(std::string_view bytes) {
  std::string text;
  text.reserve(bytes.size() * 2);
  for (const char byte : bytes) {
    const uint32_t code_point = kAlphabet.code_point_of[static_cast<uint8_t>(byte)];
    if (code_point < 0x80) {
      text.push_back(static_cast<char>(code_point));
    } else {
      text.push_back(static_cast<char>(0xC0 | (code_point >> 6)));
      text.push_back(static_cast<char>(0x80 | (code_point & 0x3F)));
    }
  }
  return text;
}

std::optional<std::string> from_byte_alphabet(std::string_view text) {
  std::string bytes;
  bytes.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    uint32_t code_point = static_cast<uint8_t>(text[i]);
    if (code_point >= 0x80) {
      if ((code_point & 0xE0) != 0xC0 || i + 1 == text.size()) return std::nullopt;
      const uint32_t second = static_cast<uint8_t>(text[++i]);
      if ((second & 0xC0) != 0x80) return std::nullopt;
      code_point = ((code_point & 0x1F) << 6) | (second & 0x3F);
    }
    if (code_point >= kNumCodePoints || kAlphabet.byte_of[code_point] < 0) return std::nullopt;
    bytes.push_back(static_cast<char>(kAlphabet.byte_of[code_point]));
  }
  return bytes;
}

std::array<uint8_t, 256> bytes_in_alphabet_order() {
  std::array<uint8_t, 256> bytes;
  std::iota(bytes.begin(), bytes.end(), uint8_t{0});
  std::sort(bytes.begin(), bytes.end(), [](uint8_t a, uint8_t b) {
    return kAlphabet.code_point_of[a] < kAlphabet.code_point_of[b];
  });
  return bytes;
}

}  // namespace pelago::data
