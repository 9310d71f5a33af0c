#include "serve/server/split_options.h"

#include <algorithm>
#include <set>

#include "base/error.h"
#include "plan/fleet.h"
#include "serve/local/devices.h"

namespace pelago::serve {

std::vector<std::string> devices_of(const std::string& list) {
  std::vector<std::string> devices;
  for (size_t begin = 0; begin <= list.size();) {
    const size_t end = std::min(list.find(',', begin), list.size());
    devices.push_back(list.substr(begin, end - begin));
    begin = end + 1;
  }
  return devices;
}

void validate_split(const ServeOptions& options) {
  if (options.prefill.empty() || options.decode.empty()) {
    fail_usage("--prefill and --decode belong together: give both");
  }
  if (options.num_workers != 0) {
    fail_usage(
        "--workers {} with --prefill: a split has a worker for each device of --decode; leave "
        "--workers out",
        options.num_workers);
  }
  if (options.engine.device != EngineOptions().device) {
    fail_usage(
        "--device {} with --prefill: --prefill and --decode say which devices there are; "
        "leave --device out",
        options.engine.device);
  }
  const std::vector<std::string> prefill = devices_of(options.prefill);
  const std::vector<std::string> decode = devices_of(options.decode);
  if (prefill.size() != decode.size()) {
    fail_usage(
        "--prefill names {} devices and --decode {}: each that writes answers has one that reads "
        "its prompts; name as many of both",
        prefill.size(),
        decode.size());
  }
  std::set<std::string> seen;
  for (size_t idx = 0; idx < decode.size(); ++idx) {
    EngineOptions pair = options.engine;
    pair.device = decode[idx];
    pair.prefill_device = prefill[idx];
    check_split(prefill[idx], decode[idx]);  // also of an empty name, which asks for no split
    pair.validate();
    for (const std::string& device : {prefill[idx], decode[idx]}) {
      if (seen.insert(device).second || plan::is_emulated(device)) continue;
      fail_usage("--prefill {} --decode {}: {} stands there twice; each device has one part",
                 options.prefill,
                 options.decode,
                 device);
    }
  }
}

}  // namespace pelago::serve
