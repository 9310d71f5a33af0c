// What crosses the border between pelago and its emulator plug-in: plain structs and C functions,
// found by name with dlsym. Neither side sees the other's classes, so the two can be built apart.
#pragma once

#include <cstdint>

namespace pelago::emulator {

/// Raised whenever a struct here changes; the plug-in refuses any other.
inline constexpr uint32_t kAbiVersion = 1;
inline constexpr char kLibraryName[] = "libpelago_emulator.so";

/// The chip to be. Rates are those of the real chip; slowdown stretches every time.
struct Settings {
  uint32_t abi_version = kAbiVersion;
  int32_t has_bf16 = 0;
  char chip[64] = {};                // what error messages call it
  double memory_bytes = 0;           // more than this at once is out of memory
  double gemm_16bit_flop_s = 0;      // bf16 and fp16 matmuls
  double gemm_32bit_flop_s = 0;      // f32 matmuls
  double memory_bytes_per_s = 0;     // the chip's own memory
  double host_link_bytes_per_s = 0;  // copies from and to the host
  double launch_s = 0;               // added to every operator
  double slowdown = 1;
};

/// Figures since open or the last reset; DeviceStats of chips/device.h says what each means.
struct Stats {
  double device_busy_s = 0;
  double host_busy_s = 0;
  double late_s = 0;
  double slept_s = 0;
  double flops = 0;
  int64_t peak_bytes = 0;
  int64_t used_bytes = 0;
};

/// What open answers.
enum OpenAnswer : int32_t {
  kOpened = 0,
  kOtherAbi = 1,     // built from another version of this header
  kAlreadyOpen = 2,  // a process drives one chip at a time
};

using OpenFunction = int32_t (*)(const Settings*);
using CloseFunction = void (*)();
using SynchronizeFunction = void (*)();
using StatsFunction = void (*)(Stats*);
using ResetStatsFunction = void (*)();

inline constexpr char kOpenSymbol[] = "pelago_emulator_open";
inline constexpr char kCloseSymbol[] = "pelago_emulator_close";
inline constexpr char kSynchronizeSymbol[] = "pelago_emulator_synchronize";
inline constexpr char kStatsSymbol[] = "pelago_emulator_stats";
inline constexpr char kResetStatsSymbol[] = "pelago_emulator_reset_stats";

}  // namespace pelago::emulator
