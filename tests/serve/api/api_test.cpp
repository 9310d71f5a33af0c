#include "serve/api/api.h"

#include <doctest/doctest.h>

#include <deque>
#include <filesystem>
#include <fstream>

#include "base/error.h"
#include "serve/api/scripted_engine.h"
#include "serve/http/raw_client.h"

namespace pelago::serve {
namespace {

/// An API in this process, on a port of its own.
struct ApiUnderTest {
  explicit ApiUnderTest(ScriptedEngine::Script script = {}, ApiOptions options = {})
      : api(std::move(options)), server({.error_response = Api::http_error}) {
    auto made = std::make_unique<ScriptedEngine>(std::move(script));
    engine = made.get();
    api.set_model(
        std::make_unique<ServedModel>(ServedModel{.id = "m",
                                                  .created_s = 7,
                                                  .text = ChatText(scripted_tokenizer(), "{}", ""),
                                                  .engine = std::move(made)}));
    api.add_routes(server);
    server.start();
  }
  std::string request(const std::string& method,
                      const std::string& path,
                      const std::string& body,
                      const std::string& headers = "") const {
    return method + " " + path + " HTTP/1.1\r\nHost: localhost\r\n" + headers +
           "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
  }
  std::string ask(const std::string& method,
                  const std::string& path,
                  const std::string& body = "",
                  const std::string& headers = "") const {
    RawClient client(server.port());
    client.send(request(method, path, body, headers));
    return client.read_response();
  }
  std::string post(const std::string& path, const std::string& body) const {
    return ask("POST", path, body);
  }
  std::string stream(const std::string& path, const std::string& body) const {
    RawClient client(server.port());
    client.send(request("POST", path, body));
    return client.read_until("\r\n0\r\n\r\n");
  }

  Api api;
  ScriptedEngine* engine;  // the model's, which api holds
  HttpServer server;
};

Value json_in(const std::string& response) {
  return value_of_json(response.substr(response.find("\r\n\r\n") + 4));
}

// "choices.0.text" of a JSON body.
Value at(const Value& json, const std::string& path) {
  Value value = json;
  for (size_t start = 0; start <= path.size();) {
    const size_t end = std::min(path.find('.', start), path.size());
    const std::string name = path.substr(start, end - start);
    const Value* found = nullptr;
    if (value.is_list() && std::stoul(name) < value.list().size())
      found = &value.list()[std::stoul(name)];
    if (value.is_dict()) found = value.dict().find(name);
    if (found == nullptr) return {};
    value = Value(*found);
    start = end + 1;
  }
  return value;
}
std::string text_at(const std::string& response, const std::string& path) {
  return at(json_in(response), path).to_text();
}
int status_of(const std::string& response) {
  return response.size() > 12 ? std::stoi(response.substr(9, 3)) : 0;
}

// Every answer that refuses has OpenAI's error body.
void check_refused(const std::string& response,
                   int status,
                   const std::string& param,
                   const std::string& says = "") {
  CAPTURE(response);
  CHECK(status_of(response) == status);
  CHECK(text_at(response, "error.param") == (param.empty() ? "None" : param));
  CHECK(text_at(response, "error.message").find(says) != std::string::npos);
  CHECK_FALSE(text_at(response, "error.type").empty());
}

const std::string kChat = R"("messages":[{"role":"user","content":"hi"}])";

TEST_CASE("a completion has its text, usage and reason in OpenAI's form") {
  const ApiUnderTest api;
  const std::string answer = api.post(
      "/v1/completions", R"({"model":"m","prompt":"abc","max_tokens":9,"seed":3,"stop":"x"})");
  CHECK(status_of(answer) == 200);
  CHECK(text_at(answer, "object") == "text_completion");
  CHECK(text_at(answer, "choices.0.text") == "Hello");
  CHECK(text_at(answer, "choices.0.finish_reason") == "stop");
  CHECK(text_at(answer, "usage.prompt_tokens") == "3");
  CHECK(text_at(answer, "usage.total_tokens") == "8");
  CHECK(text_at(answer, "usage.prompt_tokens_details.cached_tokens") == "2");
  const GenerateRequest asked = api.engine->asked();
  CHECK(asked.prompt == std::vector<int32_t>{'a', 'b', 'c'});
  CHECK(asked.max_new_tokens == 9);
  CHECK(asked.sampling.seed == 3);
  CHECK(asked.stop == std::vector<std::string>{"x"});
}

TEST_CASE("a chat is put into the template's form, and a special token in a message stays text") {
  const ApiUnderTest api;
  const std::string answer = api.post("/v1/chat/completions",
                                      R"({"messages":[{"role":"user","content":"a<|im_end|>b"}]})");
  CHECK(text_at(answer, "choices.0.message.content") == "Hello");
  CHECK(text_at(answer, "choices.0.message.role") == "assistant");
  std::vector<int32_t> wanted = {kImStart};
  for (const char c : std::string("user\na<|im_end|>b")) wanted.push_back(c);
  wanted.push_back(kImEnd);
  wanted.push_back('\n');
  wanted.push_back(kImStart);
  for (const char c : std::string("assistant\n")) wanted.push_back(c);
  const GenerateRequest asked = api.engine->asked();
  CHECK(asked.prompt == wanted);
  CHECK(asked.max_new_tokens == 1000 - static_cast<int64_t>(wanted.size()));
  CHECK(std::find(asked.stop_tokens.begin(), asked.stop_tokens.end(), kImEnd) !=
        asked.stop_tokens.end());
}

TEST_CASE("a stream has a role, the pieces, the reason, the usage and an end") {
  const ApiUnderTest api;
  const std::string answer =
      api.stream("/v1/chat/completions",
                 "{" + kChat + R"(,"stream":true,"stream_options":{"include_usage":true}})");
  const char* const in_order[] = {"text/event-stream",
                                  R"("delta":{"role":"assistant","content":""})",
                                  R"("delta":{"content":"Hel"})",
                                  R"("delta":{"content":"lo"})",
                                  R"("delta":{},"logprobs":null,"finish_reason":"stop")",
                                  R"("choices":[],"usage":{)",
                                  "data: [DONE]\n\n"};
  size_t place = 0;
  for (const char* part : in_order) {
    CAPTURE(part);
    place = answer.find(part, place);
    CHECK(place != std::string::npos);
  }
  const std::string text = api.stream("/v1/completions", R"({"prompt":"a","stream":true})");
  CHECK(text.find(R"("text":"Hel")") != std::string::npos);
}

TEST_CASE("several choices, several prompts, logprobs and echo come back in their places") {
  const ApiUnderTest api;
  const std::string answer =
      api.post("/v1/completions", R"({"prompt":["a",[98,99]],"n":2,"echo":true})");
  for (const auto& [place, text] : std::map<std::string, std::string>{
           {"0", "aHello"}, {"1", "aHello"}, {"2", "bcHello"}, {"3", "bcHello"}}) {
    CHECK(text_at(answer, "choices." + place + ".text") == text);
    CHECK(text_at(answer, "choices." + place + ".index") == place);
  }
  CHECK(text_at(answer, "usage.completion_tokens") == "10");
  const std::string chat =
      api.post("/v1/chat/completions", "{" + kChat + R"(,"logprobs":true,"top_logprobs":1})");
  CHECK(text_at(chat, "choices.0.logprobs.content.0.token") == "H");
  CHECK(text_at(chat, "choices.0.logprobs.content.0.bytes.0") == "72");
  CHECK(text_at(chat, "choices.0.logprobs.content.4.top_logprobs.0.token") == "A");
}

TEST_CASE(
    "calls of tools are found in every family's form, and text that only looks like one is text") {
  const std::string tools =
      R"("tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}])";
  const auto answer = [&](std::vector<std::string> pieces) {
    const ApiUnderTest api({.pieces = std::move(pieces)});
    return api.post("/v1/chat/completions", "{" + kChat + "," + tools + "}");
  };
  const std::vector<std::vector<std::string>> calls = {
      {"<tool", "_call>\n{\"name\": \"f\", \"arguments\": {\"a\"", ": 1}}\n</tool_call>"},
      {"{\"name\": \"f\", \"parameters\": {\"a\": 1}}"},
      {"[{\"name\": \"f\", \"arguments\": {\"a\": 1}}]"},
      {"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{\"a\": "
       "1}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"}};
  for (const auto& pieces : calls) {
    const std::string found = answer(pieces);
    CAPTURE(found);
    CHECK(text_at(found, "choices.0.message.tool_calls.0.function.name") == "f");
    CHECK(text_at(found, "choices.0.message.tool_calls.0.function.arguments") == "{\"a\": 1}");
    CHECK(text_at(found, "choices.0.message.tool_calls.0.id").size() == 9);
    CHECK(text_at(found, "choices.0.message.content") == "None");
    CHECK(text_at(found, "choices.0.finish_reason") == "tool_calls");
  }
  for (const std::string text : {"{\"name\": \"other\", \"arguments\": {}}",
                                 "{ not json",
                                 "a <tool_call> b",
                                 "<tool",
                                 "x {\"name\": \"f\"}"}) {
    CHECK(text_at(answer({text}), "choices.0.message.content") == text);
  }
  const ApiUnderTest api(
      {.pieces = {"Well. <tool_", "call>{\"name\":\"f\",\"arguments\":{}}</tool_call>"}});
  const std::string streamed =
      api.stream("/v1/chat/completions", "{" + kChat + "," + tools + R"(,"stream":true})");
  CHECK(streamed.find(R"("content":"Well. ")") != std::string::npos);
  CHECK(streamed.find(R"("tool_calls":[{"index":0,"id":")") != std::string::npos);
  CHECK(streamed.find("<tool") == std::string::npos);
}

// A field of both kinds of request, and a value that it must not have.
std::vector<std::pair<std::string, std::string>> bad_fields() {
  return {{"temperature", "-1"},
          {"temperature", "2.1"},
          {"temperature", "\"hot\""},
          {"temperature", "1e300"},
          {"temperature", "[]"},
          {"top_p", "1.1"},
          {"top_p", "-0.1"},
          {"min_p", "2"},
          {"top_k", "-2"},
          {"top_k", "0.5"},
          {"n", "0"},
          {"n", "1000000000"},
          {"n", "-1"},
          {"n", "true"},
          {"n", "\"2\""},
          {"best_of", "3"},
          {"max_tokens", "0"},
          {"max_tokens", "-5"},
          {"max_tokens", "1.5"},
          {"max_tokens", "\"9\""},
          {"presence_penalty", "3"},
          {"frequency_penalty", "-3"},
          {"repetition_penalty", "0"},
          {"seed", "\"x\""},
          {"seed", "1e300"},
          {"stream", "\"yes\""},
          {"stream", "1"},
          {"user", "7"},
          {"logit_bias", "[]"},
          {"logit_bias", "{\"999\":1}"},
          {"logit_bias", "{\"1\":101}"},
          {"logit_bias", "{\"x\":1}"},
          {"logit_bias", "{\"-1\":1}"},
          {"stop", "7"},
          {"stop", "[7]"},
          {"stop", "[\"\"]"},
          {"stop_token_ids", "[260]"},
          {"stream_options", "{}"},
          {"guided_regex", "\"a\""},
          {"unheard_of", "1"}};
}

TEST_CASE("every field is refused by name if its type or range is wrong") {
  const ApiUnderTest api;
  for (const auto& [field, value] : bad_fields()) {
    check_refused(api.post("/v1/completions", R"({"prompt":"a",")" + field + "\":" + value + "}"),
                  400,
                  field);
    if (field != "best_of")
      check_refused(
          api.post("/v1/chat/completions", "{" + kChat + ",\"" + field + "\":" + value + "}"),
          400,
          field);
  }
  for (const std::string prompt :
       {"7", "{}", "[]", "[\"a\",7]", "[1,-1]", "[1,260]", "[[]]x", "[1.5]"}) {
    CHECK(status_of(api.post("/v1/completions", "{\"prompt\":" + prompt + "}")) == 400);
  }
  check_refused(api.post("/v1/completions", R"({"prompt":"a","logprobs":21})"), 400, "logprobs");
  check_refused(
      api.post("/v1/chat/completions", "{" + kChat + R"(,"top_logprobs":2})"), 400, "top_logprobs");
  check_refused(api.post("/v1/completions", R"({"prompt":"a","temprature":1})"),
                400,
                "temprature",
                "did you mean temperature?");
  check_refused(
      api.post("/v1/completions", R"({"prompt":"a","model":"other"})"), 404, "model", "other");
  CHECK(api.engine->num_asked() == 0);
}

TEST_CASE("messages and tools are refused where they are wrong") {
  const ApiUnderTest api;
  const auto refused = [&](const std::string& messages, const std::string& param) {
    check_refused(api.post("/v1/chat/completions", "{\"messages\":" + messages + "}"), 400, param);
  };
  refused("[]", "messages");
  refused("\"hi\"", "messages");
  refused("[7]", "messages[0]");
  refused(R"([{"role":"wizard","content":"x"}])", "messages[0].role");
  refused(R"([{"role":"user"}])", "messages[0].content");
  refused(R"([{"role":"user","content":7}])", "messages[0].content");
  refused(R"([{"role":"user","content":[{"type":"image_url","image_url":{"url":"x"}}]}])",
          "messages[0].content[0].type");
  refused(R"([{"role":"user","content":"x","colour":"red"}])", "messages[0].colour");
  const auto tools = [&](const std::string& rest, const std::string& param) {
    check_refused(api.post("/v1/chat/completions", "{" + kChat + "," + rest + "}"), 400, param);
  };
  tools(R"("tools":7)", "tools");
  tools(R"("tools":[{"type":"function"}])", "tools[0].function");
  tools(R"("tools":[{"type":"function","function":{"name":"a b"}}])", "tools[0].function.name");
  tools(R"("tool_choice":"required")", "tool_choice");
  tools(R"("tool_choice":{"type":"function","function":{"name":"g"}})", "tool_choice");
  tools(R"("response_format":{"type":"yaml"})", "response_format.type");
}

TEST_CASE("what is too long, too deep or no JSON at all is refused, and the server goes on") {
  const ApiUnderTest api;
  check_refused(api.post("/v1/completions", ""), 400, "");
  check_refused(api.post("/v1/completions", "{\"prompt\":"), 400, "");
  check_refused(api.post("/v1/completions", "{\"prompt\": NaN}"), 400, "");
  check_refused(api.post("/v1/completions", "[1]"), 400, "");
  check_refused(api.post("/v1/completions", "{\"prompt\":\"\xff\xfe\"}"), 400, "");
  check_refused(api.post("/v1/completions", std::string(100'000, '[')), 400, "", "nested deeper");
  check_refused(api.post("/v1/completions", R"({"prompt":")" + std::string(2000, 'a') + "\"}"),
                400,
                "prompt",
                "context");
  check_refused(
      api.post("/v1/completions", R"({"prompt":")" + std::string(10'000'000, 'a') + "\"}"),
      400,
      "prompt",
      "10000000 tokens");
  check_refused(api.post("/v1/completions", R"({"prompt":")" + std::string(17 << 20, 'a') + "\"}"),
                400,
                "prompt",
                "bytes");
  std::string stops = "[\"a\"";
  for (int i = 1; i < 10'000; ++i) stops += ",\"a\"";
  check_refused(api.post("/v1/completions", R"({"prompt":"a","stop":)" + stops + "]}"),
                400,
                "stop",
                "10000 strings");
  check_refused(api.ask("GET", "/v1/nothing"), 404, "");
  check_refused(api.ask("GET", "/v1/completions"), 404, "");
  CHECK(status_of(api.post("/v1/completions", R"({"prompt":"a"})")) == 200);
}

TEST_CASE("a client that leaves a stream has its request cancelled") {
  const ApiUnderTest api({.waits = true});
  RawClient client(api.server.port());
  client.send(api.request("POST", "/v1/chat/completions", "{" + kChat + R"(,"stream":true})"));
  client.read_until("Hel");
  client.close();
  api.engine->wait_for_cancel();
  const ApiUnderTest patient({.waits = true});
  RawClient waiting(patient.server.port());
  waiting.send(patient.request("POST", "/v1/chat/completions", "{" + kChat + "}"));
  patient.engine->asked();
  waiting.close();
  patient.engine->wait_for_cancel();
}

TEST_CASE(
    "an engine that is full says 429, one that is not ready 503, one that breaks tells the "
    "stream") {
  const ApiUnderTest full({.is_full = true});
  const std::string refused = full.post("/v1/completions", R"({"prompt":"a"})");
  check_refused(refused, 429, "", "too many");
  CHECK(refused.find("Retry-After: ") != std::string::npos);
  const ApiUnderTest loading({.is_ready = false});
  check_refused(loading.post("/v1/completions", R"({"prompt":"a"})"), 503, "");
  CHECK(status_of(loading.ask("GET", "/ready")) == 503);
  CHECK(status_of(loading.ask("GET", "/health")) == 200);
  const ApiUnderTest broken({.finish = Finish::kError, .error = "its worker is gone"});
  check_refused(broken.post("/v1/completions", R"({"prompt":"a"})"), 500, "", "its worker is gone");
  const std::string streamed = broken.stream("/v1/completions", R"({"prompt":"a","stream":true})");
  CHECK(streamed.find(R"(data: {"error":{"message":"its worker is gone")") != std::string::npos);
  CHECK(streamed.find("[DONE]") == std::string::npos);
}

TEST_CASE("keys let in those who have them, within their bounds") {
  ApiOptions options;
  options.keys = {{.name = "lab", .key = "sk-0123456789abcdef", .requests_per_minute = 2},
                  {.name = "one", .key = "sk-fedcba9876543210", .concurrent = 1}};
  const ApiUnderTest api({.waits = true}, options);
  const std::string lab = "Authorization: Bearer sk-0123456789abcdef\r\n",
                    one = "Authorization: Bearer sk-fedcba9876543210\r\n";
  check_refused(api.post("/v1/completions", R"({"prompt":"a"})"), 401, "", "missing");
  check_refused(api.ask("POST",
                        "/v1/completions",
                        R"({"prompt":"a"})",
                        "Authorization: Bearer sk-0123456789abcdeX\r\n"),
                401,
                "");
  check_refused(api.ask("GET", "/v1/models", "", "Authorization: Basic x\r\n"), 401, "");
  CHECK(status_of(api.ask("GET", "/metrics")) == 401);
  CHECK(status_of(api.ask("GET", "/health")) == 200);
  CHECK(status_of(api.ask("GET", "/v1/models", "", lab)) == 200);
  for (int i = 0; i < 2; ++i)
    CHECK(status_of(api.ask("POST", "/tokenize", R"({"prompt":"a"})", lab)) == 200);
  check_refused(
      api.ask("POST", "/tokenize", R"({"prompt":"a"})", lab), 429, "", "2 requests a minute");
  RawClient busy(api.server.port());
  busy.send(api.request("POST", "/v1/completions", R"({"prompt":"a","stream":true})", one));
  busy.read_until("Hel");
  check_refused(api.ask("POST", "/tokenize", R"({"prompt":"a"})", one), 429, "", "at once");
}

TEST_CASE("a key file is read, and refused where it is wrong") {
  const auto path =
      std::filesystem::temp_directory_path() / ("pelago-keys-" + std::to_string(::getpid()));
  const auto read = [&](const std::string& text) {
    std::ofstream(path) << text;
    return read_key_file(path);
  };
  const std::string good = "[[key]]\nname = \"a\"\nkey = \"0123456789abcdef\"\nconcurrent = 3\n";
  CHECK(read(good).at(0).concurrent == 3);
  CHECK_THROWS_WITH_AS(read(good + good), doctest::Contains("two keys have this name"), Failure);
  CHECK_THROWS_WITH_AS(read("[[key]]\nname = \"a\"\nkey = \"short\"\n"),
                       doctest::Contains("16 characters"),
                       Failure);
  CHECK_THROWS_WITH_AS(read(good + "colour = 1\n"), doctest::Contains("colour"), Failure);
  CHECK_THROWS_WITH_AS(read(""), doctest::Contains("no [[key]]"), Failure);
  std::filesystem::remove(path);
}

TEST_CASE("pages of other sites and names of other machines are refused unless they were allowed") {
  const ApiUnderTest api;
  check_refused(
      api.ask("POST", "/v1/completions", R"({"prompt":"a"})", "Origin: http://evil.example\r\n"),
      403,
      "");
  CHECK(status_of(api.ask(
            "POST", "/v1/completions", R"({"prompt":"a"})", "Origin: http://localhost\r\n")) ==
        200);
  RawClient rebound(api.server.port());
  rebound.send("GET /v1/models HTTP/1.1\r\nHost: evil.example\r\n\r\n");
  check_refused(rebound.read_response(), 421, "");
  ApiOptions options;
  options.cors_origins = {"https://app.example"};
  const ApiUnderTest open({}, options);
  const std::string preflight =
      open.ask("OPTIONS", "/v1/completions", "", "Origin: https://app.example\r\n");
  CHECK(status_of(preflight) == 204);
  CHECK(preflight.find("Access-Control-Allow-Origin: https://app.example\r\n") !=
        std::string::npos);
  CHECK(status_of(open.ask(
            "OPTIONS", "/v1/completions", "", "Origin: https://other.example\r\n")) == 403);
}

TEST_CASE("models, embeddings, tokens and metrics answer") {
  const ApiUnderTest api;
  CHECK(text_at(api.ask("GET", "/v1/models"), "data.0.id") == "m");
  CHECK(text_at(api.ask("GET", "/v1/models/m"), "max_model_len") == "1000");
  CHECK(status_of(api.ask("GET", "/v1/models/x")) == 404);
  const std::string vectors = api.post("/v1/embeddings", R"({"input":["a","bcd"],"model":"m"})");
  CHECK(text_at(vectors, "data.1.embedding.2") == "3");
  CHECK(text_at(vectors, "usage.prompt_tokens") == "4");
  // 0.6, -0.8 and 1 as little-endian floats.
  CHECK(text_at(api.post("/v1/embeddings", R"({"input":"a","encoding_format":"base64"})"),
                "data.0.embedding") == "mpkZP83MTL8AAIA/");
  CHECK(text_at(api.post("/tokenize", R"({"prompt":"a<|im_end|>"})"), "tokens") == "[97, 258]");
  CHECK(text_at(api.post("/detokenize", R"({"tokens":[104,105,258]})"), "prompt") ==
        "hi<|im_end|>");
  check_refused(api.post("/detokenize", R"({"tokens":[260]})"), 400, "tokens");
  api.post("/v1/completions", R"({"prompt":"a"})");
  const std::string metrics = api.ask("GET", "/metrics");
  for (const char* line :
       {"pelago_requests_total{route=\"/v1/completions\",status=\"200\",key=\"\"} 1\n",
        "pelago_requests_running 3\n",
        "pelago_completion_tokens_total 77\n",
        "pelago_request_seconds_count 1\n"}) {
    CAPTURE(line);
    CHECK(metrics.find(line) != std::string::npos);
  }
}

TEST_CASE("a replaced model ends the streams it has begun, and is let go after them") {
  ApiUnderTest api({.waits = true});
  RawClient client(api.server.port());
  client.send(api.request("POST", "/v1/completions", R"({"prompt":"a","stream":true})"));
  client.read_until("Hel");
  api.api.set_model(std::make_unique<ServedModel>(ServedModel{
      .id = "m2",
      .text = ChatText(scripted_tokenizer(), "{}", ""),
      .engine = std::make_unique<ScriptedEngine>(ScriptedEngine::Script{.pieces = {"new"}})}));
  CHECK(api.api.release_idle_models() == 1);
  CHECK(text_at(api.post("/v1/completions", R"({"prompt":"a"})"), "choices.0.text") == "new");
  client.close();
  while (api.api.release_idle_models() > 0) std::this_thread::yield();
}

}  // namespace
}  // namespace pelago::serve
