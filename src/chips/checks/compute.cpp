#include <torch/version.h>

#include <algorithm>

#include "base/clock.h"
#include "base/error.h"
#include "chips/checks/checks.h"
#include "chips/cpu/device.h"
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

}  // namespace pelago::chips::checks
