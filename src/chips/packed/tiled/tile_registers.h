// The tile registers of AMX: eight of 16 rows by 64 bytes. Instructions by hand, since the
// intrinsics of gcc 12 do not tell the compiler which memory they read and write.
#pragma once

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

namespace pelago::chips::packed {

inline constexpr size_t kTileRows = 16, kTileBytes = 64;  // a row's

#if defined(__x86_64__) && defined(__linux__)

/// As LDTILECFG reads it (Intel's manual of the instruction set, volume 1, chapter 18).
struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
  void set(size_t tile, size_t num_rows, size_t num_bytes = kTileBytes) {
    row_bytes[tile] = static_cast<uint16_t>(num_bytes);
    rows[tile] = static_cast<uint8_t>(num_rows);
  }
};

inline void shape_tiles(const TileShapes& shapes) { asm volatile("ldtilecfg %0" ::"m"(shapes)); }
inline void release_tiles() { asm volatile("tilerelease" ::); }

template <int kTile>
inline void load_tile(const void* from, size_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(kTile) : "memory");
}
template <int kTile>
inline void store_tile(void* to, size_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(kTile) : "memory");
}
template <int kTile>
inline void clear_tile() {
  asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
}
/// sums += rows * weights, pairs of bf16 in f32.
template <int kSums, int kRows, int kWeights>
inline void add_tile_product() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSums), "i"(kRows), "i"(kWeights));
}
/// sums += rows * weights, four signed bytes by four unsigned ones in int32.
template <int kSums, int kRows, int kWeights>
inline void add_byte_product() {
  asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSums), "i"(kRows), "i"(kWeights));
}

/// What products need of the processor beside tiles: a bit of CPUID's leaf 7, EDX.
enum class TileProducts : uint32_t { kBf16 = 1U << 22, kBytes = 1U << 25 };

/// Whether the processor multiplies so, and the system saves tiles: of processes that ask for it.
inline bool may_use_tiles(TileProducts products) {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
  const unsigned needed = static_cast<uint32_t>(products) | 1U << 24;  // tiles as such
  if ((edx & needed) != needed) return false;
  constexpr int kAskForState = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return ::syscall(SYS_arch_prctl, kAskForState, kTileData) == 0;
}

#endif

/// Calls visit with each index as a constant.
template <int kCount, typename Visit>
inline void for_each_constant(const Visit& visit) {
  [&]<int... kIndex>(std::integer_sequence<int, kIndex...>) {
    (visit(std::integral_constant<int, kIndex>()), ...);
  }
  (std::make_integer_sequence<int, kCount>());
}

}  // namespace pelago::chips::packed
