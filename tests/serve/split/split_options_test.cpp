// What a person can get wrong about a split: one line that names it.
#include "serve/server/split_options.h"

#include <doctest/doctest.h>

#include "base/error.h"
#include "model/model_support.h"
#include "serve/local/devices.h"

namespace pelago::serve {
namespace {

using model::failure_of;

ServeOptions split_of(const std::string& prefill, const std::string& decode) {
  ServeOptions options;
  options.folder = "model";
  options.prefill = prefill;
  options.decode = decode;
  return options;
}

std::string complaint(const ServeOptions& options) {
  return failure_of([&] { options.validate(); });
}

bool stands_in(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos && text.find('\n') == std::string::npos;
}

TEST_CASE("a split that cannot be is refused by a line that names what is wrong with it") {
  CHECK(stands_in(complaint(split_of("cpu", "")), "--prefill and --decode belong together"));
  CHECK(stands_in(complaint(split_of("", "cpu")), "--prefill and --decode belong together"));
  CHECK(stands_in(complaint(split_of("gpu7", "cpu")), "device \"gpu7\" is unknown"));
  CHECK(stands_in(complaint(split_of("cuda", "cuda:1")), "device \"cuda\" is unknown"));
  CHECK(stands_in(complaint(split_of("cuda:0,", "cuda:1,cuda:2")), "device \"\" is unknown"));
  CHECK(stands_in(complaint(split_of("emulated:h21", "cpu")), "h21"));
  CHECK(stands_in(complaint(split_of("cpu", "cpu")), "both name cpu"));
  CHECK(stands_in(complaint(split_of("cuda:0", "cuda:0")), "both name cuda:0"));
  ServeOptions twice = split_of("cuda:0,cuda:1", "cuda:2,cuda:0");
  CHECK(stands_in(complaint(twice), "cuda:0 stands there twice"));
  CHECK(stands_in(complaint(split_of("cpu", "cuda:0")), "take two of either"));
  CHECK(
      stands_in(complaint(split_of("cuda:0,cuda:1", "cuda:2")), "names 2 devices and --decode 1"));
  ServeOptions workers = split_of("emulated:910b", "emulated:h20");
  workers.num_workers = 2;
  CHECK(stands_in(complaint(workers), "leave --workers out"));
  ServeOptions device = split_of("cuda:0", "cuda:1");
  device.engine.device = "cuda:2";
  CHECK(stands_in(complaint(device), "leave --device out"));
  ServeOptions alone = {.folder = "model"};
  alone.shares_weights = true;
  CHECK(stands_in(complaint(alone), "--share-weights is for several processes"));
  ServeOptions slow = split_of("emulated:910b", "emulated:h20");
  slow.engine.slowdown = -1;
  CHECK(stands_in(complaint(slow), "slowdown is -1"));
}

TEST_CASE("every pair of a split is a worker") {
  const ServeOptions options =
      split_of("emulated:910b,cpu", "emulated:h20,emulated:h20").resolved();
  CHECK(options.num_workers == 2);
  CHECK(options.engine.device == "emulated:h20,emulated:h20");
  CHECK(ServeOptions{.folder = "model"}.resolved().num_workers == 0);
}

TEST_CASE("an emulated chip holds no more than the chip") {
  model::ModelConfig large = model::preset("1b");
  large.num_hidden_layers = 2000;
  const std::string said = failure_of([&] { emulated_memory_left_gb("emulated:h20", large); });
  CHECK(stands_in(said, "device emulated:h20: the model's"));
  CHECK(stands_in(said, "do not fit"));
  const double left_gb = emulated_memory_left_gb("emulated:h20", model::preset("1b"));
  CHECK(left_gb > 80);
  CHECK(left_gb < 101);
}

TEST_CASE("how much the decode side reads itself is the plan's, where the catalogue knows both") {
  model::ModelConfig config = model::preset("1b");
  config.hidden_size = 4096;
  config.intermediate_size = 11008;
  config.num_hidden_layers = config.num_attention_heads = config.num_key_value_heads = 32;
  config.head_dim = 128;
  const double planned = planned_local_share(config, "emulated:910b", "emulated:h20", {});
  const double other_way = planned_local_share(config, "emulated:h20", "emulated:910b", {});
  CHECK(planned >= 0);
  CHECK(planned < 0.5);
  CHECK(other_way == 0);  // gains nothing: whoever asks for it gets it
  CHECK(planned_local_share(config, "cuda:0", "cuda:1", {}) == 0);
}

}  // namespace
}  // namespace pelago::serve
