// A hash map from a pair of token ids, for the two inner loops of BPE. Open addressing in one
// array: std::unordered_map follows two pointers a look-up and is three times slower here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/rng.h"
#include "data/tokenizer.h"

namespace pelago::data {

inline uint64_t pair_key(TokenId left, TokenId right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

template <typename Value>
class PairMap {
 public:
  explicit PairMap(size_t num_expected = 0) {
    size_t num_slots = 16;
    while (num_slots < num_expected * 2) num_slots *= 2;
    slots_.resize(num_slots);
  }

  /// Null if the key is not there. Pointers last until the next insert.
  const Value* find(uint64_t key) const {
    const Slot& slot = slots_[slot_of(key)];
    return slot.key == key ? &slot.value : nullptr;
  }

  /// Puts value under key unless the key is there; returns what is there now.
  Value& insert(uint64_t key, Value value) {
    size_t idx = slot_of(key);
    if (slots_[idx].key == key) return slots_[idx].value;
    if (++num_keys_ * 2 > slots_.size()) {
      grow();
      idx = slot_of(key);
    }
    slots_[idx] = {key, value};
    return slots_[idx].value;
  }

  size_t num_keys() const { return num_keys_; }

 private:
  static constexpr uint64_t kFree = ~uint64_t{0};  // the pair (-1, -1), which no token makes

  struct Slot {
    uint64_t key = kFree;
    Value value{};
  };

  size_t slot_of(uint64_t key) const {
    const size_t mask = slots_.size() - 1;
    size_t idx = static_cast<size_t>(Rng::mix(key)) & mask;
    while (slots_[idx].key != key && slots_[idx].key != kFree) idx = (idx + 1) & mask;
    return idx;
  }

  void grow() {
    std::vector<Slot> old(slots_.size() * 2);
    old.swap(slots_);
    for (const Slot& slot : old) {
      if (slot.key != kFree) slots_[slot_of(slot.key)] = slot;
    }
  }

  std::vector<Slot> slots_;  // a power of two of them, at most half in use
  size_t num_keys_ = 0;
};

}  // namespace pelago::data
