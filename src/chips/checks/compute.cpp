#include <dlfcn.h>
#include <torch/version.h>

#include <algorithm>
#include <set>

#include "base/clock.h"
#include "base/error.h"
#include "chips/checks/checks.h"
#include "chips/cpu/device.h"
#include "chips/cuda_shaped/device.h"
#include "chips/emulated/device.h"
#include "chips/tensor.h"
#include "chips/torch.h"

namespace pelago::chips::checks {
namespace {

/// The best of a few square matmuls, GFLOP/s. At most about half a second.
double measure_matmul_gflops(int64_t size, c10::ScalarType dtype) {
  const Tensor x = torch::ones({size, size}, dtype);
  const double flops = 2.0 * static_cast<double>(size * size * size);
  double best_s = 1e9;
  const double start_s = steady_now_s();
  for (int i = 0; i < 5 && steady_now_s() - start_s < 0.5; ++i) {
    const double begin_s = steady_now_s();
    torch::mm(x, x);
    best_s = std::min(best_s, steady_now_s() - begin_s);
  }
  return flops / best_s / 1e9;
}

/// Where the loader would find a library. Loading it to see would take libtorch's slot.
std::optional<std::filesystem::path> find_library(const std::string& library) {
  void* const program = dlopen(nullptr, RTLD_LAZY);
  Dl_serinfo size{};
  if (program == nullptr || dlinfo(program, RTLD_DI_SERINFOSIZE, &size) != 0) return {};
  std::vector<std::byte> storage(size.dls_size);
  auto* const dirs = reinterpret_cast<Dl_serinfo*>(storage.data());
  *dirs = size;
  if (dlinfo(program, RTLD_DI_SERINFO, dirs) != 0) return {};
  for (unsigned i = 0; i < dirs->dls_cnt; ++i) {
    const auto path = std::filesystem::path(dirs->dls_serpath[i].dls_name) / library;
    std::error_code error;
    if (std::filesystem::exists(path, error)) return path;
  }
  return {};
}

}  // namespace

Check blas() {
  // The reference BLAS reaches 6 GFLOP/s a core, OpenBLAS 100 to 200, on processors of 2020 on.
  constexpr double kSlowGflops = 15;
  const double gflops = measure_matmul_gflops(384, at::kFloat);
  Check check{.name = "blas",
              .text = fmt::format("libtorch {}.{}.{}, f32 matmul {:.0f} GFLOP/s on {} threads",
                                  TORCH_VERSION_MAJOR,
                                  TORCH_VERSION_MINOR,
                                  TORCH_VERSION_PATCH,
                                  gflops,
                                  torch::get_num_threads())};
  if (gflops < kSlowGflops * torch::get_num_threads()) {
    check.level = Check::kWarn;
    check.text += ": the reference BLAS, or a busy machine";
    check.remedy = "install libopenblas0-pthread (apt-get install libopenblas0-pthread)";
  }
  return check;
}

Check bf16_matmul() {
  const double gflops = measure_matmul_gflops(512, at::kBFloat16);
  Check check{.name = "bf16", .text = fmt::format("bf16 matmul {:.0f} GFLOP/s", gflops)};
  if (cpu_has_bf16() && gflops < 50) {
    check.level = Check::kWarn;
    check.text += " although the processor has bf16 instructions";
    check.remedy = "use a libtorch built with oneDNN 2.6 or later";
  }
  return check;
}

Check cuda_devices() {
  const int num_devices = num_cuda_devices();
  const CudaProperties first = read_cuda_properties(0);
  if (num_devices == 0 && !first.name.empty()) {
    return {.level = Check::kWarn,
            .name = "cuda",
            .text = fmt::format("the driver has {}, but this libtorch cannot drive it", first.name),
            .remedy = "build pelago against a libtorch with CUDA"};
  }
  std::string text = num_devices == 0 ? "no CUDA device" : "";
  for (int i = 0; i < num_devices; ++i) {
    const CudaProperties properties = read_cuda_properties(i);
    text += fmt::format("{}cuda:{} {} with {:.1f} GiB",
                        i == 0 ? "" : ", ",
                        i,
                        properties.name,
                        static_cast<double>(properties.memory_bytes) / 0x1p30);
  }
  return {.name = "cuda", .text = text};
}

Check emulator_plugin(const DoctorOptions& options) {
  const std::filesystem::path path = emulator_path({.plugin_dir = options.plugin_dir});
  if (std::filesystem::exists(path)) {
    return {.name = "emulator", .text = fmt::format("{} is here", path.string())};
  }
  return {.level = Check::kWarn,
          .name = "emulator",
          .text = fmt::format("{} is missing: no emulated chips", path.string()),
          .remedy = "build the target pelago_emulator and leave it beside the program"};
}

Findings vendor_plugins(const Catalogue& catalogue) {
  Findings findings;
  std::set<std::string> seen = {"", "cpu", "cuda"};
  for (const Chip& chip : catalogue.chips()) {
    if (!seen.insert(chip.torch_device).second) continue;
    const std::string library = chip.torch_library.substr(0, chip.torch_library.find(' '));
    if (library.find(".so") == std::string::npos) continue;
    const std::optional<std::filesystem::path> found = find_library(library);
    Check check{.name = chip.torch_device,
                .text = found ? fmt::format("{} is here", found->string())
                              : fmt::format("{} is not here", library)};
    findings.push_back(check);
  }
  return findings;
}

}  // namespace pelago::chips::checks
