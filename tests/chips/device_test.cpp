#include "chips/device.h"

#include <doctest/doctest.h>

#include "base/error.h"
#include "chips/chips_support.h"
#include "chips/cpu/device.h"
#include "chips/cuda_shaped/device.h"
#include "chips/torch.h"
#include "chips/vendor/trial.h"

namespace pelago::chips {
namespace {

struct Refusal {
  std::string message;
  int exit_code = 0;
};

Refusal refusal_of(const std::string& name, const EmulationOptions& options = {}) {
  const Catalogue catalogue = Catalogue::built_in();
  try {
    open_device(name, catalogue, options);
  } catch (const Failure& failure) {
    return {failure.what(), failure.exit_code()};
  }
  return {};
}

TEST_CASE("the cpu is a device with memory and a dtype that it has instructions for") {
  const Catalogue catalogue = Catalogue::built_in();
  const auto device = open_device("cpu", catalogue);
  CHECK(device->name() == "cpu");
  CHECK(device->chip() == nullptr);
  CHECK(device->torch_device().is_cpu());
  CHECK(device->memory_bytes() > 1'000'000);
  CHECK(device->stats().peak_bytes > 0);
  CHECK((device->training_dtype() == (cpu_has_bf16() ? at::kBFloat16 : at::kFloat)));
}

TEST_CASE("a device string that means nothing is wrong usage") {
  for (const char* name : {"", "gpu", "cuda:x", "cpu:-1", "emulated", "emulated:", ":0"}) {
    CAPTURE(name);
    CHECK(refusal_of(name).exit_code == kExitUsage);
  }
  CHECK(has(refusal_of("emulated:a1000").message, "did you mean a100?"));
}

TEST_CASE("cuda without cuda says what is missing") {
  if (num_cuda_devices() > 0) return;
  const Refusal refusal = refusal_of("cuda:0");
  CHECK(refusal.exit_code == kExitFailed);
  CHECK(has(refusal.message, "libtorch built with CUDA"));
}

TEST_CASE("a missing emulator library is named with its place") {
  const Refusal refusal = refusal_of("emulated:a100", {.plugin_dir = "/nowhere"});
  CHECK(refusal.exit_code == kExitFailed);
  CHECK(has(refusal.message, "/nowhere/libpelago_emulator.so"));
}

TEST_CASE("a chip of which too little is known is not emulated") {
  CHECK(has(refusal_of("emulated:z100").message, "knows no bf16 or fp16 rate"));
  CHECK(has(refusal_of("emulated:ppu").message, "knows no memory bandwidth"));
  CHECK(has(refusal_of("emulated:a100", {.slowdown = 0}).message, "slowdown"));
}

TEST_CASE("chips whose vendor has no folder are refused by name") {
  const Refusal refusal = refusal_of("hpu:0");
  CHECK(refusal.exit_code == kExitFailed);
  CHECK(has(refusal.message, "Intel"));
}

TEST_CASE("bf16 on a chip without it is refused with what it has instead") {
  const Catalogue catalogue = Catalogue::built_in();
  const auto device = open_device("emulated:910a", catalogue, {.slowdown = 1});
  require_dtype(*device, at::kHalf);
  require_dtype(*device, at::kFloat);
  std::string message;
  try {
    require_dtype(*device, at::kBFloat16);
  } catch (const Failure& failure) {
    message = failure.what();
  }
  CHECK(has(message, "emulated:910a (Ascend 910"));
  CHECK(has(message, "no bf16; train it in fp16"));
}

}  // namespace
}  // namespace pelago::chips
