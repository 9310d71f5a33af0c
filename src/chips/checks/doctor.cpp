#include "chips/doctor.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <span>

#include "base/clock.h"
#include "base/error.h"
#include "base/rng.h"
#include "chips/checks/checks.h"
#include "chips/cuda_shaped/device.h"
#include "chips/emulated/device.h"
#include "chips/tensor.h"
#include "chips/torch.h"

namespace pelago::chips {
namespace {

// Odd sizes: kernels are most often wrong at the edges of their tiles.
constexpr int64_t kRows = 37;
constexpr int64_t kInner = 61;
constexpr int64_t kColumns = 83;

Tensor uniform(Rng& rng, at::IntArrayRef sizes) {
  Tensor values = torch::empty(sizes, at::kDouble);
  for (double& value : std::span(values.data_ptr<double>(), static_cast<size_t>(values.numel()))) {
    value = 2 * rng.next_uniform() - 1;
  }
  return values;
}

Tensor plain_matmul(const Tensor& left, const Tensor& right) {
  Tensor product = torch::zeros({kRows, kColumns}, at::kDouble);
  const auto a = left.accessor<double, 2>();
  const auto b = right.accessor<double, 2>();
  auto c = product.accessor<double, 2>();
  for (int64_t i = 0; i < kRows; ++i) {
    for (int64_t k = 0; k < kInner; ++k) {
      for (int64_t j = 0; j < kColumns; ++j) c[i][j] += a[i][k] * b[k][j];
    }
  }
  return product;
}

Tensor plain_softmax(const Tensor& values) {
  Tensor result = values.clone();
  auto rows = result.accessor<double, 2>();
  for (int64_t i = 0; i < rows.size(0); ++i) {
    double sum = 0;
    for (int64_t j = 0; j < rows.size(1); ++j) sum += rows[i][j] = std::exp(rows[i][j]);
    for (int64_t j = 0; j < rows.size(1); ++j) rows[i][j] /= sum;
  }
  return result;
}

Tensor plain_row_sums(const Tensor& values) {
  Tensor sums = torch::zeros({values.size(0)}, at::kDouble);
  const auto rows = values.accessor<double, 2>();
  for (int64_t i = 0; i < rows.size(0); ++i) {
    for (int64_t j = 0; j < rows.size(1); ++j) sums[i] += rows[i][j];
  }
  return sums;
}

/// The largest difference, or infinity if any value is not finite.
double largest_error(const Tensor& found, const Tensor& wanted) {
  const Tensor error = (found.cpu().to(at::kDouble) - wanted).abs();
  return error.isfinite().all().item<bool>() ? error.max().item<double>() : HUGE_VAL;
}

/// Returns what is wrong, or nothing.
std::string wrong_answer(Device& device, c10::ScalarType dtype) {
  Rng rng(20240229);
  // The answer is that of the rounded inputs, so that only the device's arithmetic is judged.
  const auto rounded = [&](const Tensor& values) { return values.to(dtype).to(at::kDouble); };
  const Tensor left = rounded(uniform(rng, {kRows, kInner}));
  const Tensor right = rounded(uniform(rng, {kInner, kColumns}));
  const auto on_device = [&](const Tensor& values) {
    return values.to(dtype).to(device.torch_device());
  };
  // Results lie below 16: half a unit in the last place of bf16 is 0.03 there, of fp16 0.004. f32
  // sums of 61 products are good to 61 * 2^-24 * 16, and to 1e-2 with the short inputs of TF32.
  const double tolerance = dtype == at::kFloat ? 1e-2 : 0.1;
  const Tensor product = torch::mm(on_device(left), on_device(right));
  const std::pair<const char*, double> errors[] = {
      {"matmul", largest_error(product, plain_matmul(left, right))},
      {"softmax", largest_error(on_device(right).softmax(-1), plain_softmax(right))},
      {"sum", largest_error(on_device(right).sum(1), plain_row_sums(right))},
  };
  for (const auto& [name, error] : errors) {
    if (!(error <= tolerance)) {
      return fmt::format("{} in {} is off by {:.3g}, allowed is {:.3g}",
                         name,
                         c10::toString(dtype),
                         error,
                         tolerance);
    }
  }
  return "";
}

Check check_device(const std::string& name, const DoctorOptions& options) {
  const Catalogue catalogue = Catalogue::built_in();
  const auto device =
      open_device(name, catalogue, {.slowdown = 1, .plugin_dir = options.plugin_dir});
  return check_known_answers(*device);
}

std::vector<std::string> devices_here(const DoctorOptions& options) {
  if (!options.devices.empty()) return options.devices;
  std::vector<std::string> devices = {"cpu"};
  for (int i = 0; i < num_cuda_devices(); ++i) devices.push_back(fmt::format("cuda:{}", i));
  if (std::filesystem::exists(emulator_path({.plugin_dir = options.plugin_dir}))) {
    devices.emplace_back("emulated:a100");
  }
  return devices;
}

}  // namespace

Check check_known_answers(Device& device) {
  const double start_s = steady_now_s();
  const std::string name = fmt::format("answers {}", device.name());
  std::string wrong = wrong_answer(device, at::kFloat);
  if (wrong.empty() && device.training_dtype() != at::kFloat) {
    wrong = wrong_answer(device, device.training_dtype());
  }
  if (!wrong.empty()) {
    return {.level = Check::kFail,
            .name = name,
            .text = wrong,
            .remedy = "do not train on this device: its driver, library or memory is faulty"};
  }
  return {.name = name,
          .text = fmt::format("matmul, softmax and sum are right in f32 and {} ({:.0f} ms)",
                              c10::toString(device.training_dtype()),
                              (steady_now_s() - start_s) * 1e3)};
}

std::vector<Check> examine_machine(const DoctorOptions& options) {
  std::vector<Check> findings;
  const auto add = [&](const std::string& name, const std::function<Check()>& examine) {
    try {
      findings.push_back(examine());
    } catch (const std::exception& error) {
      const std::string reason = error.what();
      findings.push_back({.level = Check::kFail,
                          .name = name,
                          .text = reason.substr(0, reason.find('\n')),
                          .remedy = "mend this, or leave it out of the fleet"});
    }
  };
  add("cpu", [] { return checks::cpu_instructions(); });
  add("cores", [] { return checks::cores(); });
  add("memory", [] { return checks::memory(); });
  add("clocks", [] { return checks::clocks(); });
  add("disk", [&] { return checks::disk(options.work_dir); });
  add("port", [&] { return checks::port(options.port); });
  add("blas", [] { return checks::blas(); });
  add("bf16", [] { return checks::bf16_matmul(); });
  add("cuda", [] { return checks::cuda_devices(); });
  add("emulator", [&] { return checks::emulator_plugin(options); });
  for (Check& check : checks::vendor_plugins(Catalogue::built_in())) {
    findings.push_back(std::move(check));
  }
  for (const std::string& device : devices_here(options)) {
    add("answers " + device, [&] { return check_device(device, options); });
  }
  return findings;
}

}  // namespace pelago::chips
