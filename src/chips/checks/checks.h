// The single findings of examine_machine(), by what they look at.
#pragma once

#include <functional>
#include <vector>

#include "chips/doctor.h"

namespace pelago::chips::checks {

using Findings = std::vector<Check>;

/// The machine: instructions, cores and binding, memory, clocks, disk, port.
Check cpu_instructions();
Check cores();
Check memory();
Check clocks();
Check disk(const std::filesystem::path& work_dir);
Check port(int port);

/// What computes: libtorch with its BLAS, bf16 matmuls, devices and plug-ins.
Check blas();
Check bf16_matmul();
Check cuda_devices();
Check emulator_plugin(const DoctorOptions& options);
Findings vendor_plugins(const Catalogue& catalogue);

}  // namespace pelago::chips::checks
