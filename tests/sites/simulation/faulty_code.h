// Where a planted bug changes what the protocol code hears, says, writes or reads, as the bug would
// in that code. All are empty in a run without one; the code under test knows nothing of them.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "sites/protocol/messages.h"
#include "sites/state/state_store.h"

namespace pelago::sites {

struct FaultyCode {
  /// Returns whether the message goes on its way. site: the other end.
  using Ear = std::function<bool(const std::string& site, Message& message)>;
  Ear coordinator_hears, coordinator_says;
  using SiteEar =
      std::function<bool(const std::string& site, const std::string& peer, Message& message)>;
  SiteEar site_hears, site_says;
  std::function<void(std::vector<StateWrite>&)> coordinator_writes;
  std::function<void(DurableState&)> coordinator_reads;
  bool store_forgets_seats = false;    // takes writes of whoever led once
  bool store_forgets_numbers = false;  // takes a write as often as it arrives
  bool says_before_written = false;    // the coordinator does not wait for the store
  int64_t merge_late = 0;              // steps by which workers go past a merge that has not come
  bool skips_data = false;             // a step that is left out takes its samples with it
  int64_t data_ahead = 0;              // added to the data step that a lease begins at
  bool merges_other_bits = false;      // the last bit of an outcome hangs on the site
};

struct SimulatedRunOptions;

struct PlantedBug {
  std::string_view name;  // what the code then does wrong
  std::function<void(FaultyCode&)> plant;
  /// Makes runs likelier in which it does harm; empty: any run will do.
  std::function<void(SimulatedRunOptions&)> provoke = {};
};
const std::vector<PlantedBug>& planted_bugs();

}  // namespace pelago::sites
