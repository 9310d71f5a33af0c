// Every fault that the runner injects, by the file that it is in. Each takes a run in which all
// sites train, and leaves one in which they do again.
#pragma once

#include "chaos/scene.h"

namespace pelago::chaos {

// process_faults.cpp: nothing that training computes may change by these.

Outcome worker_in_forward(LiveRun& run);
Outcome worker_in_reduction(LiveRun& run);  // needs a first site of two devices
Outcome worker_in_exchange(LiveRun& run);
Outcome worker_while_saving(LiveRun& run);
Outcome worker_segfault(LiveRun& run);
Outcome worker_abort(LiveRun& run);
Outcome site_stopped_shortly(LiveRun& run);
Outcome coordinator_idle(LiveRun& run);
Outcome coordinator_in_commit(LiveRun& run);
Outcome coordinator_twice(LiveRun& run);

// site_faults.cpp: sites come and go.

Outcome site_stopped_long(LiveRun& run);      // given up after five heartbeats, and back
Outcome site_stopped_for_ever(LiveRun& run);  // longer than anybody waits for what it holds
Outcome joiner_dies(LiveRun& run);
Outcome two_join_at_once(LiveRun& run);
Outcome join_during_exchange(LiveRun& run);
Outcome straggler(LiveRun& run);
Outcome long_pause(LiveRun& run);
Outcome old_address(LiveRun& run);
Outcome site_away_and_back(LiveRun& run);
Outcome site_gone_for_good(LiveRun& run);
Outcome one_site_left(LiveRun& run);
Outcome power_cut(LiveRun& run);

// network_faults.cpp: need a packet-level line.

Outcome one_site_cut_off(LiveRun& run);
Outcome two_halves(LiveRun& run);
Outcome one_way(LiveRun& run);
Outcome flapping(LiveRun& run);
Outcome thin_line(LiveRun& run);
Outcome long_line(LiveRun& run);
Outcome lossy_line(LiveRun& run);
Outcome one_stream_frozen(LiveRun& run);

}  // namespace pelago::chaos
