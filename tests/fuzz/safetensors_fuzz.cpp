// A model file from anywhere: its header decides where tensors lie.
#include "chips/torch.h"
#include "model/safetensors.h"
#include "outside_bytes.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t num_bytes) {
  const pelago::fuzz::MemoryFile file(pelago::fuzz::text_of(data, num_bytes));
  pelago::fuzz::expect_answer([&] {
    const pelago::model::SafetensorsFile model(file.path());
    for (const std::string& name : model.names()) {
      const pelago::Tensor tensor = model.tensor(name);
      if (tensor.nbytes() == 0) continue;
      // Its first and last byte lie inside the file.
      const auto* bytes = static_cast<const volatile char*>(tensor.data_ptr());
      (void)bytes[0];
      (void)bytes[tensor.nbytes() - 1];
    }
  });
  return 0;
}
