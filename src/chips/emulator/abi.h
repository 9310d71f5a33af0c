// What crosses the border between pelago and its emulator plug-in: plain structs and C functions,
// found by name with dlsym. Neither side sees the other's classes, so the two can be built apart.
// Times are seconds of CLOCK_MONOTONIC. A function throws c10::Error once the chip is lost.
#pragma once

#include <cstdint>

namespace pelago::emulator {

/// Raised whenever a struct or function here changes; the plug-in refuses any other.
inline constexpr uint32_t kAbiVersion = 2;
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
  double host_link_bytes_per_s = 0;  // copies from and to the host, each way
  double host_link_latency_s = 0;    // added to every such copy
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
  int64_t faults_fired = 0;
};

/// What open answers.
enum OpenAnswer : int32_t {
  kOpened = 0,
  kOtherAbi = 1,     // built from another version of this header
  kAlreadyOpen = 2,  // a process drives one chip at a time
};

enum FaultKind : int32_t {
  kWrong = 0,        // the next matmul's result has one wrong element
  kStuck = 1,        // from now on nothing that was given to the chip ends
  kSlow = 2,         // from now on everything takes value times as long
  kOutOfMemory = 3,  // the operator runs out of memory
  kLost = 4,         // from now on everything throws
};

/// A fault on order. One of the three triggers is set; counts begin with the order.
struct Fault {
  int32_t kind = kWrong;
  double value = 1;              // kSlow: the factor; kWrong: value * max(1, |x|) is added to x
  int64_t after_operators = -1;  // fires at this operator, 1 being the next
  double after_s = -1;           // fires at the first operator or wait after so many seconds
  double probability = 0;        // fires at each operator by chance
  uint64_t seed = 0;             // of chance, and of which element is wrong
};

using OpenFunction = int32_t (*)(const Settings*);
using CloseFunction = void (*)();
using SynchronizeFunction = void (*)();
using StatsFunction = void (*)(Stats*);
using ResetStatsFunction = void (*)();
/// When the work given so far would be done.
using MarkFunction = double (*)();
/// Charge a copy of so many bytes, which the caller makes itself, and return its end. A copy to the
/// host begins at the mark; one to the chip when the bytes had arrived at the host.
using CopyToHostFunction = double (*)(double mark_s, int64_t num_bytes);
using CopyToChipFunction = double (*)(double arrived_s, int64_t num_bytes);
using CopyIsDoneFunction = int32_t (*)(double end_s);
using WaitForCopyFunction = void (*)(double end_s);
/// Device::note_host_wait.
using NoteHostWaitFunction = void (*)(double begin_s, double end_s);
/// For collective libraries. When the chip's links could start what is ready at *ready_s (null: all
/// work given so far); charges them from begin_s with so many seconds of the real chip and returns
/// the end, which later work waits for.
using LinkBeginFunction = double (*)(const double* ready_s);
using ChargeLinkFunction = double (*)(double begin_s, double seconds);
using OrderFaultFunction = void (*)(const Fault*);
/// Mends the chip: takes back what was ordered and lets a stuck one go on.
using ClearFaultsFunction = void (*)();

inline constexpr char kOpenSymbol[] = "pelago_emulator_open";
inline constexpr char kCloseSymbol[] = "pelago_emulator_close";
inline constexpr char kSynchronizeSymbol[] = "pelago_emulator_synchronize";
inline constexpr char kStatsSymbol[] = "pelago_emulator_stats";
inline constexpr char kResetStatsSymbol[] = "pelago_emulator_reset_stats";
inline constexpr char kMarkSymbol[] = "pelago_emulator_mark";
inline constexpr char kCopyToHostSymbol[] = "pelago_emulator_copy_to_host";
inline constexpr char kCopyToChipSymbol[] = "pelago_emulator_copy_to_chip";
inline constexpr char kCopyIsDoneSymbol[] = "pelago_emulator_copy_is_done";
inline constexpr char kWaitForCopySymbol[] = "pelago_emulator_wait_for_copy";
inline constexpr char kNoteHostWaitSymbol[] = "pelago_emulator_note_host_wait";
inline constexpr char kLinkBeginSymbol[] = "pelago_emulator_link_begin";
inline constexpr char kChargeLinkSymbol[] = "pelago_emulator_charge_link";
inline constexpr char kOrderFaultSymbol[] = "pelago_emulator_order_fault";
inline constexpr char kClearFaultsSymbol[] = "pelago_emulator_clear_faults";

}  // namespace pelago::emulator
