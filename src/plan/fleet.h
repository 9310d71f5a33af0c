// fleet.toml: which devices there are, in which sites, joined by which lines.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/config.h"
#include "chips/catalogue.h"

namespace pelago::plan {

struct FleetDevice {
  std::string device;      // "cpu", "cuda:0", "emulated:nvidia-h20" (canonical chip id)
  std::vector<int> cores;  // processors its worker is bound to; the reader fills round robin if
                           // fleet.toml is silent
  std::string node;        // the machine it is in; devices without one are in the site's first
  std::string chip;  // catalogue id: of what is emulated, or what fleet.toml says a real device is;
                     // empty: not known, so that only a probe can tell its pace
  double memory_gib = 0;            // emulated: instead of the catalogue's; 0: as the fleet says
  std::vector<std::string> faults;  // emulated: what breaks and when ("wrong@op=120"), for tests
  double power_w = 0;               // at work; 0: the catalogue's
  std::string profile;              // whose times it has in a profile by layers; empty: its chip's
  double price_hour = 0;            // currency of the fleet's owner; 0: not known
};

struct FleetSite {
  std::string name;
  std::string listen = "127.0.0.1";  // address its agent listens on
  double network_gbit_s = 88;  // of each device, to another node: 100 Gbit/s RDMA as long messages
                               // get it
  double network_us = 10;      // of a message to another node, however short
  std::vector<FleetDevice> devices;
};

/// A line between two sites. With `emulate`, the transport holds frames back as such a line would.
struct FleetLink {
  std::string from, to;
  double bandwidth_mbit_s = 1000;  // from `from` to `to`
  double rtt_ms = 10;
  double back_mbit_s = 0;  // from `to` to `from`; 0: as the other way
  double loss = 0;         // share of packets that are lost: 0 to 0.15
  bool emulate = false;
};

struct FleetConfig {
  std::vector<FleetSite> sites;
  std::vector<FleetLink> links;
  double emulation_slowdown = 0;  // 0: no emulated device in the fleet
  std::optional<double>
      emulation_memory_gib;  // instead of the catalogue's, for tests and demonstrations
  std::string source_toml;

  const FleetLink* link_between(const std::string& a, const std::string& b) const;
};

bool is_emulated(std::string_view device);
/// What must be equal for two devices to be of one kind: "cuda" of "cuda:1", all of
/// "emulated:nvidia-h20".
std::string kind_of_device(const std::string& device);
/// "cpu" or emulated: it takes processors and memory of the machine that its worker runs on.
bool runs_on_host(std::string_view device);

/// Reads and checks fleet.toml. Throws Failure (exit 2): unknown chip (nearest named), no site, a
/// site without devices, two sites of one name, a link to no site, two sites without a link,
/// bandwidth or rtt that is not positive, emulated devices without emulation.slowdown, unknown key.
FleetConfig read_fleet(const std::filesystem::path& path,
                       const chips::Catalogue& catalogue,
                       const std::vector<std::string>& overrides = {});

}  // namespace pelago::plan
