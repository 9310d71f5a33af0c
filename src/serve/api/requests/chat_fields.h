// Messages and tools of a chat, as OpenAI's API has them.
#pragma once

#include <string>
#include <vector>

#include "serve/api/requests/fields.h"
#include "serve/api/requests/requests.h"
#include "serve/template/chat_text.h"

namespace pelago::serve {

/// "messages": roles known, contents as one text each. Throws ApiError 400.
ValueList read_messages(Fields& fields, const ApiLimits& limits);

struct ToolChoice {
  ValueList tools;  // as they were given
  std::vector<std::string> names;
  bool may_call = false;
  std::string forced;  // the answer is the arguments of this tool
  std::string schema;  // JSON schema of the whole answer, where a call must come
};
/// "tools", "tool_choice" and "parallel_tool_calls". Throws ApiError 400.
ToolChoice read_tools(Fields& fields, const ApiLimits& limits);

/// "chat_template_kwargs" and "add_generation_prompt".
void read_template_fields(Fields& fields, ChatText::Chat& chat);

}  // namespace pelago::serve
