#include "chips/vendor/driver.h"

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>
#include <limits>

namespace pelago::chips {
namespace {

void* open_first(const std::vector<std::string>& libraries) {
  for (const std::string& library : libraries) {
    void* const opened = dlopen(library.c_str(), RTLD_NOW);  // stays open: libtorch uses it too
    if (opened != nullptr) return opened;
  }
  return nullptr;
}

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
  return std::ranges::find(words, wanted) != words.end();
}

/// The words of a driver's name. Some drivers glue a brand to its model: "Ascend910B2" is also an
/// Ascend and a 910B2.
std::vector<std::string> driver_words(const std::string& name) {
  constexpr size_t kShortestBrand = 3;  // the A of A100 and the RTX of RTX4090 differ in this
  std::vector<std::string> words = words_of(name);
  for (size_t i = words.size(); i-- > 0;) {
    const size_t first_digit = words[i].find_first_of("0123456789");
    if (first_digit == std::string::npos || first_digit < kShortestBrand) continue;
    words.push_back(words[i].substr(0, first_digit));
    words.push_back(words[i].substr(first_digit));
  }
  return words;
}

/// Whether all that the catalogue calls the chip, what stands in parentheses aside, or one of its
/// short names, is among the words.
bool fits(const Chip& chip, const std::vector<std::string>& words) {
  for (const std::string& alias : chip.aliases) {
    if (contains(words, alias)) return true;
  }
  const std::vector<std::string> model = words_of(chip.name.substr(0, chip.name.find('(')));
  return !model.empty() && std::ranges::all_of(model, [&](const std::string& word) {
    // Size and form do not name a model; they only choose between its variants.
    const bool names_variant = word.ends_with("gb") || word == "sxm" || word == "pcie";
    return names_variant || contains(words, word);
  });
}

}  // namespace

DeviceProperties read_driver(const DriverNames& names, int device_idx) {
  DeviceProperties properties;
  void* const driver = open_first(names.libraries);
  if (driver == nullptr) return properties;
  const auto find = [&]<typename Function>(Function*& function, const char* symbol) {
    function = symbol == nullptr ? nullptr : reinterpret_cast<Function*>(dlsym(driver, symbol));
    return function != nullptr;
  };
  int (*initialise)(unsigned) = nullptr;
  int (*get_device)(int*, int) = nullptr;
  int (*get_name)(char*, int, int) = nullptr;
  int (*get_memory)(size_t*, int) = nullptr;
  int (*get_attribute)(int*, int, int) = nullptr;
  int device = 0;
  if (!find(initialise, names.initialise) || initialise(0) != 0 ||
      !find(get_device, names.get_device) || get_device(&device, device_idx) != 0) {
    return properties;
  }
  std::array<char, 256> name{};
  if (find(get_name, names.get_name) &&
      get_name(name.data(), static_cast<int>(name.size()) - 1, device) == 0) {
    properties.name = name.data();
  }
  size_t num_bytes = 0;
  if (find(get_memory, names.get_memory) && get_memory(&num_bytes, device) == 0) {
    properties.memory_bytes = static_cast<int64_t>(num_bytes);
  }
  if (names.compute_major_attribute != 0 && find(get_attribute, names.get_attribute)) {
    get_attribute(&properties.compute_major, names.compute_major_attribute, device);
  }
  return properties;
}

const Chip* match_chip(const Catalogue& catalogue,
                       std::string_view torch_device,
                       const DeviceProperties& properties) {
  const std::vector<std::string> words = driver_words(properties.name);
  const double memory_gib = static_cast<double>(properties.memory_bytes) / 0x1p30;
  const Chip* best = nullptr;
  double best_distance = std::numeric_limits<double>::max();
  for (const Chip& chip : catalogue.chips()) {
    if (chip.torch_device != torch_device || !fits(chip, words)) continue;
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
