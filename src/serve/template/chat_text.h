// From what people write to a model's tokens: the chat template of the model's folder, and special
// tokens. A special token stands for itself only where the template (or, in a bare completion, the
// caller) wrote it: what a message holds is text, even if it spells "<|im_end|>", so that nobody
// can end his own turn and speak as the system.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "data/tokenizer.h"
#include "serve/template/template.h"
#include "serve/template/value.h"

namespace pelago::serve {

class ChatText {
 public:
  /// Reads tokenizer.json, and chat_template.jinja or tokenizer_config.json's chat_template. A
  /// model without one gets a plain template for its special tokens, or "User: ... Assistant:".
  /// Throws Failure naming the file, the line and what is wrong.
  static ChatText read(const std::filesystem::path& folder);
  /// tokenizer_config: its text, "{}" for none. jinja: replaces the config's template if not empty.
  ChatText(data::Tokenizer tokenizer,
           const std::string& tokenizer_config,
           const std::string& jinja);

  struct Chat {
    ValueList messages;        // as the API has them
    Value tools = {};          // a list; undefined if there are none
    ValueDict variables = {};  // further names for the template ("enable_thinking")
    bool add_generation_prompt = true;
    int64_t now_s = 0;  // seconds since 1970, for templates that tell the date
  };
  /// Throws TemplateError with the template's own words if it refuses the messages.
  std::vector<int32_t> chat_tokens(const Chat& chat) const;
  std::string chat_prompt(const Chat& chat) const;  // for people: what chat_tokens() encodes

  /// A bare prompt: special tokens in it are recognised; add_begin puts the model's first token in
  /// front if the model was trained with one.
  std::vector<int32_t> prompt_tokens(std::string_view text, bool add_begin) const;
  /// A token's text, special or not.
  std::string token_text(int32_t token) const;
  /// A text of tokens, special ones as they are written.
  std::string text_of(const std::vector<int32_t>& tokens) const;

  const data::Tokenizer& tokenizer() const { return tokenizer_; }
  int64_t num_tokens() const { return tokenizer_.vocab_size(); }
  /// Tokens and texts at which an answer in a chat ends.
  const std::vector<int32_t>& end_tokens() const { return end_tokens_; }
  const std::vector<std::string>& end_texts() const { return end_texts_; }
  const std::string& template_source() const { return source_; }

 private:
  struct Special {
    int32_t token = 0;
    std::string text;
  };
  void read_config(const Value& config, const std::string& jinja);
  void take_default_template();
  int32_t special_token(std::string_view text) const;
  Value protect(const Value& value) const;
  std::string protect(const std::string& text) const;
  std::string unprotect(std::string_view text) const;
  void encode_plain(std::string_view text, std::vector<int32_t>& tokens) const;
  std::vector<int32_t> encode_marked(std::string_view text) const;
  const Special* special_at(std::string_view text, size_t at) const;
  std::string render(const Chat& chat, bool as_strings) const;

  data::Tokenizer tokenizer_;
  std::vector<Special> specials_;             // longest first
  std::vector<std::vector<size_t>> by_byte_;  // of specials_, by first byte
  std::string source_, begin_text_, end_text_;
  int32_t begin_token_ = -1;
  bool adds_begin_ = false;
  std::vector<int32_t> end_tokens_;
  std::vector<std::string> end_texts_;
  std::unique_ptr<const Template> template_;
};

}  // namespace pelago::serve
