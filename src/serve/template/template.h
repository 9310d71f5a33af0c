// A template in the subset of Jinja2 that models' chat templates use, rendered as Hugging Face's
// apply_chat_template does (trim_blocks, lstrip_blocks, an immutable sandbox). A template comes
// with a model's files and its values from strangers, so work, memory and depth are bounded.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "serve/template/value.h"

namespace pelago::serve {

struct Statement;

struct RenderLimits {
  int64_t num_steps_max = 20'000'000;  // expressions and statements: a second or two
  size_t output_bytes_max = 64 << 20;  // beyond any prompt
  int depth_max = 100;                 // of macros that call macros
};

class Template {
 public:
  /// Throws TemplateError with the line.
  explicit Template(std::string_view source);
  Template(Template&&) noexcept;
  Template& operator=(Template&&) noexcept;
  ~Template();

  /// variables: what the template may name. now_s: seconds since 1970, for strftime_now. May be
  /// called by many threads at once. Throws TemplateError.
  std::string render(const ValueDict& variables,
                     int64_t now_s,
                     const RenderLimits& limits = {}) const;

 private:
  std::vector<Statement> body_;
};

}  // namespace pelago::serve
