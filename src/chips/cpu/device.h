// The processor as a device: what trains where there is no accelerator.
#pragma once

#include <memory>
#include <string>

#include "chips/device.h"

namespace pelago::chips {

std::unique_ptr<Device> open_cpu(const std::string& name);

/// Memory that a process on this machine may use: physical, or less inside a container.
int64_t host_memory_bytes();

/// What the processor says it can do: "avx512_bf16", "amx_tile", on Arm "bf16", ...
bool cpu_has(const std::string& flag);

/// True if matmuls in bf16 have instructions of their own here.
bool cpu_has_bf16();

/// Freed memory stays with the process. A tensor of 16 MiB would otherwise be mapped, zeroed page
/// by page and unmapped for each operator that makes one, which costs more than adding two of them.
void keep_freed_memory();

}  // namespace pelago::chips
