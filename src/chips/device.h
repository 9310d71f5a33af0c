// A device is opened by its string: "cpu", "cuda:0", "npu:0", or "emulated:<chip>". What stands
// above only sees a torch::Device, a training dtype and synchronize(); which vendor it is, nobody
// asks. One process opens one device: every PrivateUse1 plug-in claims the same slot.
#pragma once

#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "chips/catalogue.h"
#include "chips/emulated/faults.h"
#include "chips/tensor.h"

namespace pelago::chips {

/// How an emulated chip is paced and bounded. Without effect on real devices.
struct EmulationOptions {
  double slowdown = 1000;  // the chip runs this many times slower than the catalogue says
  std::optional<double> memory_bytes = {};  // instead of the catalogue's, for small chips in tests
  std::filesystem::path plugin_dir = {};    // of the emulator's library; empty: beside the program
  std::vector<EmulatedFault> faults = {};   // on order from the start
};

/// Figures since open or since the last reset_stats().
struct DeviceStats {
  double device_busy_s = 0;  // emulated: time the chip would have computed; real: 0
  double host_busy_s = 0;    // emulated: time the host really computed for it
  double late_s = 0;         // emulated: time by which the host failed to keep the pace
  double slept_s = 0;        // emulated: time slept to keep the pace
  double flops = 0;          // emulated: arithmetic charged
  int64_t peak_bytes = 0;    // largest memory in use at once
  int64_t used_bytes = 0;
  int64_t faults_fired = 0;  // emulated: faults on order that have happened
};

/// A point in the work given to a device; null where everything given is done at once.
using WorkMark = std::shared_ptr<void>;

/// A copy to host memory that may still be under way. Keeps the tensor that is copied alive.
class HostCopy {
 public:
  virtual ~HostCopy() = default;
  virtual bool is_done() = 0;
  /// Waits for the copy alone, not for work that the device was given later. Any thread may call
  /// it.
  virtual const Tensor& wait() = 0;  // on the host, contiguous, the shape and dtype of the original
  /// When it will be done by steady_now_s(), where the device knows; else 0.
  virtual double due_s() const { return 0; }
};

class Device {
 public:
  virtual ~Device() = default;
  virtual c10::Device torch_device() const = 0;
  virtual const std::string& name() const = 0;  // the string it was opened with
  virtual const Chip* chip() const = 0;         // null for cpu, and if the catalogue lacks it
  /// bf16 where the chip has it, else fp16 (emulated 910A), f32 on a CPU without bf16 instructions.
  virtual c10::ScalarType training_dtype() const = 0;
  /// Waits until all work given to the device is done.
  virtual void synchronize() = 0;
  virtual DeviceStats stats() const = 0;
  virtual void reset_stats() = 0;
  virtual int64_t memory_bytes() const = 0;  // that work may use; 0 if unknown

  /// Everything given to the device until now.
  virtual WorkMark mark() { return nullptr; }
  /// Begins to copy a contiguous tensor as it is at the mark (null: now); the device goes on
  /// computing meanwhile. Nobody may write to the tensor before wait() has returned.
  virtual std::unique_ptr<HostCopy> start_copy_to_host(const Tensor& tensor, const WorkMark& after);
  /// Begins to copy host memory to the device: work given later waits for it, the caller does not.
  /// arrived_s: steady_now_s() when the bytes came to the host, which an emulated chip counts from.
  /// Nobody may write to host later: on a CPU it is the result itself.
  virtual Tensor copy_to_device(const Tensor& host, double arrived_s);
  /// As copy_to_device, into a contiguous tensor of the device that no work under way uses.
  virtual void copy_into(Tensor& on_device, const Tensor& host, double arrived_s);
  /// Host memory that copies from and to the device are fastest with.
  virtual Tensor make_host_tensor(at::IntArrayRef sizes, c10::ScalarType dtype) const;

  /// The thread that gives the device its work waited for somebody else from begin_s to end_s:
  /// an emulated chip that ran dry meanwhile does not blame the host for it.
  virtual void note_host_wait([[maybe_unused]] double begin_s, [[maybe_unused]] double end_s) {}
};

/// The device keeps a pointer into the catalogue, which outlives it. One device other than cpu may
/// be open at a time. Throws Failure (exit 2) for an unknown string or chip, Failure (exit 1)
/// naming the library looked for and how to get it if a plug-in is missing. Exhausted emulated
/// memory is a c10::Error whose text names chip, size and need.
std::unique_ptr<Device> open_device(const std::string& name,
                                    const Catalogue& catalogue,
                                    const EmulationOptions& emulation = {});

}  // namespace pelago::chips
