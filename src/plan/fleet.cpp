#include "plan/fleet.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <string_view>

#include "base/error.h"
#include "base/threads.h"

namespace pelago::plan {

namespace {

constexpr std::string_view kEmulated = "emulated:";

void require_positive(const ConfigTable& table, std::string_view key, double value) {
  if (value > 0 && std::isfinite(value)) return;
  fail_usage("{}: {} = {} must be greater than 0", table.where(), key, value);
}

/// Above 0, and not above what no line, chip or bill of this decade comes near: a slip of unit.
void require_sane(const ConfigTable& table, std::string_view key, double value, double most) {
  require_positive(table, key, value);
  if (value <= most) return;
  fail_usage("{}: {} = {:g} is absurd: {:g} at most; is it in the right unit?",
             table.where(),
             key,
             value,
             most);
}

// 100 Tbit/s, a minute there and back; a rack's watts; and a bill of a million an hour for a chip.
constexpr double kMbitMost = 1e8, kRttMsMost = 60e3, kWattsMost = 1e5, kPriceMost = 1e6;

/// Splits "kind:3" into the kind and 3. Throws Failure naming every kind of device that the
/// catalogue knows if the text is none of them.
struct NumberedDevice {
  std::string kind;
  int idx = 0;
};
NumberedDevice read_numbered_device(const ConfigTable& table,
                                    const std::string& device,
                                    const chips::Catalogue& catalogue) {
  std::set<std::string> kinds;
  for (const chips::Chip& chip : catalogue.chips()) {
    if (!chip.torch_device.empty()) kinds.insert(chip.torch_device);
  }
  const size_t colon = device.find(':');
  const std::string kind = device.substr(0, colon);
  const std::string idx = colon == std::string::npos ? "" : device.substr(colon + 1);
  const bool is_number =
      !idx.empty() && idx.size() <= 4 &&
      std::all_of(idx.begin(), idx.end(), [](char c) { return c >= '0' && c <= '9'; });
  if (kinds.contains(kind) && is_number) return {kind, std::stoi(idx)};
  if (kinds.contains(kind)) {
    fail_usage("{}: device = \"{}\" lacks its number: write \"{}:0\"", table.where(), device, kind);
  }
  fail_usage(
      "{}: device = \"{}\" is unknown; write \"cpu\", \"emulated:CHIP\", or KIND:NUMBER with "
      "a kind of {}",
      table.where(),
      device,
      fmt::join(kinds, ", "));
}

std::vector<int> read_cores(const ConfigTable& table) {
  std::vector<double> numbers;
  table.read("cores", numbers);
  std::vector<int> cores;
  for (const double number : numbers) {
    if (!(number >= 0 && number < 65536 && number == std::floor(number))) {
      fail_usage("{}: cores holds {}; processors are numbered 0, 1, 2...", table.where(), number);
    }
    const int core = static_cast<int>(number);
    if (std::find(cores.begin(), cores.end(), core) != cores.end()) {
      fail_usage("{}: cores names processor {} twice; once is enough", table.where(), core);
    }
    cores.push_back(core);
  }
  return cores;
}

/// The processors of one of num_sharers workers: dealt like cards, at least one each. A worker that
/// emulates is one thread, so one processor is all it can use.
std::vector<int> deal_cores(const std::vector<int>& cores,
                            size_t num_sharers,
                            size_t sharer_idx,
                            const std::string& device) {
  std::vector<int> dealt = {cores[sharer_idx % cores.size()]};
  if (is_emulated(device)) return dealt;
  for (size_t i = sharer_idx + num_sharers; i < cores.size(); i += num_sharers) {
    dealt.push_back(cores[i]);
  }
  return dealt;
}

std::string find_chip(const ConfigTable& table,
                      const std::string& name,
                      const chips::Catalogue& catalogue) {
  try {
    return catalogue.find(name).id;
  } catch (const Failure& failure) {
    fail_usage("{}: {}", table.where(), failure.what());
  }
}

void read_devices(const ConfigTable& table, const chips::Catalogue& catalogue, FleetSite& site) {
  std::string device, chip, node;
  std::vector<std::string> faults;
  int count = 1;
  table.read("device", device);
  table.read("chip", chip);
  table.read("node", node);
  double memory_gib = 0;
  table.read("faults", faults);
  table.read("memory_gib", memory_gib);
  table.read("count", count);
  double power_w = 0, price_hour = 0;
  std::string profile;
  table.read("profile", profile);
  table.read("power_w", power_w);
  table.read("price_hour", price_hour);
  if (table.has("power_w")) require_sane(table, "power_w", power_w, kWattsMost);
  if (table.has("price_hour")) require_sane(table, "price_hour", price_hour, kPriceMost);
  const std::vector<int> cores = read_cores(table);
  table.refuse_unknown();
  if (device.empty()) {
    fail_usage("{}: device is missing; write device = \"cpu\", for example", table.where());
  }
  if (count < 1 || count > 100'000) {
    fail_usage("{}: count = {} must be between 1 and 100000", table.where(), count);
  }
  if (!faults.empty() && !is_emulated(device)) {
    fail_usage("{}: faults are for emulated devices, {} is a real one", table.where(), device);
  }
  if (table.has("memory_gib") && (!is_emulated(device) || !(memory_gib > 0))) {
    fail_usage("{}: memory_gib = {:g} must be above 0, and only an emulated device takes it",
               table.where(),
               memory_gib);
  }
  NumberedDevice numbered;
  if (is_emulated(device)) {
    chip = find_chip(table, device.substr(kEmulated.size()), catalogue);
    device = fmt::format("{}{}", kEmulated, chip);
  } else if (device != "cpu") {
    numbered = read_numbered_device(table, device, catalogue);
    if (!chip.empty()) chip = find_chip(table, chip, catalogue);
  }
  for (int i = 0; i < count; ++i) {
    FleetDevice one{.device = device,
                    .cores = {},
                    .node = node,
                    .chip = chip,
                    .memory_gib = memory_gib,
                    .faults = faults,
                    .power_w = power_w,
                    .profile = profile,
                    .price_hour = price_hour};
    if (!numbered.kind.empty()) one.device = fmt::format("{}:{}", numbered.kind, numbered.idx + i);
    if (!cores.empty()) {
      one.cores = deal_cores(cores, static_cast<size_t>(count), static_cast<size_t>(i), one.device);
    }
    site.devices.push_back(std::move(one));
  }
}

void refuse_one_device_twice(const ConfigTable& table, const FleetSite& site) {
  std::set<std::string> seen;
  for (const FleetDevice& device : site.devices) {
    if (runs_on_host(device.device) || seen.insert(device.device).second) continue;
    fail_usage("{}: device \"{}\" stands twice in site \"{}\"; one device takes one worker",
               table.where(),
               device.device,
               site.name);
  }
}

void deal_silent_cores(FleetSite& site, const std::vector<int>& allowed) {
  const auto silent = [](const FleetDevice& device) {
    return device.cores.empty() && runs_on_host(device.device);
  };
  const auto num_silent =
      static_cast<size_t>(std::count_if(site.devices.begin(), site.devices.end(), silent));
  size_t sharer_idx = 0;
  for (FleetDevice& device : site.devices) {
    if (!silent(device)) continue;
    device.cores = deal_cores(allowed, num_silent, sharer_idx++, device.device);
  }
}

// The name becomes a folder and a certificate's subject.
bool is_site_name(const std::string& name) {
  const auto allowed = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
           c == '_';
  };
  return !name.empty() && name.size() <= 40 && std::all_of(name.begin(), name.end(), allowed);
}

FleetSite read_site(const ConfigTable& table, const chips::Catalogue& catalogue) {
  FleetSite site;
  table.read("name", site.name);
  table.read("listen", site.listen);
  table.read("network_gbit_s", site.network_gbit_s);
  table.read("network_us", site.network_us);
  require_sane(table, "network_gbit_s", site.network_gbit_s, kMbitMost / 1e3);
  require_sane(table, "network_us", site.network_us, 1e3 * kRttMsMost);
  const std::vector<ConfigTable> devices = table.tables("device");
  table.refuse_unknown();
  if (!is_site_name(site.name)) {
    fail_usage(
        "{}: name = \"{}\" must be 1 to 40 letters, digits, '-' or '_'", table.where(), site.name);
  }
  if (site.listen.empty()) {
    fail_usage("{}: listen = \"\" must be an address, such as 127.0.0.1", table.where());
  }
  for (const ConfigTable& device : devices) read_devices(device, catalogue, site);
  if (site.devices.empty()) {
    fail_usage(
        "{}: site \"{}\" has no device; add [[site.device]] with device = \"cpu\", for "
        "example",
        table.where(),
        site.name);
  }
  refuse_one_device_twice(table, site);
  deal_silent_cores(site, allowed_cores());
  return site;
}

FleetLink read_link(const ConfigTable& table, const std::vector<FleetSite>& sites) {
  std::vector<std::string> between;
  FleetLink link;
  table.read("between", between);
  table.read("bandwidth_mbit_s", link.bandwidth_mbit_s);
  table.read("rtt_ms", link.rtt_ms);
  table.read("back_mbit_s", link.back_mbit_s);
  table.read("loss", link.loss);
  table.read("emulate", link.emulate);
  table.refuse_unknown();
  if (between.size() != 2 || between[0] == between[1]) {
    fail_usage("{}: between = [{}] must name two different sites, as in between = [\"a\", \"b\"]",
               table.where(),
               fmt::join(between, ", "));
  }
  std::vector<std::string> names;
  for (const FleetSite& site : sites) names.push_back(site.name);
  for (const std::string& name : between) {
    if (std::find(names.begin(), names.end(), name) != names.end()) continue;
    const auto nearest = nearest_word(name, names);
    fail_usage("{}: link to \"{}\", which is no site of this fleet; {}",
               table.where(),
               name,
               nearest ? fmt::format("did you mean {}?", *nearest)
                       : fmt::format("its sites are {}", fmt::join(names, ", ")));
  }
  link.from = between[0];
  link.to = between[1];
  require_sane(table, "bandwidth_mbit_s", link.bandwidth_mbit_s, kMbitMost);
  require_sane(table, "rtt_ms", link.rtt_ms, kRttMsMost);
  if (table.has("back_mbit_s")) {
    require_sane(table, "back_mbit_s", link.back_mbit_s, kMbitMost);
  }
  constexpr double kLossMax = 0.15;  // above it congestion control gives way
  if (!(link.loss >= 0 && link.loss <= kLossMax)) {
    fail_usage("{}: loss = {:g} must be between 0 and {:g}: the share of packets that are lost",
               table.where(),
               link.loss,
               kLossMax);
  }
  return link;
}

void read_links(const ConfigTable& table, FleetConfig& fleet) {
  for (const ConfigTable& link_table : table.tables("link")) {
    const FleetLink link = read_link(link_table, fleet.sites);
    if (fleet.link_between(link.from, link.to) != nullptr) {
      fail_usage("{}: a second link between \"{}\" and \"{}\"; keep one",
                 link_table.where(),
                 link.from,
                 link.to);
    }
    fleet.links.push_back(link);
  }
  for (size_t i = 0; i < fleet.sites.size(); ++i) {
    for (size_t j = i + 1; j < fleet.sites.size(); ++j) {
      const std::string& a = fleet.sites[i].name;
      const std::string& b = fleet.sites[j].name;
      if (fleet.link_between(a, b) != nullptr) continue;
      fail_usage(
          "{}: no link between the sites \"{}\" and \"{}\"; add [[link]] with between = "
          "[\"{}\", \"{}\"]",
          table.where(),
          a,
          b,
          a,
          b);
    }
  }
}

void read_emulation(const ConfigTable& table, FleetConfig& fleet) {
  const ConfigTable emulation = table.table("emulation");
  double slowdown = 0;
  const bool has_slowdown = emulation.has("slowdown");
  emulation.read("slowdown", slowdown);
  const bool has_memory = emulation.has("memory_gib");
  emulation.refuse_unknown();
  if (has_slowdown) require_positive(emulation, "slowdown", slowdown);
  if (has_memory) {
    double memory_gib = 0;
    emulation.read("memory_gib", memory_gib);
    require_positive(emulation, "memory_gib", memory_gib);
    fleet.emulation_memory_gib = memory_gib;
  }
  for (const FleetSite& site : fleet.sites) {
    for (const FleetDevice& device : site.devices) {
      if (!is_emulated(device.device)) continue;
      if (!has_slowdown) {
        fail_usage(
            "{}: {} of site \"{}\" needs [emulation] slowdown, the number of times that "
            "emulated chips run slower than real ones; start with 3000",
            table.where(),
            device.device,
            site.name);
      }
      fleet.emulation_slowdown = slowdown;
    }
  }
}

}  // namespace

bool is_emulated(std::string_view device) { return device.starts_with(kEmulated); }

bool runs_on_host(std::string_view device) { return device == "cpu" || is_emulated(device); }

const FleetLink* FleetConfig::link_between(const std::string& a, const std::string& b) const {
  for (const FleetLink& link : links) {
    if ((link.from == a && link.to == b) || (link.from == b && link.to == a)) return &link;
  }
  return nullptr;
}

FleetConfig read_fleet(const std::filesystem::path& path,
                       const chips::Catalogue& catalogue,
                       const std::vector<std::string>& overrides) {
  ConfigTable table = ConfigTable::read_file(path);
  for (const std::string& assignment : overrides) table.set(assignment);
  FleetConfig fleet;
  for (const ConfigTable& site_table : table.tables("site")) {
    FleetSite site = read_site(site_table, catalogue);
    for (const FleetSite& other : fleet.sites) {
      if (other.name != site.name) continue;
      fail_usage(
          "{}: a second site of the name \"{}\"; give it another", site_table.where(), site.name);
    }
    fleet.sites.push_back(std::move(site));
  }
  read_emulation(table, fleet);
  read_links(table, fleet);
  table.refuse_unknown();
  if (fleet.sites.empty()) {
    fail_usage("{}: no site; add [[site]] with a name and at least one [[site.device]]",
               table.where());
  }
  fleet.source_toml = table.to_toml();
  return fleet;
}

}  // namespace pelago::plan
