#include "serve/server/model_server.h"

#include <fmt/format.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <ctime>

#include "base/error.h"
#include "base/files.h"
#include "base/log.h"
#include "model/config.h"
#include "serve/local/devices.h"
#include "serve/server/split_options.h"
#include "serve/web/pages.h"
#include "serve/workers/router_engine.h"

namespace pelago::serve {

namespace {

namespace fs = std::filesystem;

bool is_loopback(const std::string& host) {
  return host == "localhost" || host == "::1" || host.starts_with("127.");
}

std::string model_name(const ServeOptions& options) {
  if (!options.name.empty()) return options.name;
  fs::path path = fs::absolute(options.folder).lexically_normal();
  if (path.filename().empty()) path = path.parent_path();
  if (path.filename() == "model") path = path.parent_path();
  return path.filename().string();
}

ApiOptions api_options(const ServeOptions& options) {
  return {
      .keys = options.keys_path.empty() ? std::vector<ApiKey>{} : read_key_file(options.keys_path),
      .cors_origins = options.cors_origins,
      .is_local = is_loopback(options.host)};
}

HttpServerOptions http_options(const ServeOptions& options) {
  HttpServerOptions http;
  http.host = options.host;
  http.port = options.port;
  http.certificate_path = options.certificate_path;
  http.key_path = options.key_path;
  http.num_connections_max = static_cast<size_t>(options.num_connections_max);
  http.error_response = Api::http_error;
  return http;
}

// As many connections as the system lets a process have.
void raise_file_limit() {
  struct rlimit files {};
  if (::getrlimit(RLIMIT_NOFILE, &files) != 0 || files.rlim_cur == files.rlim_max) return;
  files.rlim_cur = files.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &files);
}

}  // namespace

fs::path model_folder(const fs::path& path) {
  if (fs::exists(path / "config.json")) return path;
  if (fs::exists(path / "model" / "config.json")) return path / "model";
  const bool is_run = fs::exists(path / "job.toml");
  fail_usage("{}: {}",
             path.string(),
             is_run ? "this run has no model/ yet; pelago export makes one of its newest checkpoint"
                    : "not a model folder (no config.json) and not a run (no job.toml)");
}

void ServeOptions::validate() const {
  if (!is_loopback(host) && keys_path.empty() && !is_insecure) {
    fail_usage(
        "--host {} opens the server to other machines: give --api-keys FILE, or --insecure if "
        "everybody may use it",
        host);
  }
  if (certificate_path.empty() != key_path.empty())
    fail_usage("--tls-cert and --tls-key belong together: give both");
  if (num_connections_max < 1 || num_connections_max > 1'000'000) {
    fail_usage("--max-connections {}: must be 1 to 1000000", num_connections_max);
  }
  if (!(drain_s >= 0 && drain_s <= 86400))
    fail_usage("--drain {}: must be 0 to 86400 seconds", drain_s);
  if (num_workers < 0 || num_workers > 256)
    fail_usage("--workers {}: must be 0 to 256", num_workers);
  if (shares_weights && num_workers == 0 && decode.empty()) {
    fail_usage("--share-weights is for several processes: give --workers, or leave it out");
  }
  if (!prefill.empty() || !decode.empty()) return validate_split(*this);
  if (num_workers == 0) return engine.validate();
  const std::vector<std::string> devices = devices_of(engine.device);
  if (devices.size() > static_cast<size_t>(num_workers)) {
    fail_usage("--device {}: {} devices for --workers {}: each worker drives one",
               engine.device,
               devices.size(),
               num_workers);
  }
  EngineOptions each = engine;
  for (const std::string& device : devices) {
    each.device = device;
    each.validate();
  }
}

ServeOptions ServeOptions::resolved() const {
  validate();
  ServeOptions options = *this;
  if (decode.empty()) return options;
  options.engine.device = decode;
  options.num_workers = static_cast<int>(devices_of(decode).size());
  return options;
}

ModelServer::ModelServer(const ServeOptions& options)
    : options_(options.resolved()),
      folder_(model_folder(options_.folder)),
      name_(serve::model_name(options_)),
      api_(api_options(options_)),
      http_((raise_file_limit(), http_options(options_))) {
  opened_stamp_ = seen_stamp_ = stamp();
  opened_text_mark_ = text_mark();
  api_.add_routes(http_);
  if (options_.has_page) {
    add_pages(pages_, "chat.html");
    http_.route("GET", "/*", pages_.handler());
  }
  // The port is taken first: whoever cannot have it hears so before a large model is read.
  http_.start();
  api_.set_model(open());
}

ModelServer::~ModelServer() = default;

std::unique_ptr<ServedModel> ModelServer::open() const {
  const int64_t vocab_size = model::read_model_config(folder_ / "config.json").vocab_size;
  auto engine =
      options_.num_workers > 0 ? open_workers(vocab_size) : open_engine(folder_, options_.engine);
  ChatText text = ChatText::read(folder_);
  auto make_constraint = constraint_maker(text.tokenizer(), vocab_size);
  return std::make_unique<ServedModel>(
      ServedModel{.id = name_,
                  .created_s = static_cast<int64_t>(std::time(nullptr)),
                  .text = std::move(text),
                  .engine = std::move(engine),
                  .make_constraint = std::move(make_constraint)});
}

// The router bounds the queue, so each worker's own may take all that is sent.
std::unique_ptr<Engine> ModelServer::open_workers(int64_t vocab_size) const {
  RouterOptions router;
  router.num_workers = static_cast<size_t>(options_.num_workers);
  router.folder = fs::absolute(folder_).string();
  router.engine = options_.engine;
  router.engine.kv_memory_gb /= options_.num_workers;
  router.waiting_max = options_.engine.waiting_max;
  router.engine.waiting_max = 1'000'000;
  router.devices = devices_of(options_.engine.device);
  if (!options_.prefill.empty()) {
    const model::ModelConfig config = model::read_model_config(folder_ / "config.json");
    plan::ServingLoad load = options_.load;
    load.step_tokens = static_cast<double>(options_.engine.scheduler.step_tokens);
    load.sequences_max = router.engine.scheduler_limits().sequences_max;
    for (const std::string& device : devices_of(options_.prefill)) {
      const std::string& decodes = router.devices[router.prefill.size()];
      router.prefill.push_back({device, planned_local_share(config, device, decodes, load)});
    }
  }
  router.vocab_size = vocab_size;
  router.shares_weights = options_.shares_weights;
  return std::make_unique<RouterEngine>(router, start_worker_processes(router.num_workers));
}

// What the router itself reads of a folder: while it stays, new weights are the workers' affair.
std::string ModelServer::text_mark() const {
  std::string all;
  for (const char* name : {"config.json",
                           "generation_config.json",
                           "tokenizer.json",
                           "tokenizer_config.json",
                           "chat_template.jinja"}) {
    if (fs::exists(folder_ / name)) all += hash_hex(read_text_file(folder_ / name));
    all += ' ';
  }
  return all;
}

std::string ModelServer::url() const {
  const std::string host =
      options_.host.find(':') == std::string::npos ? options_.host : '[' + options_.host + ']';
  return fmt::format(
      "{}://{}:{}", options_.certificate_path.empty() ? "http" : "https", host, http_.port());
}

// Inode, time and size of the files that make the model: an export takes the old folder's name.
std::string ModelServer::stamp() const {
  std::string stamp;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(folder_, ignored)) {
    struct stat file {};
    if (::stat(entry.path().c_str(), &file) != 0) continue;
    stamp += fmt::format("{} {} {}.{} {}\n",
                         entry.path().filename().string(),
                         file.st_ino,
                         file.st_mtim.tv_sec,
                         file.st_mtim.tv_nsec,
                         file.st_size);
  }
  return stamp;
}

bool ModelServer::has_changed() {
  const std::string now = stamp();
  const bool is_settled = now == seen_stamp_;
  seen_stamp_ = now;
  return is_settled && now != opened_stamp_ && fs::exists(folder_ / "config.json");
}

bool ModelServer::reload() {
  const std::string before = stamp();
  opened_stamp_ = before;
  try {
    const std::string mark = text_mark();
    auto* router = dynamic_cast<RouterEngine*>(api_.model()->engine.get());
    if (router != nullptr && mark == opened_text_mark_) {
      router->replace_workers();
      return true;
    }
    api_.set_model(open());
    opened_text_mark_ = mark;
  } catch (const std::exception& error) {
    log_error("model not reloaded folder={} why=\"{}\"", folder_.string(), error.what());
    return false;
  }
  log_info("model reloaded folder={}", folder_.string());
  return true;
}

bool ModelServer::drain() {
  api_.set_draining();
  return http_.drain(options_.drain_s);
}

}  // namespace pelago::serve
