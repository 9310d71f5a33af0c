#include "chips/emulated/device.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "base/files.h"
#include "chips/cpu/device.h"
#include "chips/emulator/abi.h"
#include "chips/vendor/plugin.h"

namespace pelago::chips {
namespace {

// The gap between two operators of a full queue. Starting one on an idle chip costs 3 to 10 us, but
// a training step keeps the queue full.
constexpr double kLaunchS = 2e-6;

// f32 matmuls where no figure is published. Elsewhere in the catalogue f32 has 1/4 (910B, MLU370)
// to 1/16 (A100) of the 16-bit peak.
constexpr double kF32ShareOf16Bit = 1.0 / 8;

/// The functions of the loaded plug-in.
struct EmulatorCalls {
  emulator::OpenFunction open = nullptr;
  emulator::CloseFunction close = nullptr;
  emulator::SynchronizeFunction synchronize = nullptr;
  emulator::StatsFunction stats = nullptr;
  emulator::ResetStatsFunction reset_stats = nullptr;
};

EmulatorCalls load_emulator(const std::string& name, const std::filesystem::path& path) {
  const Plugin plugin(
      {.who = name,
       .file = path,
       .remedy = "build the target pelago_emulator and leave it beside the program"});
  constexpr char kRemedy[] = "build it anew";
  EmulatorCalls calls;
  plugin.find(calls.open, emulator::kOpenSymbol, kRemedy);
  plugin.find(calls.close, emulator::kCloseSymbol, kRemedy);
  plugin.find(calls.synchronize, emulator::kSynchronizeSymbol, kRemedy);
  plugin.find(calls.stats, emulator::kStatsSymbol, kRemedy);
  plugin.find(calls.reset_stats, emulator::kResetStatsSymbol, kRemedy);
  return calls;
}

emulator::Settings settings_for(const Chip& chip, const EmulationOptions& options) {
  const double gemm_flop_s = chip.training_gemm_tflops() * 1e12;
  const double memory_bytes = options.memory_bytes.value_or(chip.usable_memory_gib * 0x1p30);
  const char* missing = gemm_flop_s <= 0        ? "bf16 or fp16 rate"
                        : chip.memory_gb_s <= 0 ? "memory bandwidth"
                        : memory_bytes <= 0     ? "memory size"
                                                : nullptr;
  if (missing != nullptr) {
    fail_usage("{} cannot be emulated: the catalogue knows no {} of it", chip.id, missing);
  }
  if (!(options.slowdown > 0)) {
    fail_usage("emulated {}: slowdown {} must be above 0", chip.id, options.slowdown);
  }
  emulator::Settings settings;
  settings.has_bf16 = chip.has_bf16 ? 1 : 0;
  const size_t length = std::min(chip.id.size(), sizeof settings.chip - 1);
  std::memcpy(settings.chip, chip.id.data(), length);
  settings.memory_bytes = memory_bytes;
  settings.gemm_16bit_flop_s = gemm_flop_s;
  settings.gemm_32bit_flop_s =
      chip.fp32_tflops ? *chip.fp32_tflops * 1e12 : kF32ShareOf16Bit * gemm_flop_s;
  settings.memory_bytes_per_s = chip.memory_gb_s * 1e9;
  // Reductions are staged through the host here; on the chip they would use its own links while it
  // computes. Until the emulator knows those links, such a copy is charged as memory traffic.
  settings.host_link_bytes_per_s = settings.memory_bytes_per_s;
  settings.launch_s = kLaunchS;
  settings.slowdown = options.slowdown;
  return settings;
}

class EmulatedDevice final : public Device {
 public:
  EmulatedDevice(std::string name,
                 const Chip& chip,
                 const EmulatorCalls& plugin,
                 double memory_bytes)
      : name_(std::move(name)),
        chip_(chip),
        plugin_(plugin),
        memory_bytes_(static_cast<int64_t>(memory_bytes)) {}
  EmulatedDevice(const EmulatedDevice&) = delete;
  EmulatedDevice& operator=(const EmulatedDevice&) = delete;
  ~EmulatedDevice() override { plugin_.close(); }

  c10::Device torch_device() const override { return {c10::DeviceType::PrivateUse1, 0}; }
  const std::string& name() const override { return name_; }
  const Chip* chip() const override { return &chip_; }
  c10::ScalarType training_dtype() const override {
    return chip_.has_bf16 ? c10::kBFloat16 : c10::kHalf;
  }
  void synchronize() override { plugin_.synchronize(); }
  DeviceStats stats() const override {
    emulator::Stats stats;
    plugin_.stats(&stats);
    return {.device_busy_s = stats.device_busy_s,
            .host_busy_s = stats.host_busy_s,
            .late_s = stats.late_s,
            .slept_s = stats.slept_s,
            .flops = stats.flops,
            .peak_bytes = stats.peak_bytes,
            .used_bytes = stats.used_bytes};
  }
  void reset_stats() override { plugin_.reset_stats(); }
  int64_t memory_bytes() const override { return memory_bytes_; }

 private:
  std::string name_;
  const Chip chip_;  // a copy: a caller may open a device from a catalogue that it drops
  EmulatorCalls plugin_;
  int64_t memory_bytes_;
};

}  // namespace

std::filesystem::path emulator_path(const EmulationOptions& options) {
  const std::filesystem::path dir =
      options.plugin_dir.empty() ? program_path().parent_path() : options.plugin_dir;
  return dir / emulator::kLibraryName;
}

std::unique_ptr<Device> open_emulated(const std::string& name,
                                      const Chip& chip,
                                      const EmulationOptions& options) {
  const emulator::Settings settings = settings_for(chip, options);
  const std::filesystem::path path = emulator_path(options);
  const EmulatorCalls plugin = load_emulator(name, path);
  keep_freed_memory();
  switch (plugin.open(&settings)) {
    case emulator::kOpened:
      break;
    case emulator::kAlreadyOpen:
      fail("{} cannot be opened: this process has an emulated chip open; one process drives one",
           name);
    default:
      fail("{} is of another version than this program; build both anew", path.string());
  }
  return std::make_unique<EmulatedDevice>(name, chip, plugin, settings.memory_bytes);
}

}  // namespace pelago::chips
