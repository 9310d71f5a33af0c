// `pelago serve`: a model folder behind the API, the chat page beside it, a new checkpoint in its
// place without a stream dropped.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "plan/serving/serving_plan.h"
#include "serve/api/api.h"
#include "serve/http/http_server.h"
#include "serve/http/static_files.h"
#include "serve/local/local_engine.h"

namespace pelago::serve {

struct ServeOptions {
  std::filesystem::path folder;    // Hugging Face's layout, or a run whose export is in model/
  std::string name = {};           // what clients call the model; empty: the folder's name
  std::string host = "127.0.0.1";  // only this machine; another needs keys, or is_insecure
  int port = 8000;                 // 0: any free one
  std::filesystem::path keys_path = {};  // API keys (serve/api/keys.h); empty: none
  bool is_insecure = false;              // open to all who reach the port, said so on purpose
  std::string certificate_path = {}, key_path = {};  // PEM: https
  std::vector<std::string> cors_origins = {};        // sites whose pages may ask; none by default
  int num_connections_max = 2048;
  double drain_s = 30;          // what answers get to end in when the server is to stop
  bool has_page = true;         // the chat page at /
  int num_workers = 0;          // processes behind a router; 0: the engine is in this one
  bool shares_weights = false;  // workers on processors: one packed copy for all
  EngineOptions engine = {};    // of workers together: memory; device may name several, by commas
  /// A split: devices that read prompts and, as many, devices that write the answers, by commas.
  /// Each pair is a worker. Both empty: every device does both.
  std::string prefill = {}, decode = {};
  plan::ServingLoad load = {};    // expected: how much of a prompt the decode side reads itself
  void validate() const;          // throws Failure (exit 2) naming option and remedy
  ServeOptions resolved() const;  // a split's pairs as workers and their devices
};

/// The folder of config.json: the one named, or a run's export in it. Throws Failure (exit 2).
std::filesystem::path model_folder(const std::filesystem::path& path);

class ModelServer {
 public:
  /// Opens the model and listens. Throws Failure.
  explicit ModelServer(const ServeOptions& options);
  ModelServer(const ModelServer&) = delete;
  ModelServer& operator=(const ModelServer&) = delete;
  ~ModelServer();

  std::string url() const;
  const std::string& model_name() const { return name_; }
  int64_t context_length() const { return api_.model()->engine->context_length(); }

  /// Opens the folder again and answers new requests with it; answers that have begun stay with the
  /// old weights, which are let go after the last of them. False, with the reason in the log and
  /// the old model at work, if the folder cannot be opened. Workers are replaced one by one, after
  /// this has returned.
  bool reload();
  /// Whether the folder's weights are others than those that were opened, and have been for two
  /// calls: a file that is still being written changes again.
  bool has_changed();
  /// To be called now and then: lets go of replaced models.
  void tidy() { api_.release_idle_models(); }
  /// Takes nothing new, ends what has begun, at most ServeOptions::drain_s. False if answers were
  /// cut.
  bool drain();

 private:
  std::unique_ptr<ServedModel> open() const;
  std::unique_ptr<Engine> open_workers(int64_t vocab_size) const;
  std::string text_mark() const;
  std::string stamp() const;

  const ServeOptions options_;
  const std::filesystem::path folder_;
  const std::string name_;
  std::string opened_stamp_, seen_stamp_;
  std::string opened_text_mark_;
  StaticFiles pages_;
  Api api_;
  HttpServer http_;  // last: its threads use all above
};

}  // namespace pelago::serve
