#include "chips/doctor.h"

#include <functional>

#include "base/clock.h"
#include "base/error.h"
#include "chips/checks/checks.h"
#include "chips/checks/known_answer.h"
#include "chips/cuda_shaped/device.h"
#include "chips/emulated/device.h"
#include "chips/vendor/search.h"
#include "chips/vendor/vendor.h"

namespace pelago::chips {
namespace {

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
  // One process drives one plug-in: a vendor's comes before the emulator.
  for (const Vendor& vendor : all_vendors()) {
    if (!vendor.is_plugin() || !find_sign(vendor)) continue;
    devices.push_back(vendor.torch_device + ":0");
    return devices;
  }
  if (std::filesystem::exists(emulator_path({.plugin_dir = options.plugin_dir}))) {
    devices.emplace_back("emulated:a100");
  }
  return devices;
}

}  // namespace

Check check_known_answers(Device& device) {
  const std::string name = fmt::format("answers {}", device.name());
  KnownAnswerTest test(device);
  test.run();  // the first run of a process warms up its libraries
  const double start_s = steady_now_s();
  const std::vector<KnownAnswer> answers = test.run();
  const double run_s = steady_now_s() - start_s;
  const std::string fault = first_fault(answers);
  if (!fault.empty()) {
    return {.level = Check::kFail,
            .name = name,
            .text = fault,
            .remedy = "do not train on this device: its driver, library or memory is faulty"};
  }
  return {.name = name,
          .text = fmt::format(
              "matmul, softmax, sum, norm and attention are right in f32 and {} ({:.0f} ms)",
              c10::toString(device.training_dtype()),
              run_s * 1e3)};
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
  for (Check& check : checks::vendors(options)) findings.push_back(std::move(check));
  for (const std::string& device : devices_here(options)) {
    add("answers " + device, [&] { return check_device(device, options); });
  }
  return findings;
}

}  // namespace pelago::chips
