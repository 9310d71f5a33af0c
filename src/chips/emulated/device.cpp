#include "chips/emulated/device.h"

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "base/error.h"
#include "base/files.h"
#include "chips/cpu/device.h"
#include "chips/emulator/abi.h"
#include "chips/links.h"
#include "chips/vendor/plugin.h"

namespace pelago::chips {
namespace {

// The gap between two operators of a full queue. Starting one on an idle chip costs 3 to 10 us, but
// a training step keeps the queue full.
constexpr double kLaunchS = 2e-6;

// Between ordering a copy and its first byte, as small copies from pinned memory take on PCIe.
constexpr double kCopyLatencyS = 5e-6;

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
  emulator::MarkFunction mark = nullptr;
  emulator::CopyToHostFunction copy_to_host = nullptr;
  emulator::CopyToChipFunction copy_to_chip = nullptr;
  emulator::CopyIsDoneFunction copy_is_done = nullptr;
  emulator::WaitForCopyFunction wait_for_copy = nullptr;
  emulator::NoteHostWaitFunction note_host_wait = nullptr;
  emulator::OrderFaultFunction order_fault = nullptr;
  emulator::ClearFaultsFunction clear_faults = nullptr;
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
  plugin.find(calls.mark, emulator::kMarkSymbol, kRemedy);
  plugin.find(calls.copy_to_host, emulator::kCopyToHostSymbol, kRemedy);
  plugin.find(calls.copy_to_chip, emulator::kCopyToChipSymbol, kRemedy);
  plugin.find(calls.copy_is_done, emulator::kCopyIsDoneSymbol, kRemedy);
  plugin.find(calls.wait_for_copy, emulator::kWaitForCopySymbol, kRemedy);
  plugin.find(calls.note_host_wait, emulator::kNoteHostWaitSymbol, kRemedy);
  plugin.find(calls.order_fault, emulator::kOrderFaultSymbol, kRemedy);
  plugin.find(calls.clear_faults, emulator::kClearFaultsSymbol, kRemedy);
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
  settings.host_link_bytes_per_s = host_bytes_per_s(chip);
  settings.host_link_latency_s = kCopyLatencyS;
  settings.launch_s = kLaunchS;
  settings.slowdown = options.slowdown;
  return settings;
}

/// The bytes are copied when the copy begins: only the clock knows that they are still on their
/// way.
class EmulatedCopy final : public HostCopy {
 public:
  EmulatedCopy(const EmulatorCalls& plugin, Tensor host, double end_s)
      : plugin_(plugin), host_(std::move(host)), end_s_(end_s) {}
  bool is_done() override { return plugin_.copy_is_done(end_s_) != 0; }
  const Tensor& wait() override {
    plugin_.wait_for_copy(end_s_);
    return host_;
  }
  double due_s() const override { return end_s_; }

 private:
  const EmulatorCalls plugin_;
  Tensor host_;
  double end_s_;
};

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
            .used_bytes = stats.used_bytes,
            .faults_fired = stats.faults_fired};
  }
  void reset_stats() override { plugin_.reset_stats(); }
  int64_t memory_bytes() const override { return memory_bytes_; }

  WorkMark mark() override { return std::make_shared<double>(plugin_.mark()); }
  std::unique_ptr<HostCopy> start_copy_to_host(const Tensor& tensor,
                                               const WorkMark& after) override {
    PELAGO_ASSERT(tensor.is_contiguous() && tensor.device() == torch_device(),
                  "tensors of the chip are copied as they lie in memory");
    const double mark_s = after ? *static_cast<const double*>(after.get()) : plugin_.mark();
    Tensor host = make_host_tensor(tensor.sizes(), tensor.scalar_type());
    copy_bytes(host, tensor);
    return std::make_unique<EmulatedCopy>(
        plugin_,
        std::move(host),
        plugin_.copy_to_host(mark_s, static_cast<int64_t>(tensor.nbytes())));
  }
  void copy_into(Tensor& on_device, const Tensor& host, double arrived_s) override {
    PELAGO_ASSERT(host.is_contiguous() && host.device().is_cpu() && on_device.is_contiguous() &&
                      on_device.device() == torch_device() && on_device.nbytes() == host.nbytes(),
                  "a copy has as many bytes on both sides");
    copy_bytes(on_device, host);
    plugin_.copy_to_chip(arrived_s, static_cast<int64_t>(host.nbytes()));
  }
  void note_host_wait(double begin_s, double end_s) override {
    plugin_.note_host_wait(begin_s, end_s);
  }

  void order(const emulator::Fault& fault) { plugin_.order_fault(&fault); }
  void clear_faults() { plugin_.clear_faults(); }

 private:
  /// The chip's memory is host memory under another name.
  static void copy_bytes(const Tensor& to, const Tensor& from) {
    if (from.nbytes() > 0) std::memcpy(to.data_ptr(), from.data_ptr(), from.nbytes());
  }

  std::string name_;
  const Chip chip_;  // a copy: a caller may open a device from a catalogue that it drops
  EmulatorCalls plugin_;
  int64_t memory_bytes_;
};

emulator::Fault order_of(const EmulatedFault& fault) {
  constexpr std::array kKinds = {std::pair(FaultKind::kWrong, emulator::kWrong),
                                 std::pair(FaultKind::kStuck, emulator::kStuck),
                                 std::pair(FaultKind::kSlow, emulator::kSlow),
                                 std::pair(FaultKind::kOutOfMemory, emulator::kOutOfMemory),
                                 std::pair(FaultKind::kLost, emulator::kLost)};
  emulator::Fault order;
  for (const auto& [ours, its] : kKinds) {
    if (ours == fault.kind) order.kind = its;
  }
  order.value = fault.value;
  order.after_operators = fault.after_operators;
  order.after_s = fault.after_s;
  order.probability = fault.probability;
  order.seed = fault.seed;
  return order;
}

EmulatedDevice& emulated(Device& device) {
  auto* const emulated_device = dynamic_cast<EmulatedDevice*>(&device);
  if (emulated_device == nullptr) {
    fail_usage("faults are ordered of emulated chips only, not of {}", device.name());
  }
  return *emulated_device;
}

}  // namespace

void order_fault(Device& device, const EmulatedFault& fault) {
  emulated(device).order(order_of(fault));
}

void clear_faults(Device& device) { emulated(device).clear_faults(); }

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
  auto device = std::make_unique<EmulatedDevice>(name, chip, plugin, settings.memory_bytes);
  for (const EmulatedFault& fault : options.faults) device->order(order_of(fault));
  return device;
}

}  // namespace pelago::chips
