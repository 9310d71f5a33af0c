#include "chips/vendor/trial.h"

#include "base/error.h"
#include "chips/device.h"
#include "chips/torch.h"

namespace pelago::chips {
namespace {

std::string first_line(const std::exception& error) {
  const auto* const torch_error = dynamic_cast<const c10::Error*>(&error);
  const std::string text =
      torch_error != nullptr ? torch_error->what_without_backtrace() : error.what();
  return text.substr(0, text.find('\n'));
}

}  // namespace

void hold_a_tensor(const std::string& name, c10::Device device, const Vendor& vendor) {
  try {
    const Tensor ones = at::ones({16}, at::TensorOptions().device(device).dtype(at::kFloat));
    if ((ones + ones).cpu().equal(at::full({16}, 2.0, at::kFloat))) return;
  } catch (const std::exception& error) {  // not all of them throw libtorch's
    fail(
        "{}: the plug-in said nothing, but a first tensor fails ({}); look at what it printed "
        "above, and see that `{}` shows the device and that no other process holds it",
        name,
        first_line(error),
        vendor.tool);
  }
  fail("{}: 1 + 1 is not 2 on this device; do not use it, and see what `{}` says of it",
       name,
       vendor.tool);
}

bool computes_in_bf16(c10::Device device) {
  try {
    const auto options = at::TensorOptions().device(device).dtype(at::kBFloat16);
    const Tensor ones = at::ones({16, 16}, options);
    return at::mm(ones, ones).cpu().to(at::kFloat).equal(at::full({16, 16}, 16.0, at::kFloat));
  } catch (const std::exception&) {
    return false;
  }
}

void require_dtype(const Device& device, c10::ScalarType dtype) {
  const bool lacks_bf16 = dtype == c10::kBFloat16 && device.training_dtype() == c10::kHalf;
  if (!lacks_bf16) return;
  fail("{} ({}) has no bf16; train it in fp16 (dtype = \"auto\") or in f32",
       device.name(),
       device.chip() != nullptr ? device.chip()->name : "a chip the catalogue does not know");
}

}  // namespace pelago::chips
