// The routes of OpenAI's API, on an HttpServer:
//
//   GET  /v1/models             POST /v1/completions        POST /v1/chat/completions
//   POST /v1/embeddings         POST /tokenize              POST /detokenize
//   GET  /health (the process)  GET  /ready (the engine)    GET  /metrics (Prometheus)
//
// A model can be replaced while it answers: requests that have begun stay with theirs.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "serve/api/keys.h"
#include "serve/api/metrics.h"
#include "serve/api/requests/requests.h"
#include "serve/api/served_model.h"
#include "serve/http/http_server.h"

namespace pelago::serve {

struct ApiOptions {
  std::vector<ApiKey> keys = {};  // none: everybody who reaches the port may ask
  std::vector<std::string> cors_origins =
      {};                // "https://app.example" or "*"; none: pages of other sites may not ask
  bool is_local = true;  // bound to this machine: only its own names in Host, so that
                         // no page can reach it by a name of its own (DNS rebinding)
  ApiLimits limits = {};
};

class Api {
 public:
  explicit Api(ApiOptions options);
  /// After the server has stopped and so has cancelled what it was answering. Waits until the
  /// engines have let go of that.
  ~Api();

  /// Replaces the model. The one before lives until its last answer is out.
  void set_model(std::unique_ptr<ServedModel> model);
  ServedModelPtr model() const;
  /// To be called now and then: ends models that answer nothing any more. Not where the last answer
  /// ends, which is on the engine's own thread. Returns how many replaced ones are still at it.
  size_t release_idle_models();

  /// Adds the routes; both this and server live until server has stopped. /ready answers 503 from
  /// set_draining() on.
  void add_routes(HttpServer& server);
  void set_draining() { is_draining_ = true; }
  /// HttpServerOptions::error_response: the server's own errors in OpenAI's form.
  static HttpResponse http_error(int status, const std::string& message);

 private:
  using Route = std::function<void(HttpRequest, HttpReplyPtr, std::shared_ptr<KeyRing::Lease>)>;
  enum class Access { kAnyone, kKeyKnown, kKeyCounted };

  void add(HttpServer& server,
           const std::string& method,
           const std::string& path,
           Access access,
           Route route);
  void serve(const HttpRequest& request,
             const HttpReplyPtr& reply,
             const std::string& path,
             Access access,
             const Route& route);
  void add_generation_routes(HttpServer& server);
  void check_origin(const HttpRequest& request, HttpHeaders& headers) const;
  ServedModelPtr ready_model() const;
  void generate(const HttpRequest& request,
                const HttpReplyPtr& reply,
                std::shared_ptr<KeyRing::Lease> lease,
                bool is_chat);
  std::string models_json() const;
  std::string model_json(const HttpRequest& request) const;
  std::string metrics_text() const;
  std::string embeddings_json(const HttpRequest& request) const;
  std::string tokenize_json(const HttpRequest& request) const;
  std::string detokenize_json(const HttpRequest& request) const;

  const ApiOptions options_;
  KeyRing keys_;
  Metrics metrics_;
  HttpServer* server_ = nullptr;
  std::atomic<bool> is_draining_ = false;
  std::atomic<uint64_t> num_answers_ = 0;
  const uint64_t id_seed_;
  struct Departed;
  std::shared_ptr<Departed> departed_;  // owners: this, and each model that is not there yet
  mutable std::mutex model_mutex_;      // guards model_
  ServedModelPtr model_;
};

}  // namespace pelago::serve
