// Remembers the tokens of short pieces. Text repeats its words: on C headers 19 of 20 pieces are
// found here, at a few nanoseconds each. Keys of up to 23 bytes lie in the slot itself, so that a
// look-up touches one cache line.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <vector>

#include "base/rng.h"
#include "data/tokenizer.h"

namespace pelago::data {

/// A piece of at most 23 bytes as three numbers: its bytes, zeros, and its length in the last byte.
class WordKey {
 public:
  static constexpr size_t kBytesMax = 23;

  /// word: 1 to 23 bytes. num_readable_bytes: how many bytes from word.data() on may be read.
  WordKey(std::string_view word, size_t num_readable_bytes) {
    if (num_readable_bytes >= sizeof words_) {
      std::memcpy(words_.data(), word.data(), sizeof words_);  // a fixed size: three loads
      for (size_t i = 0; i < words_.size(); ++i) {
        const size_t num_wanted = word.size() > i * 8 ? word.size() - i * 8 : 0;
        if (num_wanted < 8) words_[i] &= (uint64_t{1} << (num_wanted * 8)) - 1;
      }
    } else {
      std::memcpy(words_.data(), word.data(), word.size());
    }
    words_[2] |= static_cast<uint64_t>(word.size()) << 56;
  }
  WordKey() = default;

  bool is_free() const { return words_[2] == 0; }
  bool operator==(const WordKey&) const = default;
  uint64_t hash() const {
    return Rng::mix(words_[0] ^ (words_[1] * 0x9e3779b97f4a7c15ULL) ^
                    (words_[2] * 0xc2b2ae3d27d4eb4fULL));
  }

 private:
  std::array<uint64_t, 3> words_{};  // little-endian bytes
};

class WordCache {
 public:
  WordCache() : slots_(size_t{1} << 12) {}

  /// Appends the tokens and returns true if the word is known.
  bool append(const WordKey& key, std::vector<TokenId>& out) const {
    const Slot& slot = slots_[slot_of(key)];
    if (slot.key.is_free()) return false;
    if (slot.num_ids == 1) {
      out.push_back(static_cast<TokenId>(slot.id_or_offset));
    } else {
      const auto ids = std::span(ids_).subspan(slot.id_or_offset, slot.num_ids);
      out.insert(out.end(), ids.begin(), ids.end());
    }
    return true;
  }

  /// Remembers a word that append() did not find.
  void remember(const WordKey& key, std::span<const TokenId> ids) {
    if ((num_words_ + 1) * 2 > slots_.size()) make_room();
    Slot& slot = slots_[slot_of(key)];
    ++num_words_;
    slot.key = key;
    slot.num_ids = static_cast<uint32_t>(ids.size());
    if (ids.size() == 1) {
      slot.id_or_offset = static_cast<uint32_t>(ids[0]);
    } else {
      slot.id_or_offset = static_cast<uint32_t>(ids_.size());
      ids_.insert(ids_.end(), ids.begin(), ids.end());
    }
  }

 private:
  // 2^19 slots of 32 bytes are 16 MiB and hold 262,144 words; past that the cache starts anew.
  static constexpr size_t kNumSlotsMax = size_t{1} << 19;

  struct Slot {
    WordKey key;
    uint32_t id_or_offset = 0;  // the one token, or where in ids_ they begin
    uint32_t num_ids = 0;
  };

  size_t slot_of(const WordKey& key) const {
    const size_t mask = slots_.size() - 1;
    size_t idx = static_cast<size_t>(key.hash()) & mask;
    while (!slots_[idx].key.is_free() && slots_[idx].key != key) idx = (idx + 1) & mask;
    return idx;
  }

  void make_room() {
    if (slots_.size() == kNumSlotsMax) {
      slots_.assign(size_t{1} << 12, Slot());
      ids_.clear();
      num_words_ = 0;
      return;
    }
    std::vector<Slot> old(slots_.size() * 2);
    old.swap(slots_);
    for (const Slot& slot : old) {
      if (!slot.key.is_free()) slots_[slot_of(slot.key)] = slot;
    }
  }

  std::vector<Slot> slots_;  // a power of two of them, at most half in use
  std::vector<TokenId> ids_;
  size_t num_words_ = 0;
};

}  // namespace pelago::data
