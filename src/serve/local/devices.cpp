#include "serve/local/devices.h"

#include <algorithm>
#include <set>

#include "base/error.h"
#include "base/log.h"
#include "chips/catalogue.h"
#include "plan/fleet.h"

namespace pelago::serve {

namespace {

std::string chip_name(const std::string& device) { return device.substr(device.find(':') + 1); }

bool is_all_digits(const std::string& text) {
  return !text.empty() && text.size() <= 4 &&
         std::ranges::all_of(text, [](char c) { return c >= '0' && c <= '9'; });
}

}  // namespace

void check_device(const std::string& device) {
  if (device == "cpu") return;
  const auto catalogue = chips::Catalogue::built_in();
  if (plan::is_emulated(device)) {
    catalogue.find(chip_name(device));
    return;
  }
  std::set<std::string> kinds;
  for (const chips::Chip& chip : catalogue.chips()) {
    if (!chip.torch_device.empty()) kinds.insert(chip.torch_device);
  }
  const size_t colon = device.find(':');
  if (colon != std::string::npos && kinds.contains(device.substr(0, colon)) &&
      is_all_digits(device.substr(colon + 1))) {
    return;
  }
  fail_usage("device \"{}\" is unknown: write cpu, emulated:CHIP, or KIND:NUMBER with a kind of {}",
             device,
             fmt::join(kinds, ", "));
}

void check_split(const std::string& prefill, const std::string& decode) {
  check_device(prefill);
  check_device(decode);
  // There may be any number of emulated chips of one name.
  if (prefill == decode && !plan::is_emulated(decode)) {
    fail_usage(
        "--prefill and --decode both name {}: a split takes two devices; for one that does both "
        "give --device {}",
        decode,
        decode);
  }
  if (plan::runs_on_host(prefill) != plan::runs_on_host(decode)) {
    fail_usage(
        "--prefill {} --decode {}: keys and values lie differently on processors and on "
        "accelerators; take two of either",
        prefill,
        decode);
  }
}

double emulated_memory_left_gb(const std::string& device, const model::ModelConfig& config) {
  const auto catalogue = chips::Catalogue::built_in();
  const chips::Chip& chip = catalogue.find(chip_name(device));
  const double memory_gb =
      (chip.usable_memory_gib > 0 ? chip.usable_memory_gib : 0.94 * chip.memory_gib) * 0x1p30 / 1e9;
  const double weights_gb = 2e-9 * static_cast<double>(config.num_parameters());
  if (weights_gb >= memory_gb) {
    fail_usage(
        "device {}: the model's {:.3g} GB of weights do not fit into the chip's {:.3g} GB: take a "
        "larger chip or a smaller model",
        device,
        weights_gb,
        memory_gb);
  }
  return memory_gb - weights_gb;
}

double planned_local_share(const model::ModelConfig& config,
                           const std::string& prefill,
                           const std::string& decode,
                           const plan::ServingLoad& load) {
  if (!plan::is_emulated(prefill) || !plan::is_emulated(decode)) return 0;
  const auto catalogue = chips::Catalogue::built_in();
  const std::vector<plan::ServingKind> kinds = {
      {.chip = &catalogue.find(chip_name(prefill)), .is_emulated = true},
      {.chip = &catalogue.find(chip_name(decode)), .is_emulated = true}};
  const plan::ServingPlan plan = plan::plan_serving(config, kinds, load, kSplitLinkBytesS);
  const double share = plan.local_share(1);
  if (share < 1) return share;
  log_warn("split gains nothing, each doing both is planned prefill={} decode={}", prefill, decode);
  return 0;
}

}  // namespace pelago::serve
