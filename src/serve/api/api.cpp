#include "serve/api/api.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <condition_variable>
#include <ctime>
#include <random>

#include "base/clock.h"
#include "base/rng.h"
#include "serve/api/api_error.h"
#include "serve/api/requests/fields.h"

namespace pelago::serve {

namespace {

Value body_of(const HttpRequest& request) {
  if (request.body.empty()) throw ApiError(400, "the body is empty: send JSON");
  try {
    return value_of_json(request.body);
  } catch (const TemplateError& error) {
    throw ApiError(400,
                   fmt::format("the body is not JSON that can be read: {}", error.what()),
                   "",
                   "invalid_json");
  }
}

int64_t now_since_1970_s() { return static_cast<int64_t>(std::time(nullptr)); }

// "http://localhost:3000" -> "localhost:3000"
std::string_view without_scheme(std::string_view origin) {
  const size_t at = origin.find("://");
  return at == std::string_view::npos ? origin : origin.substr(at + 3);
}

bool is_local_name(std::string_view host) {
  if (host.starts_with('[')) {
    host = host.substr(1, host.find(']') - 1);
  } else {
    host = host.substr(0, host.find(':'));
  }
  return host == "localhost" || host == "::1" || host.starts_with("127.") ||
         host.ends_with(".localhost");
}

std::string base64(const std::vector<float>& numbers) {
  constexpr std::string_view kLetters =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string bytes;
  for (const float number : numbers) {
    const auto bits = std::bit_cast<uint32_t>(number);
    for (int shift = 0; shift < 32; shift += 8) bytes += static_cast<char>(bits >> shift);
  }
  std::string out;
  for (size_t i = 0; i < bytes.size(); i += 3) {
    uint32_t group = 0;
    for (size_t k = 0; k < 3; ++k)
      group = (group << 8) | (i + k < bytes.size() ? static_cast<unsigned char>(bytes[i + k]) : 0U);
    for (size_t k = 0; k < 4; ++k)
      out += i + k > bytes.size() ? '=' : kLetters[(group >> (18 - 6 * k)) & 63];
  }
  return out;
}

}  // namespace

/// Models that nobody holds any more, until a thread that may end them comes by.
struct Api::Departed {
  std::mutex mutex;  // guards what follows
  std::condition_variable changed;
  std::vector<std::unique_ptr<ServedModel>> models;
  size_t num_living = 0;  // and those in models
};

Api::Api(ApiOptions options)
    : options_(std::move(options)),
      keys_(options_.keys),
      id_seed_((uint64_t{std::random_device()()} << 32) | std::random_device()()),
      departed_(std::make_shared<Departed>()) {}

Api::~Api() {
  set_model(nullptr);
  {
    std::unique_lock lock(departed_->mutex);
    departed_->changed.wait(lock,
                            [this] { return departed_->models.size() == departed_->num_living; });
  }
  release_idle_models();
}

HttpResponse Api::http_error(int status, const std::string& message) {
  ApiError error(status, message);
  if (status == 503) error.retry_after_s = 1;
  return error_response(error);
}

void Api::set_model(std::unique_ptr<ServedModel> model) {
  ServedModelPtr next;
  if (model) {
    const std::lock_guard lock(departed_->mutex);
    ++departed_->num_living;
    next = std::shared_ptr<ServedModel>(model.release(), [departed = departed_](ServedModel* last) {
      const std::lock_guard last_lock(departed->mutex);
      departed->models.emplace_back(last);
      departed->changed.notify_all();
    });
  }
  const std::lock_guard lock(model_mutex_);
  model_.swap(next);
}

ServedModelPtr Api::model() const {
  const std::lock_guard lock(model_mutex_);
  return model_;
}

size_t Api::release_idle_models() {
  std::vector<std::unique_ptr<ServedModel>> idle;
  const bool has_current = model() != nullptr;
  const std::lock_guard lock(departed_->mutex);
  idle.swap(departed_->models);
  departed_->num_living -= idle.size();
  return departed_->num_living - (has_current ? 1 : 0);
}

ServedModelPtr Api::ready_model() const {
  ServedModelPtr current = model();
  if (current && current->engine->is_ready() && !is_draining_) return current;
  ApiError error(503, is_draining_ ? "this server is shutting down" : "the model is not ready");
  error.retry_after_s = 1;
  throw error;
}

// A page of another site can make a browser send requests here; unless its site was allowed, they
// are refused, since the browser keeps only their answers from the page, not their effect.
void Api::check_origin(const HttpRequest& request, HttpHeaders& headers) const {
  const std::string_view host = request.header("host").value_or("");
  if (options_.is_local && keys_.is_open() && !host.empty() && !is_local_name(host)) {
    throw ApiError(421,
                   fmt::format("this server answers to names of this machine only, not to {}",
                               shown(Value(host))));
  }
  const auto origin = request.header("origin");
  if (!origin || without_scheme(*origin) == host) return;
  for (const std::string& allowed : options_.cors_origins) {
    if (allowed != "*" && allowed != *origin) continue;
    headers.emplace_back("Access-Control-Allow-Origin", allowed);
    headers.emplace_back("Access-Control-Allow-Headers", "authorization, content-type, *");
    headers.emplace_back("Access-Control-Allow-Methods", "GET, POST, OPTIONS");
    headers.emplace_back("Access-Control-Max-Age", "600");
    if (allowed != "*") headers.emplace_back("Vary", "Origin");
    return;
  }
  throw ApiError(403,
                 fmt::format("pages of {} may not use this server; --cors-origin would allow them",
                             shown(Value(*origin))));
}

namespace {

/// Adds headers to whatever the reply becomes.
class ReplyWithHeaders final : public HttpReply {
 public:
  ReplyWithHeaders(HttpReplyPtr inner, HttpHeaders headers)
      : inner_(std::move(inner)), headers_(std::move(headers)) {}
  void send(HttpResponse response) override { inner_->send(with_headers(std::move(response))); }
  void begin(HttpResponse head) override { inner_->begin(with_headers(std::move(head))); }
  bool write(std::string_view piece) override { return inner_->write(piece); }
  void end() override { inner_->end(); }
  void cut() override { inner_->cut(); }
  void on_gone(std::function<void()> callback) override { inner_->on_gone(std::move(callback)); }

 private:
  HttpResponse with_headers(HttpResponse response) const {
    response.headers.insert(response.headers.end(), headers_.begin(), headers_.end());
    return response;
  }
  HttpReplyPtr inner_;  // owners: this
  HttpHeaders headers_;
};

}  // namespace

void Api::serve(const HttpRequest& request,
                const HttpReplyPtr& bare,
                const std::string& path,
                Access access,
                const Route& route) {
  HttpReplyPtr reply = bare;
  std::string who;
  try {
    HttpHeaders headers;
    check_origin(request, headers);
    if (!headers.empty()) reply = std::make_shared<ReplyWithHeaders>(bare, headers);
    if (request.method == "OPTIONS") return reply->send({.status = 204});
    std::shared_ptr<KeyRing::Lease> lease;
    const auto authorization = request.header("authorization");
    if (access == Access::kKeyKnown && !keys_.knows(authorization)) {
      throw ApiError(401,
                     "an API key is missing or not known: send \"Authorization: Bearer KEY\"",
                     "",
                     "invalid_api_key");
    }
    if (access == Access::kKeyCounted) {
      KeyRing::Refusal refusal;
      lease = keys_.admit(authorization, steady_now_s(), refusal);
      if (!lease) {
        ApiError error(refusal.status, refusal.message, "", refusal.code);
        error.retry_after_s = refusal.retry_after_s;
        throw error;
      }
      who = lease->name();
    }
    route(request, reply, std::move(lease));
  } catch (const ApiError& error) {
    metrics_.count_request(path, error.status, who);
    reply->send(error_response(error));
  }
}

void Api::add(HttpServer& server,
              const std::string& method,
              const std::string& path,
              Access access,
              Route route) {
  const auto handler = [this, path, access, route = std::move(route)](const HttpRequest& request,
                                                                      const HttpReplyPtr& reply) {
    serve(request, reply, path, access, route);
  };
  server.route(method, path, handler);
  server.route("OPTIONS", path, handler);
}

void Api::add_routes(HttpServer& server) {
  server_ = &server;
  const auto add_answer =
      [&](const char* method, const std::string& path, Access access, auto make) {
        add(server,
            method,
            path,
            access,
            [this, path, make](
                const HttpRequest& request, const HttpReplyPtr& reply, const auto& lease) {
              HttpResponse response = {.body = make(request)};
              metrics_.count_request(path, 200, lease ? lease->name() : "");
              reply->send(std::move(response));
            });
      };
  add_answer("GET", "/health", Access::kAnyone, [](const HttpRequest&) {
    return std::string(R"({"status":"ok"})");
  });
  add_answer("GET", "/ready", Access::kAnyone, [this](const HttpRequest&) {
    return fmt::format(R"({{"status":"ready","model":{}}})", json_quoted(ready_model()->id));
  });
  add_answer(
      "GET", "/v1/models", Access::kKeyKnown, [this](const HttpRequest&) { return models_json(); });
  add_answer("GET", "/v1/models/*", Access::kKeyKnown, [this](const HttpRequest& request) {
    return model_json(request);
  });
  add_answer("POST", "/tokenize", Access::kKeyCounted, [this](const HttpRequest& request) {
    return tokenize_json(request);
  });
  add_answer("POST", "/detokenize", Access::kKeyCounted, [this](const HttpRequest& request) {
    return detokenize_json(request);
  });
  add_answer("POST", "/v1/embeddings", Access::kKeyCounted, [this](const HttpRequest& request) {
    return embeddings_json(request);
  });
  add(server,
      "GET",
      "/metrics",
      Access::kKeyKnown,
      [this](const HttpRequest&, const HttpReplyPtr& reply, const auto&) {
        reply->send(
            {.content_type = "text/plain; version=0.0.4; charset=utf-8", .body = metrics_text()});
      });
  add_generation_routes(server);
}

void Api::add_generation_routes(HttpServer& server) {
  for (const bool is_chat : {false, true}) {
    add(server,
        "POST",
        is_chat ? "/v1/chat/completions" : "/v1/completions",
        Access::kKeyCounted,
        [this, is_chat](const HttpRequest& request,
                        const HttpReplyPtr& reply,
                        std::shared_ptr<KeyRing::Lease> lease) {
          generate(request, reply, std::move(lease), is_chat);
        });
  }
  // Below /v1 nothing is a page.
  for (const std::string method : {"GET", "POST"}) {
    add(server,
        method,
        "/v1/*",
        Access::kAnyone,
        [](const HttpRequest& request, const auto&, const auto&) {
          throw ApiError(404, fmt::format("nothing is at {}", request.path));
        });
  }
}

std::string Api::model_json(const HttpRequest& request) const {
  const std::string id = request.path.substr(std::string_view("/v1/models/").size());
  const ServedModelPtr current = model();
  if (!current || current->id != id) {
    throw ApiError(404,
                   fmt::format("the model {} does not exist", shown(Value(id))),
                   "model",
                   "model_not_found");
  }
  const std::string all = models_json();
  return all.substr(all.find('[') + 1, all.rfind(']') - all.find('[') - 1);
}

std::string Api::metrics_text() const {
  const ServedModelPtr current = model();
  return metrics_.text(current ? current->engine->stats() : EngineStats(),
                       current ? current->engine->workers() : std::vector<WorkerStats>(),
                       server_->stats(),
                       current ? current->id : "");
}

void Api::generate(const HttpRequest& request,
                   const HttpReplyPtr& reply,
                   std::shared_ptr<KeyRing::Lease> lease,
                   bool is_chat) {
  const double start_s = steady_now_s();
  const std::string path = is_chat ? "/v1/chat/completions" : "/v1/completions";
  const ServedModelPtr current = ready_model();
  ApiRequest asked =
      is_chat ? read_chat_request(body_of(request), *current, options_.limits, now_since_1970_s())
              : read_completion_request(body_of(request), *current, options_.limits);
  // The queue is fair between keys, and between the users that a key tells apart.
  for (GenerateRequest& prompt : asked.prompts) {
    prompt.user = (keys_.is_open() ? request.peer : lease->name()) + '/' + prompt.user;
  }
  const uint64_t number = num_answers_++;
  const auto answer = std::make_shared<ApiAnswer>(
      std::move(asked),
      ApiAnswer::Context{.model = current,
                         .reply = reply,
                         .id = fmt::format("{}-{:016x}",
                                           is_chat ? "chatcmpl" : "cmpl",
                                           Rng(id_seed_).fork("answer", number).next_u64()),
                         .created_s = now_since_1970_s(),
                         .start_s = start_s,
                         .on_end = [this, path, lease](const AnswerReport& report) {
                           lease->charge(report.prompt_tokens + report.completion_tokens);
                           metrics_.count_request(path, report.status, lease->name());
                           metrics_.count_answer(report);
                         }});
  answer->start();
}

std::string Api::models_json() const {
  const ServedModelPtr current = model();
  if (!current) return R"({"object":"list","data":[]})";
  return fmt::format(
      R"({{"object":"list","data":[{{"id":{},"object":"model","created":{},"owned_by":"pelago","max_model_len":{}}}]}})",
      json_quoted(current->id),
      current->created_s,
      current->engine->context_length());
}

std::string Api::embeddings_json(const HttpRequest& request) const {
  const ServedModelPtr current = ready_model();
  const EmbeddingRequest asked =
      read_embedding_request(body_of(request), *current, options_.limits);
  auto vectors = current->engine->embed(asked.inputs);
  if (!vectors) {
    const bool is_refused = vectors.error().code == ErrorCode::kRefused;
    throw ApiError(is_refused                                    ? 400
                   : vectors.error().code == ErrorCode::kNoSpace ? 429
                                                                 : 503,
                   vectors.error().message);
  }
  std::string data;
  size_t num_tokens = 0;
  for (size_t i = 0; i < vectors->size(); ++i) {
    const std::vector<float>& vector = (*vectors)[i];
    const std::string embedding =
        asked.as_base64 ? '"' + base64(vector) + '"' : fmt::format("[{}]", fmt::join(vector, ","));
    data += fmt::format(
        R"({}{{"object":"embedding","index":{},"embedding":{}}})", i > 0 ? "," : "", i, embedding);
    num_tokens += asked.inputs[i].size();
  }
  return fmt::format(
      R"({{"object":"list","data":[{}],"model":{},"usage":{{"prompt_tokens":{},"total_tokens":{}}}}})",
      data,
      json_quoted(current->id),
      num_tokens,
      num_tokens);
}

std::string Api::tokenize_json(const HttpRequest& request) const {
  const ServedModelPtr current = ready_model();
  const auto tokens =
      read_tokenize_request(body_of(request), *current, options_.limits, now_since_1970_s());
  return fmt::format(R"({{"count":{},"max_model_len":{},"tokens":[{}]}})",
                     tokens.size(),
                     current->engine->context_length(),
                     fmt::join(tokens, ","));
}

std::string Api::detokenize_json(const HttpRequest& request) const {
  const ServedModelPtr current = ready_model();
  const Value body = body_of(request);
  Fields fields(body, "");
  fields.ignore({"model"});
  if (fields.find("tokens") == nullptr) fields.refuse("tokens", "is missing");
  const auto tokens =
      fields.tokens("tokens", options_.limits.prompt_bytes_max, current->text.num_tokens());
  fields.refuse_unknown();
  return fmt::format(R"({{"prompt":{}}})", json_quoted(current->text.text_of(tokens)));
}

}  // namespace pelago::serve
