// The sockets under the line to a peer. The library that carries the streams gives no way to set
// the options that decide what a long line yields, so they are set on the sockets themselves.
#pragma once

#include <optional>
#include <string>

namespace pelago::sites {

/// Sets up every connection of this process that leads to the port of address ("HOST:PORT").
/// Congestion control: BBR where the kernel has it (it takes a lost packet for a lost packet; CUBIC
/// takes it for a full line: at 60 ms and 0.1 % loss CUBIC yields 7 Mbit/s a stream, BBR the line).
/// Packets are paced, at most at pace_mbit_s each: BBR finds a line's rate by sending at three
/// times of it, and each exchange begins so. Little waits unsent in the kernel, so that a slow
/// stream takes few chunks. Returns how many sockets there are.
int tune_line_sockets(const std::string& address, std::optional<double> pace_mbit_s);

}  // namespace pelago::sites
