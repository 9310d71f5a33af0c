#include "sites/exchange/coding/entropy_coder.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <numeric>
#include <optional>
#include <vector>

namespace pelago::sites {

namespace {

constexpr size_t kStates = 4;
constexpr uint32_t kScaleBits = 12;
constexpr uint32_t kScale = 1U << kScaleBits;
constexpr uint32_t kLow = 1U << 16;  // a state is never below this between two symbols
constexpr size_t kZeroRunMax = 16;

using Frequencies = std::array<uint32_t, 256>;

/// Four tables, so that a byte that comes again at once does not wait for its own count.
Frequencies count(std::span<const uint8_t> symbols) {
  std::array<Frequencies, 4> counts{};
  size_t i = 0;
  for (; i + 4 <= symbols.size(); i += 4) {
    for (size_t lane = 0; lane < 4; ++lane) ++counts[lane][symbols[i + lane]];
  }
  for (; i < symbols.size(); ++i) ++counts[0][symbols[i]];
  for (size_t symbol = 0; symbol < 256; ++symbol) {
    for (size_t lane = 1; lane < 4; ++lane) counts[0][symbol] += counts[lane][symbol];
  }
  return counts[0];
}

/// To a sum of kScale; whatever occurs keeps at least one. What rounding leaves over goes to, or
/// comes from, the most frequent ones.
Frequencies scale_down(const Frequencies& counts, size_t num_symbols) {
  Frequencies scaled{};
  uint32_t sum = 0;
  for (size_t symbol = 0; symbol < 256; ++symbol) {
    if (counts[symbol] == 0) continue;
    const uint64_t share = (uint64_t{counts[symbol]} * kScale + num_symbols / 2) / num_symbols;
    scaled[symbol] = std::max(static_cast<uint32_t>(share), 1U);
    sum += scaled[symbol];
  }
  while (sum != kScale) {
    uint32_t& largest = *std::max_element(scaled.begin(), scaled.end());
    const uint32_t step = std::max(largest / 64, 1U);
    if (sum < kScale) {
      largest += std::min(step, kScale - sum);
    } else {
      largest -= std::min({step, sum - kScale, largest - 1});
    }
    sum = std::accumulate(scaled.begin(), scaled.end(), 0U);
  }
  return scaled;
}

Frequencies starts_of(const Frequencies& frequencies) {
  Frequencies starts{};
  std::exclusive_scan(frequencies.begin(), frequencies.end(), starts.begin(), 0U);
  return starts;
}

class BitWriter {
 public:
  explicit BitWriter(std::string& out) : out_(&out) {}
  void put(uint32_t value, uint32_t num_bits) {
    held_ |= uint64_t{value} << num_held_;
    num_held_ += num_bits;
    for (; num_held_ >= 8; num_held_ -= 8, held_ >>= 8) out_->push_back(static_cast<char>(held_));
  }
  void finish() {
    if (num_held_ > 0) out_->push_back(static_cast<char>(held_));
  }

 private:
  std::string* out_;
  uint64_t held_ = 0;
  uint32_t num_held_ = 0;
};

class BitReader {
 public:
  explicit BitReader(std::span<const uint8_t> bytes) : bytes_(bytes) {}
  /// Zeros past the end, which is_past_end() then tells.
  uint32_t take(uint32_t num_bits) {
    for (; num_held_ < num_bits; num_held_ += 8) {
      const uint64_t byte = at_ < bytes_.size() ? bytes_[at_] : 0U;
      ++at_;
      held_ |= byte << num_held_;
    }
    const auto value = static_cast<uint32_t>(held_ & ((uint64_t{1} << num_bits) - 1));
    held_ >>= num_bits;
    num_held_ -= num_bits;
    return value;
  }
  bool is_past_end() const { return at_ > bytes_.size(); }
  size_t num_bytes() const { return at_; }

 private:
  std::span<const uint8_t> bytes_;
  size_t at_ = 0;
  uint64_t held_ = 0;
  uint32_t num_held_ = 0;
};

void append_table(const Frequencies& frequencies, std::string& out) {
  BitWriter writer(out);
  for (size_t symbol = 0; symbol < 256; ++symbol) {
    const auto num_bits = static_cast<uint32_t>(std::bit_width(frequencies[symbol]));
    writer.put(num_bits, 4);
    if (num_bits > 0) {
      writer.put(frequencies[symbol] & ((1U << (num_bits - 1)) - 1), num_bits - 1);
      continue;
    }
    uint32_t more = 0;
    while (more + 1 < kZeroRunMax && symbol + 1 < 256 && frequencies[symbol + 1] == 0) {
      ++more;
      ++symbol;
    }
    writer.put(more, 4);
  }
  writer.finish();
}

std::optional<Frequencies> take_table(std::span<const uint8_t>& bytes) {
  BitReader reader(bytes);
  Frequencies frequencies{};
  uint32_t sum = 0;
  for (size_t symbol = 0; symbol < 256; ++symbol) {
    const uint32_t num_bits = reader.take(4);
    if (num_bits == 0) {
      symbol += reader.take(4);
      if (symbol >= 256) return std::nullopt;
    } else if (num_bits > kScaleBits + 1) {
      return std::nullopt;
    } else {
      frequencies[symbol] = (1U << (num_bits - 1)) | reader.take(num_bits - 1);
      sum += frequencies[symbol];
    }
  }
  if (sum != kScale || reader.is_past_end()) return std::nullopt;
  bytes = bytes.subspan(reader.num_bytes());
  return frequencies;
}

template <typename T>
void append_number(T value, std::string& out) {
  for (size_t i = 0; i < sizeof(T); ++i) out.push_back(static_cast<char>(value >> (8 * i)));
}

uint32_t take_u32(std::span<const uint8_t>& bytes) {
  uint32_t value = 0;
  for (size_t i = 0; i < 4; ++i) value |= uint32_t{bytes[i]} << (8 * i);
  bytes = bytes.subspan(4);
  return value;
}

/// Coding goes from the last symbol to the first, so that decoding goes forward. words receives
/// them in the order in which the decoder takes them, at its end; returns where they begin.
size_t encode(std::span<const uint8_t> symbols,
              const Frequencies& frequencies,
              std::array<uint32_t, kStates>& states,
              std::vector<uint16_t>& words) {
  const Frequencies starts = starts_of(frequencies);
  states.fill(kLow);
  size_t at = words.size();
  for (size_t i = symbols.size(); i-- > 0;) {
    uint32_t& state = states[i % kStates];
    const uint32_t frequency = frequencies[symbols[i]];
    if (state >= uint64_t{frequency} << (32 - kScaleBits)) {
      words[--at] = static_cast<uint16_t>(state);
      state >>= 16;
    }
    state = ((state / frequency) << kScaleBits) + state % frequency + starts[symbols[i]];
  }
  return at;
}

/// What a state's lowest bits say: symbol, frequency - 1, and the place within the frequency.
std::vector<uint32_t> slots_of(const Frequencies& frequencies) {
  std::vector<uint32_t> slots;
  slots.reserve(kScale);
  for (uint32_t symbol = 0; symbol < 256; ++symbol) {
    for (uint32_t place = 0; place < frequencies[symbol]; ++place) {
      slots.push_back(symbol | (frequencies[symbol] - 1) << 8 | place << 20);
    }
  }
  return slots;
}

/// The words of one coded run. Past the end there are zeros: the states then do not fit.
class WordReader {
 public:
  explicit WordReader(std::span<const uint8_t> bytes) : bytes_(bytes) {}
  bool has(size_t num_words) const { return at_ + 2 * num_words <= bytes_.size(); }
  uint32_t take() {
    uint16_t word = 0;
    std::memcpy(&word, bytes_.data() + at_, sizeof word);
    at_ += sizeof word;
    return word;
  }
  uint32_t take_or_zero() { return has(1) ? take() : 0; }
  bool is_at_end() const { return at_ == bytes_.size(); }

 private:
  std::span<const uint8_t> bytes_;
  size_t at_ = 0;
};

bool decode(std::span<const uint8_t> bytes,
            const std::vector<uint32_t>& slots,
            std::array<uint32_t, kStates> states,
            std::span<uint8_t> symbols) {
  WordReader words(bytes);
  const auto symbol_of = [&](uint32_t& state) {
    const uint32_t slot = slots[state % kScale];
    state = ((slot >> 8) % kScale + 1) * (state >> kScaleBits) + (slot >> 20);
    return static_cast<uint8_t>(slot);
  };
  size_t i = 0;
  for (; i + kStates <= symbols.size() && words.has(kStates); i += kStates) {
    for (size_t lane = 0; lane < kStates; ++lane) {
      symbols[i + lane] = symbol_of(states[lane]);
      if (states[lane] < kLow) states[lane] = states[lane] << 16 | words.take();
    }
  }
  for (; i < symbols.size(); ++i) {
    uint32_t& state = states[i % kStates];
    symbols[i] = symbol_of(state);
    if (state < kLow) state = state << 16 | words.take_or_zero();
  }
  return words.is_at_end() &&
         std::all_of(states.begin(), states.end(), [](uint32_t state) { return state == kLow; });
}

constexpr char kPlain = 0, kCoded = 1;

std::string coded(std::span<const uint8_t> symbols) {
  const Frequencies frequencies = scale_down(count(symbols), symbols.size());
  std::array<uint32_t, kStates> states{};
  std::vector<uint16_t> words(symbols.size());  // no symbol takes more than one
  const size_t first = encode(symbols, frequencies, states, words);
  std::string out(1, kCoded);
  append_table(frequencies, out);
  for (const uint32_t state : states) append_number(state, out);
  append_number(static_cast<uint32_t>(words.size() - first), out);
  const size_t head_bytes = out.size();
  out.resize(head_bytes + 2 * (words.size() - first));
  std::memcpy(out.data() + head_bytes, words.data() + first, out.size() - head_bytes);
  return out;
}

Error corrupt(const char* what) {
  return {ErrorCode::kCorrupt, fmt::format("coded bytes of a slice: {}", what)};
}

Status take_plain(std::span<const uint8_t>& bytes, std::span<uint8_t> symbols) {
  if (bytes.size() < symbols.size()) return corrupt("too few");
  std::copy_n(bytes.begin(), symbols.size(), symbols.begin());
  bytes = bytes.subspan(symbols.size());
  return ok();
}

}  // namespace

void append_coded(std::span<const uint8_t> symbols, std::string& out) {
  if (!symbols.empty()) {
    const std::string smaller = coded(symbols);
    if (smaller.size() <= symbols.size()) {
      out += smaller;
      return;
    }
  }
  out.push_back(kPlain);
  out.append(reinterpret_cast<const char*>(symbols.data()), symbols.size());
}

Status take_coded(std::span<const uint8_t>& bytes, std::span<uint8_t> symbols) {
  if (bytes.empty()) return corrupt("they are missing");
  const auto form = static_cast<char>(bytes[0]);
  bytes = bytes.subspan(1);
  if (form == kPlain) return take_plain(bytes, symbols);
  if (form != kCoded || symbols.empty()) return corrupt("a form that there is not");
  const std::optional<Frequencies> frequencies = take_table(bytes);
  if (!frequencies) return corrupt("frequencies that do not add up");
  if (bytes.size() < 4 * (kStates + 1)) return corrupt("too few");
  std::array<uint32_t, kStates> states{};
  for (uint32_t& state : states) state = take_u32(bytes);
  const size_t num_words = take_u32(bytes);
  if (num_words > symbols.size() || bytes.size() < 2 * num_words) return corrupt("too few");
  const bool is_sound = decode(bytes.first(2 * num_words), slots_of(*frequencies), states, symbols);
  bytes = bytes.subspan(2 * num_words);
  return is_sound ? ok() : Status(corrupt("states that do not come back"));
}

}  // namespace pelago::sites
