#include "chips/device.h"

#include <doctest/doctest.h>

#include "base/error.h"
#include "chips/cpu/device.h"
#include "chips/cuda_shaped/device.h"
#include "chips/torch.h"

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

bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
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

TEST_CASE("a vendor's plug-in that is not here is named with what to install") {
  for (const auto& [device, library, package] :
       {std::tuple("npu:0", "libtorch_npu.so", "torch_npu"),
        std::tuple("mlu:1", "libtorch_mlu.so", "torch_mlu"),
        std::tuple("musa", "libmusa_python.so", "torch_musa")}) {
    const Refusal refusal = refusal_of(device);
    CAPTURE(refusal.message);
    CHECK(refusal.exit_code == kExitFailed);
    CHECK(has(refusal.message, library));
    CHECK(has(refusal.message, package));
  }
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

TEST_CASE("a driver's device name finds its chip in the catalogue") {
  const Catalogue catalogue = Catalogue::built_in();
  const auto id_of = [&](const std::string& name, double gib) {
    const Chip* chip =
        match_chip(catalogue, {.name = name, .memory_bytes = static_cast<int64_t>(gib * 0x1p30)});
    return chip == nullptr ? "none" : chip->id;
  };
  CHECK(id_of("NVIDIA A100-SXM4-80GB", 79.2) == "nvidia-a100-80g-sxm");
  CHECK(id_of("NVIDIA A100-PCIE-40GB", 39.4) == "nvidia-a100-40g-pcie");
  CHECK(id_of("NVIDIA H100 80GB HBM3", 79.1) == "nvidia-h100-sxm");
  CHECK(id_of("NVIDIA H20", 95.6) == "nvidia-h20");
  CHECK(id_of("NVIDIA GeForce RTX 4090", 23.6) == "nvidia-rtx4090");
  CHECK(id_of("Voodoo 2", 0.01) == "none");
}

}  // namespace
}  // namespace pelago::chips
