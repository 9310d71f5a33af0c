#include "serve/api/requests/chat_fields.h"

#include <fmt/format.h>

#include <algorithm>

#include "serve/api/api_error.h"

namespace pelago::serve {

namespace {

constexpr std::string_view kRoles[] = {
    "system", "developer", "user", "assistant", "tool", "function"};

// A string, or a list of parts of which only texts are understood.
Value read_content(Fields& fields, const std::string& where, bool may_lack) {
  const Value* content = fields.find("content");
  if (content == nullptr) {
    if (!may_lack) fields.refuse("content", "is missing");
    return Value::None{};
  }
  if (content->is_string()) return *content;
  if (!content->is_list())
    fields.refuse("content",
                  fmt::format("is {}: it must be a string or a list of parts", shown(*content)));
  std::string text;
  for (size_t i = 0; i < content->list().size(); ++i) {
    Fields part(content->list()[i], fmt::format("{}.content[{}]", where, i));
    const std::string type = part.text("type", 100).value_or("");
    if (type != "text" && type != "refusal") {
      part.refuse("type", fmt::format("is {}: this model reads text only", shown(Value(type))));
    }
    const auto piece = part.text(type, 64 << 20);
    if (!piece) part.refuse(type, "is missing");
    text += *piece;
  }
  return text;
}

Value read_tool_calls(const Value& calls, const std::string& where) {
  if (!calls.is_list() || calls.list().size() > 128)
    throw ApiError(400, where + ".tool_calls must be a list of at most 128", where);
  ValueList out;
  for (size_t i = 0; i < calls.list().size(); ++i) {
    const std::string path = fmt::format("{}.tool_calls[{}]", where, i);
    Fields call(calls.list()[i], path);
    const Value* function = call.find("function");
    if (function == nullptr) call.refuse("function", "is missing");
    Fields inner(*function, path + ".function");
    const auto name = inner.text("name", 256);
    if (!name) inner.refuse("name", "is missing");
    const Value* arguments = inner.find("arguments");
    ValueDict made;
    made.set("name", *name);
    made.set("arguments", arguments == nullptr ? Value("{}") : *arguments);
    ValueDict whole;
    whole.set("id", call.text("id", 256).value_or(""));
    whole.set("type", "function");
    whole.set("function", made);
    out.emplace_back(whole);
  }
  return out;
}

Value read_message(const Value& message, size_t idx) {
  const std::string where = fmt::format("messages[{}]", idx);
  Fields fields(message, where);
  const std::string role = fields.text("role", 100).value_or("");
  if (std::find(std::begin(kRoles), std::end(kRoles), role) == std::end(kRoles)) {
    fields.refuse(
        "role",
        fmt::format("is {}: it must be one of {}", shown(Value(role)), fmt::join(kRoles, ", ")));
  }
  ValueDict out;
  // Templates know OpenAI's older word.
  out.set("role", role == "developer" ? "system" : role);
  const Value* calls = fields.find("tool_calls");
  out.set("content", read_content(fields, where, role == "assistant"));
  if (const auto name = fields.text("name", 256)) out.set("name", *name);
  if (const auto id = fields.text("tool_call_id", 256)) out.set("tool_call_id", *id);
  if (const auto thought = fields.text("reasoning_content", 64 << 20))
    out.set("reasoning_content", *thought);
  if (calls != nullptr && role == "assistant")
    out.set("tool_calls", read_tool_calls(*calls, where));
  fields.ignore({"refusal", "audio", "annotations", "function_call"});
  fields.refuse_unknown();
  return out;
}

std::string call_schema(const std::string& name, const Value& parameters) {
  return fmt::format(
      R"({{"type":"object","properties":{{"name":{{"const":{}}},"arguments":{}}},"required":["name","arguments"],"additionalProperties":false}})",
      json_quoted(name),
      parameters.to_json());
}

// Returns the name; appends the schema of the arguments.
std::string read_tool(const Value& given,
                      const std::string& where,
                      std::vector<Value>& parameters) {
  constexpr std::string_view kNameLetters =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.";
  Fields tool(given, where);
  if (tool.text("type", 100).value_or("") != "function") tool.refuse("type", "must be function");
  const Value* function = tool.find("function");
  if (function == nullptr) tool.refuse("function", "is missing");
  Fields inner(*function, where + ".function");
  const std::string name = inner.text("name", 64).value_or("");
  if (name.empty() || name.find_first_not_of(kNameLetters) != std::string::npos) {
    inner.refuse("name",
                 fmt::format("is {}: 1 to 64 letters, digits, '_', '-', '.'", shown(Value(name))));
  }
  const Value* schema = inner.find("parameters");
  if (schema != nullptr && !schema->is_dict()) inner.refuse("parameters", "must be a JSON schema");
  ValueDict any;
  any.set("type", "object");
  parameters.push_back(schema != nullptr ? *schema : Value(any));
  return name;
}

}  // namespace

ValueList read_messages(Fields& fields, const ApiLimits& limits) {
  const Value* messages = fields.find("messages");
  if (messages == nullptr || !messages->is_list())
    fields.refuse("messages", "must be a list of messages");
  const size_t num_messages = messages->list().size();
  if (num_messages == 0 || num_messages > limits.num_messages_max) {
    fields.refuse(
        "messages",
        fmt::format("has {} messages: 1 to {} are allowed", num_messages, limits.num_messages_max));
  }
  ValueList out;
  for (size_t i = 0; i < num_messages; ++i) out.push_back(read_message(messages->list()[i], i));
  return out;
}

ToolChoice read_tools(Fields& fields, const ApiLimits& limits) {
  ToolChoice choice;
  fields.truth("parallel_tool_calls");
  const Value* tools = fields.find("tools");
  const Value* wanted = fields.find("tool_choice");
  if (tools != nullptr && !tools->is_list()) fields.refuse("tools", "must be a list");
  if (tools != nullptr && tools->list().size() > limits.num_tools_max) {
    fields.refuse(
        "tools",
        fmt::format(
            "has {} tools: at most {} are allowed", tools->list().size(), limits.num_tools_max));
  }
  std::vector<Value> parameters;  // the schema of each tool's arguments
  for (size_t i = 0; tools != nullptr && i < tools->list().size(); ++i) {
    choice.tools.push_back(tools->list()[i]);
    choice.names.push_back(read_tool(tools->list()[i], fmt::format("tools[{}]", i), parameters));
  }
  choice.may_call = !choice.tools.empty();
  if (wanted == nullptr) return choice;
  if (wanted->is_string() && wanted->text() == "auto") return choice;
  if (wanted->is_string() && wanted->text() == "none") {
    choice.may_call = false;
  } else if (wanted->is_string() && wanted->text() == "required") {
    if (choice.tools.empty()) fields.refuse("tool_choice", "is required, but there are no tools");
    std::string schemas;
    for (size_t i = 0; i < parameters.size(); ++i) {
      schemas += (i > 0 ? "," : "") + call_schema(choice.names[i], parameters[i]);
    }
    choice.schema = fmt::format(R"({{"anyOf":[{}]}})", schemas);
  } else {
    if (!wanted->is_dict())
      fields.refuse("tool_choice", "must be none, auto, required or one function");
    Fields inner(*wanted, "tool_choice");
    inner.text("type", 100);
    const Value* function = inner.find("function");
    const Value* name =
        function != nullptr && function->is_dict() ? function->dict().find("name") : nullptr;
    const auto found = name != nullptr && name->is_string()
                           ? std::find(choice.names.begin(), choice.names.end(), name->text())
                           : choice.names.end();
    if (found == choice.names.end())
      fields.refuse("tool_choice", "names a function that is not among the tools");
    choice.forced = *found;
    choice.schema = parameters[static_cast<size_t>(found - choice.names.begin())].to_json();
  }
  return choice;
}

void read_template_fields(Fields& fields, ChatText::Chat& chat) {
  chat.add_generation_prompt = fields.truth("add_generation_prompt").value_or(true);
  const Value* variables = fields.find("chat_template_kwargs");
  if (variables == nullptr) return;
  if (!variables->is_dict()) fields.refuse("chat_template_kwargs", "must be an object");
  chat.variables = variables->dict();
}

}  // namespace pelago::serve
