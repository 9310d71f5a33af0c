#include "chips/cuda_shaped/device.h"

#include <dlfcn.h>
#include <torch/cuda.h>

#include <array>
#include <cctype>
#include <cmath>
#include <limits>
#include <optional>
#include <vector>

#include "base/error.h"

namespace pelago::chips {
namespace {

class Cuda final : public Device {
 public:
  Cuda(std::string name, int device_idx, const Catalogue& catalogue)
      : name_(std::move(name)),
        device_idx_(device_idx),
        properties_(read_cuda_properties(device_idx)),
        chip_(copy_of(match_chip(catalogue, properties_))) {}

  c10::Device torch_device() const override {
    return {c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(device_idx_)};
  }
  const std::string& name() const override { return name_; }
  const Chip* chip() const override { return chip_ ? &*chip_ : nullptr; }
  /// bf16 came with compute capability 8.0.
  c10::ScalarType training_dtype() const override {
    return properties_.compute_major >= 8 ? c10::kBFloat16 : c10::kHalf;
  }
  void synchronize() override { torch::cuda::synchronize(device_idx_); }
  DeviceStats stats() const override { return {}; }
  void reset_stats() override {}
  int64_t memory_bytes() const override { return properties_.memory_bytes; }

 private:
  static std::optional<Chip> copy_of(const Chip* chip) {
    return chip == nullptr ? std::nullopt : std::optional<Chip>(*chip);
  }

  std::string name_;
  int device_idx_;
  CudaProperties properties_;
  const std::optional<Chip> chip_;  // a copy: a caller may drop the catalogue; empty if unknown
};

/// "NVIDIA A100-SXM4-80GB" -> {"nvidia", "a100", "sxm4", "80gb"}.
std::vector<std::string> words_of(const std::string& text) {
  std::vector<std::string> words(1);
  for (const char letter : text) {
    if (std::isalnum(static_cast<unsigned char>(letter)) != 0) {
      words.back() += static_cast<char>(std::tolower(static_cast<unsigned char>(letter)));
    } else if (!words.back().empty()) {
      words.emplace_back();
    }
  }
  if (words.back().empty()) words.pop_back();
  return words;
}

bool contains(const std::vector<std::string>& words, const std::string& wanted) {
  for (const std::string& word : words) {
    if (word == wanted) return true;
  }
  return false;
}

}  // namespace

int num_cuda_devices() {
  return torch::cuda::is_available() ? static_cast<int>(torch::cuda::device_count()) : 0;
}

std::unique_ptr<Device> open_cuda(const std::string& name,
                                  int device_idx,
                                  const Catalogue& catalogue) {
  const int num_devices = num_cuda_devices();
  if (num_devices == 0) {
    fail(
        "{}: this libtorch sees no CUDA device; it needs a libtorch built with CUDA "
        "(libtorch_cuda.so) and a driver that works",
        name);
  }
  if (device_idx >= num_devices) {
    fail_usage("{}: this machine has {} CUDA devices, counted from 0", name, num_devices);
  }
  return std::make_unique<Cuda>(name, device_idx, catalogue);
}

CudaProperties read_cuda_properties(int device_idx) {
  CudaProperties properties;
  void* const driver = dlopen("libcuda.so.1", RTLD_NOW);  // stays open: libtorch uses it too
  if (driver == nullptr) return properties;
  const auto find = [&]<typename Function>(Function*& function, const char* symbol) {
    function = reinterpret_cast<Function*>(dlsym(driver, symbol));
    return function != nullptr;
  };
  int (*initialise)(unsigned) = nullptr;
  int (*get_device)(int*, int) = nullptr;
  int (*get_name)(char*, int, int) = nullptr;
  int (*get_memory)(size_t*, int) = nullptr;
  int (*get_attribute)(int*, int, int) = nullptr;
  if (!find(initialise, "cuInit") || !find(get_device, "cuDeviceGet") ||
      !find(get_name, "cuDeviceGetName") || !find(get_memory, "cuDeviceTotalMem_v2") ||
      !find(get_attribute, "cuDeviceGetAttribute")) {
    return properties;
  }
  int device = 0;
  if (initialise(0) != 0 || get_device(&device, device_idx) != 0) return properties;
  std::array<char, 256> name{};
  if (get_name(name.data(), static_cast<int>(name.size()) - 1, device) == 0) {
    properties.name = name.data();
  }
  size_t num_bytes = 0;
  if (get_memory(&num_bytes, device) == 0) {
    properties.memory_bytes = static_cast<int64_t>(num_bytes);
  }
  constexpr int kComputeCapabilityMajor = 75;  // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
  get_attribute(&properties.compute_major, kComputeCapabilityMajor, device);
  return properties;
}

const Chip* match_chip(const Catalogue& catalogue, const CudaProperties& properties) {
  const std::vector<std::string> words = words_of(properties.name);
  const double memory_gib = static_cast<double>(properties.memory_bytes) / 0x1p30;
  const Chip* best = nullptr;
  double best_distance = std::numeric_limits<double>::max();
  for (const Chip& chip : catalogue.chips()) {
    const std::vector<std::string> model = words_of(chip.name);
    bool all_found = chip.torch_device == "cuda" && !model.empty();
    for (const std::string& word : model) {
      // Size and form do not name a model; they only choose between its variants, below.
      const bool names_variant = word.ends_with("gb") || word == "sxm" || word == "pcie";
      all_found = all_found && (names_variant || contains(words, word));
    }
    if (!all_found) continue;
    const bool other_form = chip.form.starts_with("PCI") != contains(words, "pcie");
    const double distance = std::abs(memory_gib - chip.memory_gib) + (other_form ? 0.5 : 0.0);
    if (distance < best_distance) {
      best_distance = distance;
      best = &chip;
    }
  }
  return best;
}

}  // namespace pelago::chips
