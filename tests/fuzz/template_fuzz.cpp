// A chat template of a stranger, rendered with a small chat. Work is bounded, so every input ends.
#include "outside_bytes.h"
#include "serve/template/template.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t num_bytes) {
  using pelago::serve::Template;
  using pelago::serve::Value;
  static const Value variables = pelago::serve::value_of_json(
      R"({"messages": [{"role": "user", "content": "hi"}, {"role": "tool", "content": null}],
          "tools": [{"name": "f", "a": [1, 2.5, true]}], "bos_token": "<s>"})");
  try {
    const Template parsed(pelago::fuzz::text_of(data, num_bytes));
    parsed.render(variables.dict(), 0, {.num_steps_max = 20'000, .output_bytes_max = 1 << 20});
  } catch (const pelago::serve::TemplateError& error) {
    PELAGO_ASSERT(!std::string_view(error.what()).empty(), "a refusal says why");
  }
  return 0;
}
