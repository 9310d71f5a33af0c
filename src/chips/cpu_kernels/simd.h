// Highway, with the instruction sets that our kernels are compiled for: the baseline, AVX2 and
// AVX-512 on x86, whatever it finds on Arm. Every kernel file includes this before Highway, so that
// all agree on the list.
#pragma once

#define PELAGO_SIMD_TARGETS
// SSE4 and AVX3_DL add nothing to these kernels; SVE's vectors have no size at compile time, which
// arrays of accumulators need (NEON serves those machines).
#define HWY_DISABLED_TARGETS \
  (HWY_SSE4 | HWY_AVX3_DL | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128)
#if defined(__x86_64__)
#define HWY_BASELINE_TARGETS HWY_SSSE3  // every x86-64 server since 2006; else scalar code
#endif
// Not highway.h: a kernel file includes that after foreach_target.h, which would fail otherwise.
#include <hwy/base.h>
#include <hwy/targets.h>
