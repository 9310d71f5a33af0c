#include "chips/emulator/memory.h"

#include <c10/core/CPUAllocator.h>

#include <memory>

#include "chips/emulator/machine.h"
#include "chips/torch.h"

namespace pelago::emulator {
namespace {

constexpr c10::DispatchKeySet kChipKeys(c10::DispatchKey::PrivateUse1);
constexpr c10::DispatchKeySet kHostKeys(c10::DispatchKey::CPU);

/// Bytes on loan from the machine; the destructor gives them back.
struct Block {
  Block(c10::Storage host_storage, int64_t bytes)
      : host(std::move(host_storage)), num_bytes(bytes) {}
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  ~Block() { machine().give_back_bytes(num_bytes); }

  c10::Storage host;
  int64_t num_bytes;
};

void free_block(void* block) { delete static_cast<Block*>(block); }

c10::DataPtr pointer_to(std::unique_ptr<Block> block) {
  void* const bytes = block->host.data();
  return {bytes, block.release(), &free_block, chip_device()};
}

Block& block_of(const c10::Storage& storage) {
  TORCH_CHECK(storage.data_ptr().get_deleter() == &free_block,
              "a tensor of the emulated chip has memory that the emulator did not give out");
  return *static_cast<Block*>(storage.data_ptr().get_context());
}

class ChipAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t num_bytes) const override {
    machine().take_bytes(static_cast<int64_t>(num_bytes));
    auto block = std::make_unique<Block>(c10::Storage(), static_cast<int64_t>(num_bytes));
    block->host = c10::Storage(c10::Storage::use_byte_size_t(),
                               static_cast<int64_t>(num_bytes),
                               c10::GetCPUAllocator(),
                               /*resizable=*/true);
    return pointer_to(std::move(block));
  }
  c10::DeleterFnPtr raw_deleter() const override { return &free_block; }
};

at::Tensor tensor_over(c10::Storage storage, c10::DispatchKeySet keys, const at::Tensor& like) {
  at::Tensor tensor =
      at::detail::make_tensor<c10::TensorImpl>(std::move(storage), keys, like.dtype());
  tensor.unsafeGetTensorImpl()->set_sizes_and_strides(
      like.sizes(), like.strides(), like.storage_offset());
  return tensor;
}

}  // namespace

c10::Allocator* chip_allocator() {
  static ChipAllocator allocator;
  return &allocator;
}

at::Tensor host_alias(const at::Tensor& on_chip) {
  at::Tensor host = tensor_over(block_of(on_chip.storage()).host, kHostKeys, on_chip);
  // A Python-like number keeps its low priority in type promotion.
  if (on_chip.unsafeGetTensorImpl()->is_wrapped_number()) {
    host.unsafeGetTensorImpl()->set_wrapped_number(true);
  }
  return host;
}

at::Tensor adopt(const at::Tensor& host) {
  TORCH_CHECK(host.layout() == at::kStrided, "the emulated chip has dense tensors only");
  machine().check_dtype(host.scalar_type());
  const auto num_bytes = static_cast<int64_t>(host.storage().nbytes());
  machine().take_bytes(num_bytes);
  c10::Storage storage(c10::Storage::use_byte_size_t(),
                       num_bytes,
                       pointer_to(std::make_unique<Block>(host.storage(), num_bytes)),
                       chip_allocator(),
                       /*resizable=*/true);
  return tensor_over(std::move(storage), kChipKeys, host);
}

at::Tensor view_like(const at::Tensor& base, const at::Tensor& host) {
  machine().check_dtype(host.scalar_type());
  return tensor_over(base.storage(), kChipKeys, host);
}

void follow_host(const at::Tensor& on_chip, const at::Tensor& host) {
  const c10::Storage& storage = on_chip.storage();
  Block& block = block_of(storage);
  const auto num_bytes = static_cast<int64_t>(block.host.nbytes());
  if (num_bytes != block.num_bytes || block.host.data() != storage.data()) {
    machine().take_bytes(num_bytes - block.num_bytes);
    block.num_bytes = num_bytes;
    c10::StorageImpl* const impl = storage.unsafeGetStorageImpl();
    impl->data_ptr().release_context();  // the block goes over to the new pointer
    impl->set_data_ptr_noswap({block.host.data(), &block, &free_block, chip_device()});
    impl->set_nbytes(static_cast<size_t>(num_bytes));
  }
  if (on_chip.sizes() != host.sizes() || on_chip.strides() != host.strides()) {
    on_chip.unsafeGetTensorImpl()->set_sizes_and_strides(
        host.sizes(), host.strides(), host.storage_offset());
  }
}

}  // namespace pelago::emulator
