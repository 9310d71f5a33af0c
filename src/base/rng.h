// One seed a run, split by name: rng.fork("init", layer_idx). A fork depends only on the seed, the
// name and the index, never on what was drawn before, so that adding a draw in one place moves no
// other. The generator is SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): 8 bytes of state that a
// checkpoint can hold.
#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>
#include <string_view>

namespace pelago {

class Rng {
 public:
  explicit Rng(uint64_t seed) : state_(seed) {}

  /// A generator of its own for one purpose.
  Rng fork(std::string_view name, uint64_t idx = 0) const {
    uint64_t hash = state_ ^ 0xcbf29ce484222325ULL;  // FNV-1a over the name, then the index
    for (const char c : name) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3ULL;
    return Rng(mix(hash + mix(idx)));
  }

  uint64_t next_u64() { return mix(state_ += 0x9e3779b97f4a7c15ULL); }

  /// Uniform in [0, 1), 53 bits.
  double next_uniform() { return static_cast<double>(next_u64() >> 11) * 0x1.0p-53; }

  /// Uniform in [0, bound). bound > 0. The bias is below bound / 2^64.
  uint64_t next_below(uint64_t bound) {
    return static_cast<uint64_t>((static_cast<Wide>(next_u64()) * bound) >> 64);
  }

  /// Normal with mean 0 and deviation 1 (Box-Muller, one of the pair).
  double next_normal() {
    const double radius = std::sqrt(-2.0 * std::log(1.0 - next_uniform()));
    return radius * std::cos(2.0 * std::numbers::pi * next_uniform());
  }

  uint64_t state() const { return state_; }

  /// The finaliser of SplitMix64; a good 64-bit mixer by itself.
  static uint64_t mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
  }

 private:
  __extension__ using Wide = unsigned __int128;
  uint64_t state_;
};

}  // namespace pelago
