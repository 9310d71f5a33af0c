// The single findings of examine_machine(), by what they look at.
#pragma once

#include <functional>
#include <vector>

#include "chips/doctor.h"
#include "chips/vendor/vendor.h"

namespace pelago::chips::checks {

using Findings = std::vector<Check>;

/// The machine: instructions, cores and binding, memory, clocks, disk, port.
Check cpu_instructions();
Check cores();
Check memory();
Check clocks();
Check disk(const std::filesystem::path& work_dir);
Check port(int port);

/// What computes: libtorch with its BLAS, bf16 matmuls, the emulator.
Check blas();
Check bf16_matmul();
Check emulator_plugin(const DoctorOptions& options);

/// Vendors: one finding for each that shows on this machine or is in the fleet, or one that says
/// what was looked for.
Findings vendors(const DoctorOptions& options);
Check cuda_devices();
/// sign: what shows that its chips are here; may be empty. is_wanted: the fleet has such devices;
/// where nothing shows, they may be in another machine of it.
Check vendor(const Vendor& vendor, const std::string& sign, bool is_wanted);

}  // namespace pelago::chips::checks
