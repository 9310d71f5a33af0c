#include "serve/template/chat_text.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "base/files.h"
#include "serve/template/builtins.h"

namespace pelago::serve {

namespace {

// Special tokens in a message pass through the template as single characters of a private plane,
// U+10F000 + index, so that filters see text of the same shape.
constexpr uint32_t kPrivate = 0x10f000;
constexpr size_t kNumPrivate = 0xffe;
constexpr std::string_view kPrivateLead = "\xf4\x8f";  // the first bytes of those characters

std::string private_character(size_t idx) {
  const uint32_t code = kPrivate + static_cast<uint32_t>(idx);
  return {static_cast<char>(0xf0 | (code >> 18)),
          static_cast<char>(0x80 | ((code >> 12) & 0x3f)),
          static_cast<char>(0x80 | ((code >> 6) & 0x3f)),
          static_cast<char>(0x80 | (code & 0x3f))};
}

// What ends a turn in the families' own templates, whatever their configs say.
constexpr std::string_view kTurnEnds[] = {"<|im_end|>",
                                          "<|eot_id|>",
                                          "<|eom_id|>",
                                          "<end_of_turn>",
                                          "<|end|>",
                                          "<turn|>",
                                          "<|end_of_text|>",
                                          "<|endoftext|>"};

constexpr std::string_view kChatMl =
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content or '' }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
constexpr std::string_view kHeaders =
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message.role }}"
    "<|end_header_id|>\n\n{{ (message.content or '') | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}";
constexpr std::string_view kPlain =
    "{{ bos_token }}{% for message in messages %}{{ message.role | capitalize }}: "
    "{{ (message.content or '') | trim }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}";

// "<s>", or {"content": "<s>", ...}.
std::string token_name(const Value& config, const std::string& key) {
  const Value* value = config.dict().find(key);
  if (value != nullptr && value->is_dict()) value = value->dict().find("content");
  return value != nullptr && value->is_string() ? value->text() : "";
}

std::string template_of(const Value& config) {
  const Value* value = config.dict().find("chat_template");
  if (value == nullptr || value->is_none()) return "";
  if (value->is_string()) return value->text();
  // A list of {name, template}: the one for tools also does without.
  std::string chosen;
  for (const Value& item : value->items()) {
    const Value* name = item.dict().find("name");
    const Value* text = item.dict().find("template");
    if (name == nullptr || text == nullptr) continue;
    if (chosen.empty() || name->text() == "tool_use") chosen = text->text();
  }
  return chosen;
}

// OpenAI's form of a message into the one that templates are written for.
Value message_for_template(const Value& message, bool as_strings) {
  ValueDict out;
  for (const auto& [key, value] : message.dict().entries) {
    if (key == "content" && value.is_none() && as_strings) {
      out.set(key, "");
    } else if (key == "tool_calls" && value.is_list()) {
      ValueList calls;
      for (const Value& call : value.list()) {
        ValueDict changed = call.dict();
        const Value* function = changed.find("function");
        const Value* arguments = function != nullptr ? function->dict().find("arguments") : nullptr;
        if (arguments != nullptr && arguments->is_string() && !as_strings) {
          ValueDict parsed = function->dict();
          try {
            parsed.set("arguments", value_of_json(arguments->text()));
          } catch (const TemplateError&) {
            // Not JSON: the model wrote it so, and the template shall see it so.
          }
          changed.set("function", parsed);
        }
        calls.emplace_back(changed);
      }
      out.set(key, calls);
    } else {
      out.set(key, value);
    }
  }
  return out;
}

}  // namespace

ChatText ChatText::read(const std::filesystem::path& folder) {
  const auto text_or = [&](const char* name, const char* otherwise) {
    return std::filesystem::exists(folder / name) ? read_text_file(folder / name)
                                                  : std::string(otherwise);
  };
  try {
    return ChatText(data::Tokenizer::read(folder / "tokenizer.json"),
                    text_or("tokenizer_config.json", "{}"),
                    text_or("chat_template.jinja", ""));
  } catch (const TemplateError& error) {
    fail("{}: tokenizer_config.json or chat_template.jinja: {}", folder.string(), error.what());
  }
}

ChatText::ChatText(data::Tokenizer tokenizer,
                   const std::string& tokenizer_config,
                   const std::string& jinja)
    : tokenizer_(std::move(tokenizer)), by_byte_(256) {
  for (int32_t token = 0; token < tokenizer_.vocab_size(); ++token) {
    const std::string_view text = tokenizer_.special_text(token);
    if (!text.empty()) specials_.push_back({.token = token, .text = std::string(text)});
  }
  std::stable_sort(specials_.begin(), specials_.end(), [](const Special& a, const Special& b) {
    return a.text.size() > b.text.size();
  });
  for (size_t i = 0; i < specials_.size(); ++i) {
    by_byte_[static_cast<unsigned char>(specials_[i].text[0])].push_back(i);
  }
  read_config(value_of_json(tokenizer_config), jinja);
}

void ChatText::read_config(const Value& config, const std::string& jinja) {
  begin_text_ = token_name(config, "bos_token");
  end_text_ = token_name(config, "eos_token");
  begin_token_ = special_token(begin_text_);
  const Value* adds = config.dict().find("add_bos_token");
  // Llama 3's config is silent; its tokenizer adds the token all the same.
  adds_begin_ =
      adds != nullptr && adds->is_bool() ? adds->is_true() : begin_text_ == "<|begin_of_text|>";
  source_ = jinja.empty() ? template_of(config) : jinja;
  if (source_.empty()) take_default_template();
  template_ = std::make_unique<const Template>(source_);
  const auto end_at = [this](std::string_view text) {
    const int32_t token = special_token(text);
    const bool is_new =
        std::find(end_tokens_.begin(), end_tokens_.end(), token) == end_tokens_.end();
    if (token >= 0 && is_new) end_tokens_.push_back(token);
  };
  end_at(end_text_);
  for (const std::string_view text : kTurnEnds) end_at(text);
}

void ChatText::take_default_template() {
  if (special_token("<|im_start|>") >= 0 && special_token("<|im_end|>") >= 0) {
    source_ = kChatMl;
  } else if (special_token("<|start_header_id|>") >= 0 && special_token("<|eot_id|>") >= 0) {
    source_ = kHeaders;
  } else {
    source_ = kPlain;
    end_texts_ = {"\n\nUser:", "\nUser:"};
  }
}

int32_t ChatText::special_token(std::string_view text) const {
  const auto found = std::find_if(specials_.begin(), specials_.end(), [&](const Special& special) {
    return special.text == text;
  });
  return found == specials_.end() ? -1 : found->token;
}

const ChatText::Special* ChatText::special_at(std::string_view text, size_t at) const {
  for (const size_t idx : by_byte_[static_cast<unsigned char>(text[at])]) {
    if (text.compare(at, specials_[idx].text.size(), specials_[idx].text) == 0)
      return &specials_[idx];
  }
  return nullptr;
}

std::string ChatText::protect(const std::string& text) const {
  std::string out;
  size_t copied = 0;
  for (size_t i = 0; i < text.size();) {
    const Special* special = special_at(text, i);
    const size_t idx =
        special == nullptr ? kNumPrivate : static_cast<size_t>(special - specials_.data());
    if (idx >= kNumPrivate) {
      ++i;
      continue;
    }
    out.append(text, copied, i - copied);
    out += private_character(idx);
    i += special->text.size();
    copied = i;
  }
  return copied == 0 ? text : out.append(text, copied);
}

std::string ChatText::unprotect(std::string_view text) const {
  std::string out;
  for (size_t at = text.find(kPrivateLead); at != std::string_view::npos;
       at = text.find(kPrivateLead)) {
    out += text.substr(0, at);
    text.remove_prefix(at);
    const size_t idx = text.size() < 4 ? kNumPrivate
                                       : (static_cast<size_t>(text[2] & 0x3f) << 6) |
                                             static_cast<size_t>(text[3] & 0x3f);
    const size_t length = std::min<size_t>(text.size(), idx < specials_.size() ? 4 : 2);
    out += idx < specials_.size() ? std::string_view(specials_[idx].text) : text.substr(0, length);
    text.remove_prefix(length);
  }
  return out += text;
}

Value ChatText::protect(const Value& value) const {
  if (value.is_string()) return protect(value.text());
  if (value.is_list()) {
    ValueList items;
    for (const Value& item : value.list()) items.push_back(protect(item));
    return items;
  }
  if (!value.is_dict()) return value;
  ValueDict dict;
  for (const auto& [key, item] : value.dict().entries)
    dict.entries.emplace_back(protect(key), protect(item));
  return dict;
}

void ChatText::encode_plain(std::string_view text, std::vector<int32_t>& tokens) const {
  if (text.empty()) return;
  if (text.find(kPrivateLead) == std::string_view::npos) return tokenizer_.encode(text, tokens);
  tokenizer_.encode(unprotect(text), tokens);
}

std::vector<int32_t> ChatText::encode_marked(std::string_view text) const {
  std::vector<int32_t> tokens;
  size_t begin = 0;
  for (size_t i = 0; i < text.size();) {
    const Special* special = special_at(text, i);
    if (special == nullptr) {
      ++i;
      continue;
    }
    encode_plain(text.substr(begin, i - begin), tokens);
    tokens.push_back(special->token);
    i += special->text.size();
    begin = i;
  }
  encode_plain(text.substr(begin), tokens);
  return tokens;
}

std::string ChatText::render(const Chat& chat, bool as_strings) const {
  ValueDict variables;
  for (const auto& [key, value] : chat.variables.entries) variables.set(key, protect(value));
  ValueList messages;
  for (const Value& message : chat.messages) {
    messages.push_back(protect(message_for_template(message, as_strings)));
  }
  variables.set("messages", messages);
  variables.set("tools", chat.tools.is_undefined() ? Value(Value::None{}) : protect(chat.tools));
  variables.set("add_generation_prompt", chat.add_generation_prompt);
  variables.set("bos_token", begin_text_);
  variables.set("eos_token", end_text_);
  return template_->render(variables, chat.now_s);
}

std::vector<int32_t> ChatText::chat_tokens(const Chat& chat) const {
  // Most templates want a tool call's arguments as a mapping and its content as none; some add
  // strings to them. The first error is the one to tell.
  try {
    return encode_marked(render(chat, false));
  } catch (const TemplateError&) {
    const auto first = std::current_exception();
    try {
      return encode_marked(render(chat, true));
    } catch (const TemplateError&) {
      std::rethrow_exception(first);
    }
  }
}

std::string ChatText::chat_prompt(const Chat& chat) const { return unprotect(render(chat, false)); }

std::vector<int32_t> ChatText::prompt_tokens(std::string_view text, bool add_begin) const {
  std::vector<int32_t> tokens = encode_marked(text);
  const bool wants_begin = add_begin && adds_begin_ && begin_token_ >= 0;
  if (wants_begin && (tokens.empty() || tokens[0] != begin_token_)) {
    tokens.insert(tokens.begin(), begin_token_);
  }
  return tokens;
}

std::string ChatText::token_text(int32_t token) const {
  const std::string_view special = tokenizer_.special_text(token);
  return std::string(special.empty() ? tokenizer_.token_bytes(token) : special);
}

std::string ChatText::text_of(const std::vector<int32_t>& tokens) const {
  std::string text;
  for (const int32_t token : tokens) text += token_text(token);
  return text;
}

}  // namespace pelago::serve
