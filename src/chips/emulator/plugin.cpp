// The back end as libtorch sees it: a device guard, an allocator, the few operators that make
// tensors, and one boxed fallback for all others. And as pelago sees it: the C functions of abi.h.
// Everything registers itself when the library is loaded, as vendors' plug-ins do.
#include <ATen/EmptyTensor.h>
#include <ATen/native/Resize.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <mutex>

#include "chips/emulator/abi.h"
#include "chips/emulator/machine.h"
#include "chips/emulator/memory.h"
#include "chips/emulator/ops/host_call.h"
#include "chips/torch.h"
#include "chips/torch_compat.h"

namespace pelago::emulator {
namespace {

constexpr c10::DispatchKeySet kChipKeys(c10::DispatchKey::PrivateUse1);

/// One device, one stream.
struct ChipGuard final : public c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return chip_device().type(); }
  c10::Device exchangeDevice(c10::Device) const override { return chip_device(); }
  c10::Device getDevice() const override { return chip_device(); }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const noexcept override {
    return c10::Stream(c10::Stream::DEFAULT, chip_device());
  }
  c10::Stream exchangeStream(c10::Stream) const noexcept override {
    return c10::Stream(c10::Stream::DEFAULT, chip_device());
  }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override { machine().synchronize(); }
};

C10_REGISTER_GUARD_IMPL(PrivateUse1, ChipGuard);
REGISTER_ALLOCATOR(c10::DeviceType::PrivateUse1, chip_allocator());

at::Tensor empty(at::IntArrayRef sizes,
                 c10::optional<at::ScalarType> dtype,
                 c10::optional<at::Layout>,
                 c10::optional<at::Device>,
                 c10::optional<bool>,
                 c10::optional<at::MemoryFormat> format) {
  const at::ScalarType chosen = c10::dtype_or_default(dtype);
  machine().check_dtype(chosen);
  return at::detail::empty_generic(sizes, chip_allocator(), kChipKeys, chosen, format);
}

at::Tensor empty_strided(at::IntArrayRef sizes,
                         at::IntArrayRef strides,
                         c10::optional<at::ScalarType> dtype,
                         c10::optional<at::Layout>,
                         c10::optional<at::Device>,
                         c10::optional<bool>) {
  const at::ScalarType chosen = c10::dtype_or_default(dtype);
  machine().check_dtype(chosen);
  return at::detail::empty_strided_generic(sizes, strides, chip_allocator(), kChipKeys, chosen);
}

at::Tensor as_strided(const at::Tensor& self,
                      at::IntArrayRef sizes,
                      at::IntArrayRef strides,
                      c10::optional<int64_t> offset) {
  return at::native::as_strided_tensorimpl(self, sizes, strides, offset);
}

at::Tensor view(const at::Tensor& self, at::IntArrayRef sizes) {
  return at::native::view(self, sizes);
}

at::Tensor reshape_alias(const at::Tensor& self, at::IntArrayRef sizes, at::IntArrayRef strides) {
  return at::native::_reshape_alias(self, sizes, strides);
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  library.impl("empty.memory_format", TORCH_FN(empty));
  library.impl("empty_strided", TORCH_FN(empty_strided));
  library.impl("as_strided", TORCH_FN(as_strided));
  library.impl("view", TORCH_FN(view));
  library.impl("_reshape_alias", TORCH_FN(reshape_alias));
  library.impl("_copy_from", TORCH_FN(copy_between));
}

// libtorch 1.13 has no autograd fallback for this slot (2.x has): operators without a derivative of
// their own, pelago's among them, pass through to the kernel.
TORCH_LIBRARY_IMPL(_, AutogradPrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFallthrough());
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_host>());
}

/// Operators that libtorch, or pelago, can compose of others where a chip lacks a kernel. This chip
/// runs them as one operator each, as a chip with kernels of its own would.
void register_operators(const std::string& name_space, c10::DispatchKey composite) {
  auto* const library = new torch::Library(  // registrations last as long as the process
      torch::Library::IMPL,
      name_space,
      c10::DispatchKey::PrivateUse1,
      __FILE__,
      __LINE__);
  for (const c10::OperatorName& name : c10::Dispatcher::singleton().getAllOpNames()) {
    if (name.name.rfind(name_space + "::", 0) != 0) continue;
    const auto op = c10::Dispatcher::singleton().findSchema(name);
    if (!op || op->hasKernelForDispatchKey(c10::DispatchKey::PrivateUse1)) continue;
    const bool has_host_kernel =
        op->hasKernelForDispatchKey(c10::DispatchKey::CPU) || name_space == "pelago";
    if (!has_host_kernel || !op->hasKernelForDispatchKey(composite)) continue;
    const std::string full =
        name.overload_name.empty() ? name.name : name.name + "." + name.overload_name;
    library->impl(full.c_str(), torch::CppFunction::makeFromBoxedFunction<&run_on_host>());
  }
}

void register_all_operators() {
  static std::once_flag once;
  std::call_once(once, [] {
    register_operators("aten", c10::DispatchKey::CompositeImplicitAutograd);
    register_operators("pelago", c10::DispatchKey::CompositeExplicitAutograd);
  });
}

[[maybe_unused]] const bool kIsNamed = (chips::name_private_backend("emulated"), true);

}  // namespace
}  // namespace pelago::emulator

extern "C" {

int32_t pelago_emulator_open(const pelago::emulator::Settings* settings) {
  const int32_t answer = pelago::emulator::machine().open(*settings);
  if (answer == pelago::emulator::kOpened) pelago::emulator::register_all_operators();
  return answer;
}

void pelago_emulator_close() { pelago::emulator::machine().close(); }

void pelago_emulator_synchronize() { pelago::emulator::machine().synchronize(); }

void pelago_emulator_stats(pelago::emulator::Stats* stats) {
  *stats = pelago::emulator::machine().stats();
}

void pelago_emulator_reset_stats() { pelago::emulator::machine().reset_stats(); }

double pelago_emulator_mark() { return pelago::emulator::machine().mark(); }

double pelago_emulator_copy_to_host(double mark_s, int64_t num_bytes) {
  return pelago::emulator::machine().copy_to_host(mark_s, num_bytes);
}

double pelago_emulator_copy_to_chip(double arrived_s, int64_t num_bytes) {
  return pelago::emulator::machine().copy_to_chip(arrived_s, num_bytes);
}

int32_t pelago_emulator_copy_is_done(double end_s) {
  return pelago::emulator::machine().copy_is_done(end_s) ? 1 : 0;
}

void pelago_emulator_wait_for_copy(double end_s) {
  pelago::emulator::machine().wait_for_copy(end_s);
}

void pelago_emulator_note_host_wait(double begin_s, double end_s) {
  pelago::emulator::machine().note_host_wait(begin_s, end_s);
}

double pelago_emulator_link_begin(const double* ready_s) {
  return pelago::emulator::machine().link_begin(ready_s);
}

double pelago_emulator_charge_link(double begin_s, double seconds) {
  return pelago::emulator::machine().charge_link(begin_s, seconds);
}

void pelago_emulator_order_fault(const pelago::emulator::Fault* fault) {
  pelago::emulator::machine().order_fault(*fault);
}

void pelago_emulator_clear_faults() { pelago::emulator::machine().clear_faults(); }

}  // extern "C"
