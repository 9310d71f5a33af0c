// A plug-in as vendors make them, reduced to what libtorch needs of one: it takes the slot when it
// is loaded, and every operator runs on the host through libtorch's own fallback. Whether the
// device may be used is said by the file that it is linked with, which stands for the vendor's
// runtime.
#include <ATen/EmptyTensor.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include "chips/torch.h"

/// Of the runtime it is linked with.
bool fake_is_initialised();

namespace {

constexpr c10::DispatchKeySet kKeys(c10::DispatchKey::PrivateUse1);
constexpr c10::DeviceType kType = c10::DeviceType::PrivateUse1;

struct Guard final : public c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kType; }
  c10::Device exchangeDevice(c10::Device) const override { return {kType, 0}; }
  c10::Device getDevice() const override { return {kType, 0}; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device device) const noexcept override {
    return c10::Stream(c10::Stream::DEFAULT, device);
  }
  c10::Stream exchangeStream(c10::Stream stream) const noexcept override { return stream; }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
};

class Allocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t num_bytes) const override {
    TORCH_CHECK(fake_is_initialised(), "malloc on the device failed, error code is 107002");
    c10::DataPtr host = c10::GetCPUAllocator()->allocate(num_bytes);
    void* const data = host.get();
    auto* const owner = new c10::DataPtr(std::move(host));
    return {data, owner, &free_bytes, c10::Device(kType, 0)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &free_bytes; }

 private:
  static void free_bytes(void* owner) { delete static_cast<c10::DataPtr*>(owner); }
};
Allocator allocator;

at::Tensor host_alias(const at::Tensor& tensor) {
  if (tensor.device().type() != kType) return tensor;
  return at::from_blob(tensor.data_ptr(),
                       tensor.sizes(),
                       tensor.strides(),
                       at::TensorOptions().dtype(tensor.dtype()).device(at::kCPU));
}

at::Tensor empty(at::IntArrayRef sizes,
                 c10::optional<at::ScalarType> dtype,
                 c10::optional<at::Layout>,
                 c10::optional<at::Device>,
                 c10::optional<bool>,
                 c10::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(sizes, &allocator, kKeys, c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(at::IntArrayRef sizes,
                         at::IntArrayRef strides,
                         c10::optional<at::ScalarType> dtype,
                         c10::optional<at::Layout>,
                         c10::optional<at::Device>,
                         c10::optional<bool>) {
  return at::detail::empty_strided_generic(
      sizes, strides, &allocator, kKeys, c10::dtype_or_default(dtype));
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

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool) {
  host_alias(to).copy_(host_alias(from));
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  if (from.sizes() != to.sizes()) {
    const at::Tensor fresh = at::empty(from.sizes(), to.options());
    to.unsafeGetTensorImpl()->set_storage_keep_dtype(fresh.storage());
    to.unsafeGetTensorImpl()->set_sizes_contiguous(from.sizes());
  }
  return copy_from(from, to, false);
}

void run_on_host(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  at::native::cpu_fallback(op, stack);
}

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);
REGISTER_ALLOCATOR(kType, &allocator);

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  library.impl("empty.memory_format", TORCH_FN(empty));
  library.impl("empty_strided", TORCH_FN(empty_strided));
  library.impl("as_strided", TORCH_FN(as_strided));
  library.impl("view", TORCH_FN(view));
  library.impl("_reshape_alias", TORCH_FN(reshape_alias));
  library.impl("_copy_from", TORCH_FN(copy_from));
  library.impl("_copy_from_and_resize", TORCH_FN(copy_from_and_resize));
}

TORCH_LIBRARY_IMPL(_, AutogradPrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFallthrough());
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_host>());
}

}  // namespace
