// A plan.json or probe.json that somebody edited.
#include "outside_bytes.h"
#include "plan/plan.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t num_bytes) {
  const std::string text(pelago::fuzz::text_of(data, num_bytes));
  pelago::fuzz::expect_answer([&] {
    const pelago::plan::Plan plan = pelago::plan::plan_from_json(text, "fuzz.json");
    const std::string written = pelago::plan::to_json(plan);
    PELAGO_ASSERT(
        pelago::plan::to_json(pelago::plan::plan_from_json(written, "again.json")) == written,
        "a plan that was read can be written and read again");
  });
  pelago::fuzz::expect_answer([&] { (void)pelago::plan::probe_from_json(text, "fuzz.json"); });
  return 0;
}
