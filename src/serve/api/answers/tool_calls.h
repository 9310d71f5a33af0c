// Calls of tools in a model's answer. The families write them differently: <tool_call>{...}
// </tool_call> (Hermes, Qwen), a bare {"name": ..., "parameters": ...} or a list of such (Llama,
// Mistral behind its [TOOL_CALLS]), <｜tool▁call▁begin｜>... (DeepSeek). All of them are looked
// for. What cannot be a call goes out at once; what may be one is held back until it is clear.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace pelago::serve {

struct ToolCall {
  std::string name;
  std::string arguments;  // JSON
};

class ToolCatcher {
 public:
  /// names: the tools that may be called; a call of another is text.
  explicit ToolCatcher(std::vector<std::string> names) : names_(std::move(names)) {}

  /// Takes the next piece of the answer; returns what of it is certainly text.
  std::string add(std::string_view piece);

  struct Rest {
    std::string text;
    std::vector<ToolCall> calls;
  };
  /// The answer has ended: the calls in what was held back, or the text that it was after all.
  Rest finish();

 private:
  bool is_tool(std::string_view name) const;
  bool read_json(std::string_view json, std::vector<ToolCall>& calls) const;
  bool read_marked(std::string_view text, std::vector<ToolCall>& calls, std::string& before) const;

  std::vector<std::string> names_;
  std::string held_;
  bool has_begun_ = false;    // text has gone out, so a bare call cannot come any more
  bool is_catching_ = false;  // held_ begins with what looks like a call
};

}  // namespace pelago::serve
