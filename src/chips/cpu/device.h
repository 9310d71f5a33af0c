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

/// Freed memory stays with the process. glibc would map anything above 32 MiB anew, zero it page by
/// page and unmap it: the sum of two f32 tensors of 64 MiB takes 6 ms so, instead of 36.
void keep_freed_memory();

}  // namespace pelago::chips
