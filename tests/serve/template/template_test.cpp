// What templates give, as Jinja2 3.1 with Hugging Face's settings gave it when the test was
// written.
#include "serve/template/template.h"

#include <doctest/doctest.h>

#include "serve/api/scripted_engine.h"
#include "serve/template/chat_text.h"

namespace pelago::serve {
namespace {

const char* const kVariables = R"({
  "messages": [
    {"role": "system", "content": " Be kind. "},
    {"role": "user", "content": "Hi 'q' \u00e9"},
    {"role": "assistant", "content": null,
     "tool_calls": [{"id": "abcdefghi", "function": {"name": "f", "arguments": {"b": 1, "a": [1.5, true, null]}}}]},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nBye"}],
  "x": 5, "s": "Hello World", "l": [3, 1, 2], "n": null, "d": {"b": 1, "A": 2}})";

std::string render_text(const std::string& source) {
  return Template(source).render(value_of_json(kVariables).dict(), 1700000000);
}

TEST_CASE("expressions give what Python gives") {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"{{ x + 2 * 3 - 1 }} {{ x / 2 }} {{ x // 2 }} {{ -x // 2 }} {{ -x % 3 }} {{ 2 ** 3 }}",
       "10 2.5 2 -3 1 8"},
      {"{{ 'a' ~ 1 ~ none ~ true ~ 1.0 ~ [1, 'b'] }}", "a1NoneTrue1.0[1, 'b']"},
      {"{{ s[0] }}{{ s[-1] }} {{ s[1:3] }} {{ s[::-1] }} {{ l[1:] }} {{ 'é漢'[1] }}",
       "Hd el dlroW olleH [1, 2] 漢"},
      {"{{ s.split('o', 1) }} {{ s.rsplit(' ', 1)[-1] }} {{ ' a '.strip() }}| {{ "
       "s.startswith(('x', 'H')) }}",
       "['Hell', ' World'] World a| True"},
      {"{{ l | sort | join('-') }} {{ l | map('string') | list }} {{ l | sum }} {{ s | lower | "
       "replace('l', 'L', 2) }}",
       "1-2-3 ['3', '1', '2'] 6 heLLo world"},
      {"{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list }}",
       "[\"Hi 'q' é\"]"},
      {"{{ missing }}|{{ missing | default('d') }}|{{ n | default('d', true) }}|{{ d.get('z', 1) "
       "}}|{{ d.z }}",
       "|d|d|1|"},
      {"{{ messages[2].tool_calls[0].function | tojson }}",
       R"({"name": "f", "arguments": {"b": 1, "a": [1.5, true, null]}})"},
      {"{{ d | tojson(indent=2) }} {{ d | dictsort | first }}",
       "{\n  \"b\": 1,\n  \"A\": 2\n} ['A', 2]"},
      {"{{ x is defined and y is not defined }} {{ x is odd }} {{ 'b' in d }} {{ n is none }} {{ x "
       "not in [5] }}",
       "True True True True False"},
      {"{{ 'x' if x > 3 else 'y' }}{{ 'z' if x > 30 }} {{ not x > 3 or x == 5 }} {{ 'A' < 'a' }} "
       "{{ 1 == 1.0 }}",
       "x True True True"},
      {"{{ messages[-1].content.split('</think>')[-1].lstrip('\\n') }}", "Bye"},
      {"{{ strftime_now('%Y') }} {{ range(1, 6, 2) | list }} {{ 'ab' * 2 }} {{ [1] + [2] }} {{ "
       "('a', 'b') | join }}",
       "2023 [1, 3, 5] abab [1, 2] ab"}};
  for (const auto& [source, wanted] : cases) {
    CAPTURE(source);
    CHECK(render_text(source) == wanted);
  }
}

TEST_CASE(
    "statements and the blanks around them are as in Jinja2 with trim_blocks and lstrip_blocks") {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"{% for m in messages if m.role != 'system' %}{{ loop.index }}{{ loop.last }}{{ m.role[0] "
       "}} {% else %}none{% endfor %}",
       "1Falseu 2Falsea 3Truea "},
      {"{% for i in [] %}x{% else %}none{% endfor %}", "none"},
      {"{% set ns = namespace(a=1) %}{% for i in range(3) %}{% set ns.a = ns.a + i %}{% set q = i "
       "%}{% endfor %}{{ ns.a }}{{ q is defined }}",
       "4False"},
      {"{% macro m(a, b='B') %}[{{ a }}{{ b }}]{% endmacro %}{{ m(1) }}{{ m(1, b=2) | lower }}",
       "[1B][12]"},
      {"{% macro w() %}<{{ caller() }}>{% endmacro %}{% call w() %}in{% endcall %}", "<in>"},
      {"{% set t %}a{{ x }}{% endset %}{{ t }}{% filter upper %}b{% endfilter %}{% set a, b = 1, 2 "
       "%}{{ b }}",
       "a5B2"},
      {"{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 4 %}{% break "
       "%}{% endif %}{{ i }}{% endfor %}",
       "023"},
      {"{% if n %}a{% elif '' %}b{% elif x %}c{% else %}d{% endif %}", "c"},
      {"a\n  {% if true %}\n  b\n  {% endif %}\nc\n", "a\n  b\nc"},
      {"a {%- if true -%}  b  {%- endif -%}  c", "abc"},
      {"a\n  {# note #}\nb {{- x -}} c", "a\nb5c"},
      {"{% raw %}{{ x }}{% endraw %}{% generation %}g{% endgeneration %}", "{{ x }}g"}};
  for (const auto& [source, wanted] : cases) {
    CAPTURE(source);
    CHECK(render_text(source) == wanted);
  }
}

TEST_CASE("a broken template and a broken use of one are told with the line") {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"a\n{% if x %}", "line 2"},
      {"{{ x", "has no end"},
      {"{% nope %}", "nope"},
      {"{{ x | nope }}", "nope"},
      {"{{ x is nope }}", "nope"},
      {"{{ 'a' + 1 }}", "string"},
      {"{{ missing.a }}", "missing"},
      {"\n{{ nope() }}", "line 2"},
      {"{{ raise_exception('no tools here') }}", "no tools here"},
      {"{% set x.y = 1 %}", "namespace"},
      {"{{ 1 / 0 }}", "divided by 0"}};
  for (const auto& [source, wanted] : cases) {
    CAPTURE(source);
    CHECK_THROWS_WITH_AS(render_text(source), doctest::Contains(wanted.c_str()), TemplateError);
  }
}

TEST_CASE("a template that would never end, or take all memory, is stopped") {
  const std::vector<std::string> endless = {
      "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
      "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s "
      "%}{% endfor %}",
      "{% set ns = namespace(l=[1]) %}{% for i in range(60) %}{% set ns.l = [ns.l, ns.l] %}{% "
      "endfor %}{{ ns.l }}",
      "{{ 'x' * 99999999999 }}",
      "{{ range(99999999999) | list }}",
      "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
      "{{ " + std::string(5000, '(') + "1" + std::string(5000, ')') + " }}",
      "{% set ns = namespace() %}{% set ns.me = ns %}{{ ns }}"};
  for (const std::string& source : endless) {
    CAPTURE(source.substr(0, 80));
    CHECK_THROWS_AS(Template(source).render({}, 0, {.num_steps_max = 100'000}), TemplateError);
  }
  std::string chain = "{{ 1";
  for (int i = 0; i < 100'000; ++i) chain += "+1";
  CHECK_THROWS_AS(Template(chain + " }}"), TemplateError);
}

TEST_CASE("a model's own template is found in its config, with its special tokens") {
  const std::string config =
      R"({"bos_token": {"content": "<|endoftext|>"}, "eos_token": "<|im_end|>", "add_bos_token": true,
    "chat_template": [{"name": "default", "template": "no"}, {"name": "tool_use", "template": "{{ bos_token }}{{ messages[0].content | upper }}{{ eos_token }}"}]})";
  const ChatText text(scripted_tokenizer(), config, "");
  ChatText::Chat chat;
  chat.messages = value_of_json(R"([{"role": "user", "content": "a<|im_end|>"}])").list();
  const std::string plain = "A<|im_end|>";
  std::vector<int32_t> wanted = {kEndOfText};
  wanted.insert(wanted.end(), plain.begin(), plain.end());
  wanted.push_back(kImEnd);
  CHECK(text.chat_tokens(chat) == wanted);
  CHECK(text.chat_prompt(chat) == "<|endoftext|>A<|im_end|><|im_end|>");
  CHECK(text.prompt_tokens("b", true) == std::vector<int32_t>{kEndOfText, 'b'});
  CHECK(text.end_tokens().front() == kImEnd);
  CHECK_THROWS_AS(ChatText(scripted_tokenizer(), "{}", "{% if %}"), TemplateError);
}

TEST_CASE("a template that adds strings to a call's arguments gets them as a string") {
  const ChatText text(
      scripted_tokenizer(),
      "{}",
      "{% for m in messages %}{{ m.content + m.tool_calls[0].function.arguments }}{% endfor %}");
  ChatText::Chat chat;
  chat.messages =
      value_of_json(
          R"([{"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}])")
          .list();
  CHECK(text.chat_tokens(chat) == std::vector<int32_t>{'{', '}'});
  const ChatText mapping(
      scripted_tokenizer(), "{}", "{{ messages[0].tool_calls[0].function.arguments | length }}");
  CHECK(mapping.chat_tokens(chat) == std::vector<int32_t>{'0'});
}

TEST_CASE("JSON of strangers is bounded and keeps the order of its keys") {
  CHECK(value_of_json(R"({"b": 1, "a": {"c": "\u00e9"}, "b": 2})").to_json() ==
        R"({"b": 2, "a": {"c": "é"}})");
  CHECK_THROWS_WITH_AS(
      value_of_json(std::string(65, '[')), doctest::Contains("nested deeper"), TemplateError);
  CHECK_THROWS_WITH_AS(value_of_json("[1,1,1,1]", {.num_values_max = 3}),
                       doctest::Contains("more than 3 values"),
                       TemplateError);
  CHECK_THROWS_AS(value_of_json("{\"a\": \"\xff\"}"), TemplateError);
  CHECK(json_quoted("a\x80\xc3\xa9\xed\xa0\x80\"\n") ==
        "\"a\xef\xbf\xbd\xc3\xa9\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\\\"\\n\"");
}

}  // namespace
}  // namespace pelago::serve
