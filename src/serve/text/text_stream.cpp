#include "serve/text/text_stream.h"

#include <algorithm>
#include <cstdint>
#include <utility>

namespace pelago::serve {

namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

/// What stands at the front of some bytes.
struct Front {
  size_t length = 0;  // bytes to take off
  enum class Kind { kCharacter, kDamaged, kUnfinished } kind = Kind::kCharacter;
};

/// The table of well-formed byte sequences (Unicode 15, table 3-7).
Front front_of(std::string_view bytes) {
  const auto at = [&](size_t idx) { return static_cast<uint8_t>(bytes[idx]); };
  const uint8_t first = at(0);
  if (first < 0x80) return {.length = 1};
  size_t length = 0;
  uint8_t low = 0x80;
  uint8_t high = 0xBF;  // of the second byte
  if (first >= 0xC2 && first <= 0xDF) {
    length = 2;
  } else if ((first & 0xF0) == 0xE0) {
    length = 3;
    if (first == 0xE0) low = 0xA0;   // shorter forms
    if (first == 0xED) high = 0x9F;  // surrogates
  } else if (first >= 0xF0 && first <= 0xF4) {
    length = 4;
    if (first == 0xF0) low = 0x90;
    if (first == 0xF4) high = 0x8F;  // beyond U+10FFFF
  } else {
    return {.length = 1, .kind = Front::Kind::kDamaged};
  }
  for (size_t idx = 1; idx < length; ++idx) {
    if (idx == bytes.size()) return {.length = idx, .kind = Front::Kind::kUnfinished};
    if (at(idx) < low || at(idx) > high) return {.length = idx, .kind = Front::Kind::kDamaged};
    low = 0x80;
    high = 0xBF;
  }
  return {.length = length};
}

}  // namespace

bool TextStream::add(std::string_view bytes) {
  bytes_ += bytes;
  std::string_view rest = bytes_;
  const size_t num_known = pending_.size();
  while (!rest.empty()) {
    const Front front = front_of(rest);
    if (front.kind == Front::Kind::kUnfinished) break;
    pending_ += front.kind == Front::Kind::kDamaged ? kReplacement : rest.substr(0, front.length);
    rest.remove_prefix(front.length);
  }
  bytes_.erase(0, bytes_.size() - rest.size());
  size_t stop_at = std::string::npos;
  for (const std::string& stop : stops_) {
    // What was pending before holds no whole stop string: one can only end in what is new.
    const size_t from = num_known >= stop.size() ? num_known - stop.size() + 1 : 0;
    stop_at = std::min(stop_at, pending_.find(stop, from));
  }
  const bool has_stopped = stop_at != std::string::npos;
  const size_t num_ready = has_stopped ? stop_at : pending_.size() - num_held_back();
  ready_.append(pending_, 0, num_ready);
  pending_.erase(0, num_ready);
  if (has_stopped) {
    pending_.clear();
    bytes_.clear();
  }
  return has_stopped;
}

size_t TextStream::num_held_back() const {
  size_t most = 0;
  for (const std::string& stop : stops_) {
    for (size_t length = std::min(stop.size() - 1, pending_.size()); length > most; --length) {
      if (pending_.compare(pending_.size() - length, length, stop, 0, length) == 0) most = length;
    }
  }
  return most;
}

void TextStream::finish() {
  ready_ += std::exchange(pending_, {});
  if (!std::exchange(bytes_, {}).empty()) ready_ += kReplacement;
}

std::string TextStream::take() { return std::exchange(ready_, {}); }

}  // namespace pelago::serve
