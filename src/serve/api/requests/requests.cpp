#include "serve/api/requests/requests.h"

#include <fmt/format.h>

#include <algorithm>

#include "serve/api/api_error.h"
#include "serve/api/requests/chat_fields.h"
#include "serve/api/requests/fields.h"

namespace pelago::serve {

namespace {

void read_model(Fields& fields, const ServedModel& model) {
  const auto name = fields.text("model", 1000);
  if (name && *name != model.id) {
    throw ApiError(
        404,
        fmt::format("the model {} does not exist; this server has {}", shown(*name), model.id),
        "model",
        "model_not_found");
  }
}

void read_sampling(Fields& fields,
                   const ServedModel& model,
                   const ApiLimits& limits,
                   Sampling& sampling) {
  const auto set = [](float& field, const std::optional<double>& given) {
    if (given) field = static_cast<float>(*given);
  };
  set(sampling.temperature, fields.number("temperature", 0, 2));
  set(sampling.top_p, fields.number("top_p", 0, 1));
  // Nothing of the mass still leaves the likeliest token.
  sampling.top_p = std::max(sampling.top_p, 1e-6F);
  set(sampling.min_p, fields.number("min_p", 0, 1));
  set(sampling.repetition_penalty, fields.number("repetition_penalty", 0.01, 10));
  set(sampling.presence_penalty, fields.number("presence_penalty", -2, 2));
  set(sampling.frequency_penalty, fields.number("frequency_penalty", -2, 2));
  if (const auto top_k = fields.whole("top_k", -1, 1'000'000'000))
    sampling.top_k = static_cast<int>(std::max<int64_t>(*top_k, 0));
  if (const auto seed = fields.whole("seed", INT64_MIN, INT64_MAX))
    sampling.seed = static_cast<uint64_t>(*seed);
  const Value* bias = fields.find("logit_bias");
  if (bias == nullptr) return;
  if (!bias->is_dict()) fields.refuse("logit_bias", "must map tokens to numbers");
  if (bias->dict().entries.size() > limits.num_bias_max) {
    fields.refuse("logit_bias",
                  fmt::format("has {} entries: at most {} are allowed",
                              bias->dict().entries.size(),
                              limits.num_bias_max));
  }
  for (const auto& [key, value] : bias->dict().entries) {
    const bool is_token = !key.empty() && key.size() < 10 &&
                          key.find_first_not_of("0123456789") == std::string::npos &&
                          std::stoll(key) < model.text.num_tokens();
    const bool is_good = value.is_number() && value.to_double() >= -100 && value.to_double() <= 100;
    if (!is_token || !is_good) {
      fields.refuse("logit_bias",
                    fmt::format("maps {} to {}: tokens from 0 to {}, numbers from -100 to 100",
                                shown(Value(key)),
                                shown(value),
                                model.text.num_tokens() - 1));
    }
    sampling.logit_bias[static_cast<int32_t>(std::stol(key))] =
        static_cast<float>(value.to_double());
  }
}

std::shared_ptr<const TokenConstraint> make_constraint(Fields& fields,
                                                       std::string_view name,
                                                       const ServedModel& model,
                                                       ConstraintKind kind,
                                                       const std::string& text) {
  if (!model.make_constraint)
    fields.refuse(name, "asks for structured output, which this server does not have");
  auto made = model.make_constraint(kind, text);
  if (!made) fields.refuse(name, fmt::format("cannot be followed: {}", made.error().message));
  return *made;
}

void read_constraint(Fields& fields, const ServedModel& model, GenerateRequest& request) {
  int num_given = 0;
  if (const Value* format = fields.find("response_format")) {
    Fields inner(*format, "response_format");
    const std::string type = inner.text("type", 100).value_or("");
    if (type == "json_object") {
      request.constraint =
          make_constraint(fields, "response_format", model, ConstraintKind::kJsonObject, "");
      ++num_given;
    } else if (type == "json_schema") {
      const Value* holder = inner.find("json_schema");
      const Value* schema =
          holder != nullptr && holder->is_dict() ? holder->dict().find("schema") : nullptr;
      if (schema == nullptr) inner.refuse("json_schema", "needs a schema");
      request.constraint = make_constraint(
          fields, "response_format", model, ConstraintKind::kJsonSchema, schema->to_json());
      ++num_given;
    } else if (type != "text") {
      inner.refuse(
          "type",
          fmt::format("is {}: it must be text, json_object or json_schema", shown(Value(type))));
    }
    inner.ignore({"json_schema"});
    inner.refuse_unknown();
  }
  if (const Value* schema = fields.find("guided_json")) {
    request.constraint = make_constraint(fields,
                                         "guided_json",
                                         model,
                                         ConstraintKind::kJsonSchema,
                                         schema->is_string() ? schema->text() : schema->to_json());
    ++num_given;
  }
  if (const auto pattern = fields.text("guided_regex", 100'000)) {
    request.constraint =
        make_constraint(fields, "guided_regex", model, ConstraintKind::kRegex, *pattern);
    ++num_given;
  }
  if (const auto grammar = fields.text("guided_grammar", 100'000)) {
    request.constraint =
        make_constraint(fields, "guided_grammar", model, ConstraintKind::kGrammar, *grammar);
    ++num_given;
  }
  if (num_given > 1)
    fields.refuse("response_format",
                  "and another form of structured output were given: choose one");
}

// What chats and completions share.
void read_shared(Fields& fields,
                 const ServedModel& model,
                 const ApiLimits& limits,
                 ApiRequest& out,
                 GenerateRequest& request) {
  read_model(fields, model);
  read_sampling(fields, model, limits, request.sampling);
  read_constraint(fields, model, request);
  request.stop = fields.texts("stop", limits.num_stops_max, limits.stop_bytes_max);
  request.stop_tokens =
      fields.tokens("stop_token_ids", limits.num_stops_max, model.text.num_tokens());
  request.num_choices = static_cast<int>(fields.whole("n", 1, limits.num_choices_max).value_or(1));
  const auto best_of = fields.whole("best_of", 1, limits.num_choices_max);
  if (best_of && *best_of != request.num_choices)
    fields.refuse("best_of", "must equal n: other values are not supported");
  request.ignore_end = fields.truth("ignore_eos").value_or(false);
  request.user = fields.text("user", 512).value_or("");
  out.is_stream = fields.truth("stream").value_or(false);
  if (const Value* options = fields.find("stream_options")) {
    if (!out.is_stream) fields.refuse("stream_options", "is only for streams");
    Fields inner(*options, "stream_options");
    out.includes_usage = inner.truth("include_usage").value_or(false);
    inner.ignore({"include_obfuscation", "continuous_usage_stats"});
    inner.refuse_unknown();
  }
  fields.ignore({"store",
                 "metadata",
                 "service_tier",
                 "safety_identifier",
                 "prompt_cache_key",
                 "prompt_cache_retention",
                 "reasoning_effort",
                 "verbosity",
                 "prediction"});
}

// Room for the answer; what is asked beyond the context is cut off there.
int64_t room_for(const GenerateRequest& request,
                 const ServedModel& model,
                 std::optional<int64_t> asked,
                 std::string_view param) {
  const int64_t context = model.engine->context_length();
  const auto num_prompt = static_cast<int64_t>(request.prompt.size());
  if (num_prompt >= context) {
    throw ApiError(
        400,
        fmt::format("the prompt has {} tokens and the context of this model is {}: shorten it",
                    num_prompt,
                    context),
        std::string(param),
        "context_length_exceeded");
  }
  return std::min(asked.value_or(context), context - num_prompt);
}

void check_prompt_bytes(size_t num_bytes, const ApiLimits& limits, std::string_view param) {
  if (num_bytes <= limits.prompt_bytes_max) return;
  throw ApiError(
      400,
      fmt::format(
          "the prompt has {} bytes: at most {} are allowed", num_bytes, limits.prompt_bytes_max),
      std::string(param),
      "context_length_exceeded");
}

// "prompt" or "input": a string, a list of strings, tokens, or a list of lists of tokens.
std::vector<std::vector<int32_t>> read_inputs(Fields& fields,
                                              std::string_view name,
                                              const ServedModel& model,
                                              const ApiLimits& limits,
                                              std::vector<std::string>* texts) {
  const Value* value = fields.find(name);
  if (value == nullptr) fields.refuse(name, "is missing");
  const bool is_one = value->is_string() ||
                      (value->is_list() && !value->list().empty() && value->list()[0].is_int());
  const ValueList one = {*value};
  if (!is_one && !value->is_list())
    fields.refuse(name, "must be a string, tokens, or a list of them");
  const ValueList& items = is_one ? one : value->list();
  if (items.empty() || items.size() > limits.num_prompts_max) {
    fields.refuse(
        name,
        fmt::format("has {} parts: 1 to {} are allowed", items.size(), limits.num_prompts_max));
  }
  std::vector<std::vector<int32_t>> inputs;
  for (const Value& item : items) {
    if (item.is_string()) {
      check_prompt_bytes(item.text().size(), limits, name);
      inputs.push_back(model.text.prompt_tokens(item.text(), true));
      if (texts != nullptr) texts->push_back(item.text());
    } else {
      inputs.push_back(
          tokens_of(item, std::string(name), limits.prompt_bytes_max, model.text.num_tokens()));
      if (texts != nullptr) texts->push_back(model.text.text_of(inputs.back()));
    }
    const auto end = model.text.tokenizer().end_of_text();
    if (inputs.back().empty() && end >= 0) inputs.back().push_back(end);
    if (inputs.back().empty())
      fields.refuse(name, "is empty, and this model has no token to begin with");
  }
  return inputs;
}

}  // namespace

ApiRequest read_completion_request(const Value& body,
                                   const ServedModel& model,
                                   const ApiLimits& limits) {
  Fields fields(body, "");
  ApiRequest out;
  GenerateRequest request;
  read_shared(fields, model, limits, out, request);
  const auto asked = fields.whole("max_tokens", 1, INT64_MAX);
  request.num_logprobs =
      static_cast<int>(fields.whole("logprobs", 0, limits.num_logprobs_max).value_or(-1));
  out.echoes = fields.truth("echo").value_or(false);
  if (out.echoes && request.num_logprobs >= 0)
    fields.refuse("echo", "with logprobs is not supported");
  if (fields.text("suffix", limits.prompt_bytes_max).value_or("") != "")
    fields.refuse("suffix", "is not supported");
  auto inputs = read_inputs(fields, "prompt", model, limits, &out.prompt_texts);
  fields.refuse_unknown();
  if (static_cast<int>(inputs.size()) * request.num_choices > limits.num_choices_max) {
    fields.refuse(
        "n",
        fmt::format(
            "times {} prompts is more than {} answers", inputs.size(), limits.num_choices_max));
  }
  for (auto& input : inputs) {
    GenerateRequest& prompt = out.prompts.emplace_back(request);
    prompt.prompt = std::move(input);
    prompt.max_new_tokens = room_for(prompt, model, asked.value_or(16), "prompt");
  }
  return out;
}

ApiRequest read_chat_request(const Value& body,
                             const ServedModel& model,
                             const ApiLimits& limits,
                             int64_t now_s) {
  Fields fields(body, "");
  ApiRequest out;
  out.is_chat = true;
  GenerateRequest request;
  read_shared(fields, model, limits, out, request);
  auto asked = fields.whole("max_completion_tokens", 1, INT64_MAX);
  if (const auto older = fields.whole("max_tokens", 1, INT64_MAX); older && !asked) asked = older;
  const bool wants_logprobs = fields.truth("logprobs").value_or(false);
  const auto num_top = fields.whole("top_logprobs", 0, limits.num_logprobs_max);
  if (num_top && !wants_logprobs) fields.refuse("top_logprobs", "needs logprobs to be true");
  if (wants_logprobs) request.num_logprobs = static_cast<int>(num_top.value_or(0));
  fields.texts("modalities", 4, 100);
  if (fields.find("audio") != nullptr) fields.refuse("audio", "is not supported");
  for (const std::string_view old : {"functions", "function_call"}) {
    if (fields.find(old) != nullptr)
      fields.refuse(old, "is not supported: use tools and tool_choice");
  }

  ChatText::Chat chat;
  chat.now_s = now_s;
  chat.messages = read_messages(fields, limits);
  const ToolChoice tools = read_tools(fields, limits);
  if (!tools.tools.empty() && tools.may_call) {
    chat.tools = tools.tools;
    out.has_tools = true;
    out.tool_names = tools.names;
    out.forced_tool = tools.forced;
    if (!tools.schema.empty()) {
      if (request.constraint)
        fields.refuse("tool_choice", "and structured output were given: choose one");
      request.constraint =
          make_constraint(fields, "tool_choice", model, ConstraintKind::kJsonSchema, tools.schema);
    }
  }
  read_template_fields(fields, chat);
  fields.refuse_unknown();
  size_t num_bytes = 0;
  for (const Value& message : chat.messages) num_bytes += message.weight() * 16;
  check_prompt_bytes(num_bytes / 2, limits, "messages");
  try {
    request.prompt = model.text.chat_tokens(chat);
  } catch (const TemplateError& error) {
    throw ApiError(
        400, fmt::format("the model's chat template refuses this: {}", error.what()), "messages");
  }
  if (request.prompt.empty()) fields.refuse("messages", "make an empty prompt");
  const auto& end_texts = model.text.end_texts();
  request.stop.insert(request.stop.end(), end_texts.begin(), end_texts.end());
  const auto& end_tokens = model.text.end_tokens();
  if (!request.ignore_end)
    request.stop_tokens.insert(request.stop_tokens.end(), end_tokens.begin(), end_tokens.end());
  request.max_new_tokens = room_for(request, model, asked, "messages");
  out.prompts.push_back(std::move(request));
  return out;
}

EmbeddingRequest read_embedding_request(const Value& body,
                                        const ServedModel& model,
                                        const ApiLimits& limits) {
  Fields fields(body, "");
  EmbeddingRequest out;
  read_model(fields, model);
  const std::string format = fields.text("encoding_format", 100).value_or("float");
  if (format != "float" && format != "base64")
    fields.refuse("encoding_format", "must be float or base64");
  out.as_base64 = format == "base64";
  if (fields.find("dimensions") != nullptr) fields.refuse("dimensions", "is not supported");
  fields.ignore({"user"});
  out.inputs = read_inputs(fields, "input", model, limits, nullptr);
  fields.refuse_unknown();
  for (const auto& input : out.inputs) {
    if (static_cast<int64_t>(input.size()) <= model.engine->context_length()) continue;
    throw ApiError(400,
                   fmt::format("an input has {} tokens and the context of this model is {}",
                               input.size(),
                               model.engine->context_length()),
                   "input",
                   "context_length_exceeded");
  }
  return out;
}

std::vector<int32_t> read_tokenize_request(const Value& body,
                                           const ServedModel& model,
                                           const ApiLimits& limits,
                                           int64_t now_s) {
  Fields fields(body, "");
  read_model(fields, model);
  const bool adds_special = fields.truth("add_special_tokens").value_or(true);
  if (fields.find("messages") != nullptr) {
    ChatText::Chat chat;
    chat.now_s = now_s;
    chat.messages = read_messages(fields, limits);
    const ToolChoice tools = read_tools(fields, limits);
    if (!tools.tools.empty()) chat.tools = tools.tools;
    read_template_fields(fields, chat);
    fields.refuse_unknown();
    try {
      return model.text.chat_tokens(chat);
    } catch (const TemplateError& error) {
      throw ApiError(
          400, fmt::format("the model's chat template refuses this: {}", error.what()), "messages");
    }
  }
  auto text = fields.text("prompt", limits.prompt_bytes_max);
  if (const auto content = fields.text("content", limits.prompt_bytes_max); !text) text = content;
  if (!text) fields.refuse("prompt", "is missing");
  fields.refuse_unknown();
  return model.text.prompt_tokens(*text, adds_special);
}

}  // namespace pelago::serve
