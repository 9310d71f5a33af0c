// One model that is being served: the engine that answers and the text around its tokens.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "serve/engine.h"
#include "serve/grammar/constraint_maker.h"
#include "serve/template/chat_text.h"

namespace pelago::serve {

struct ServedModel {
  std::string id;         // what clients call it
  int64_t created_s = 0;  // seconds since 1970
  ChatText text;
  std::unique_ptr<Engine> engine;
  ConstraintMaker make_constraint = {};  // none: requests for structured output are refused
};
/// shared: owners are the API and the requests that the model is answering.
using ServedModelPtr = std::shared_ptr<const ServedModel>;

}  // namespace pelago::serve
