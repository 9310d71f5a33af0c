#include "serve/api/answers/tool_calls.h"

#include <algorithm>

#include "serve/template/builtins.h"
#include "serve/template/value.h"

namespace pelago::serve {

namespace {

constexpr std::string_view kOpen = "<tool_call>", kClose = "</tool_call>";
constexpr std::string_view kMistral = "[TOOL_CALLS]", kPython = "<|python_tag|>";
constexpr std::string_view kDeepSeekAll = "<｜tool▁calls▁begin｜>",
                           kDeepSeek = "<｜tool▁call▁begin｜>", kDeepSeekSep = "<｜tool▁sep｜>",
                           kDeepSeekEnd = "<｜tool▁call▁end｜>";
constexpr std::string_view kMarkers[] = {kOpen, kMistral, kPython, kDeepSeekAll, kDeepSeek};

// Where a marker begins, or may begin at the end of what has come; else text's size.
size_t marker_at(std::string_view text, bool* is_whole) {
  size_t first = text.size();
  *is_whole = false;
  for (const std::string_view marker : kMarkers) {
    const size_t at = text.find(marker);
    if (at < first) {
      first = at;
      *is_whole = true;
    }
    for (size_t length = std::min(marker.size() - 1, text.size()); length > 0; --length) {
      if (!text.ends_with(marker.substr(0, length))) continue;
      if (text.size() - length < first) {
        first = text.size() - length;
        *is_whole = false;
      }
      break;
    }
  }
  return first;
}

}  // namespace

bool ToolCatcher::is_tool(std::string_view name) const {
  return std::find(names_.begin(), names_.end(), name) != names_.end();
}

std::string ToolCatcher::add(std::string_view piece) {
  held_ += piece;
  if (is_catching_) return "";
  if (!has_begun_) {
    const size_t start = held_.find_first_not_of(" \t\r\n");
    if (start == std::string::npos) return "";
    if (held_[start] == '{' || held_[start] == '[') {
      is_catching_ = true;
      return "";
    }
  }
  bool is_whole = false;
  const size_t at = marker_at(held_, &is_whole);
  is_catching_ = is_whole;
  std::string text = held_.substr(0, at);
  held_.erase(0, at);
  has_begun_ = has_begun_ || !text.empty();
  return text;
}

// {"name": ..., "arguments": {...}}, with "parameters" for "arguments", or a list of such.
bool ToolCatcher::read_json(std::string_view json, std::vector<ToolCall>& calls) const {
  Value value;
  try {
    value = value_of_json(json);
  } catch (const TemplateError&) {
    return false;
  }
  const ValueList one = {value};
  std::vector<ToolCall> found;
  for (const Value& call : value.is_list() ? value.list() : one) {
    if (!call.is_dict()) return false;
    const Value* name = call.dict().find("name");
    const Value* arguments = call.dict().find("arguments");
    if (arguments == nullptr) arguments = call.dict().find("parameters");
    if (name == nullptr || !name->is_string() || !is_tool(name->text())) return false;
    std::string text = "{}";
    if (arguments != nullptr && arguments->is_string()) {
      text = arguments->text();
    } else if (arguments != nullptr && !arguments->is_none()) {
      text = arguments->to_json();
    }
    found.push_back({.name = name->text(), .arguments = text});
  }
  calls.insert(calls.end(), found.begin(), found.end());
  return !found.empty();
}

bool ToolCatcher::read_marked(std::string_view text,
                              std::vector<ToolCall>& calls,
                              std::string& before) const {
  for (const std::string_view lead : {kMistral, kPython}) {
    if (text.starts_with(lead)) return read_json(text.substr(lead.size()), calls);
  }
  const bool is_deep = text.starts_with(kDeepSeekAll) || text.starts_with(kDeepSeek);
  const std::string_view open = is_deep ? kDeepSeek : kOpen,
                         close = is_deep ? kDeepSeekEnd : kClose;
  for (size_t at = text.find(open); at != std::string_view::npos; at = text.find(open)) {
    text.remove_prefix(at + open.size());
    std::string_view inner = text.substr(0, text.find(close));
    text.remove_prefix(std::min(text.size(), inner.size() + close.size()));
    if (!is_deep) {
      if (!read_json(inner, calls)) return false;
      continue;
    }
    // "name<sep>{...}", or in the older form "function<sep>name\n```json\n{...}\n```".
    const size_t sep = inner.find(kDeepSeekSep);
    if (sep == std::string_view::npos) return false;
    std::string_view name = inner.substr(0, sep),
                     arguments = inner.substr(sep + kDeepSeekSep.size());
    if (const size_t fence = arguments.find("```json"); fence != std::string_view::npos) {
      name = arguments.substr(0, fence);
      arguments.remove_prefix(fence + 7);
      arguments = arguments.substr(0, arguments.find("```"));
    }
    name = strip_text(name, "", true, true);
    if (!is_tool(name)) return false;
    calls.push_back({.name = std::string(name),
                     .arguments = std::string(strip_text(arguments, "", true, true))});
  }
  before = strip_text(text, "", true, true);
  if (before.starts_with("<｜tool▁calls▁end｜>")) before.clear();
  return !calls.empty();
}

ToolCatcher::Rest ToolCatcher::finish() {
  Rest rest;
  std::string behind;
  const bool is_call =
      is_catching_ && (read_json(held_, rest.calls) || read_marked(held_, rest.calls, behind));
  if (!is_call) rest.calls.clear();
  rest.text = is_call ? behind : held_;
  return rest;
}

}  // namespace pelago::serve
