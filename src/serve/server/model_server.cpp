#include "serve/server/model_server.h"

#include <fmt/format.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <ctime>

#include "base/error.h"
#include "base/log.h"
#include "model/config.h"
#include "serve/grammar/constraints.h"
#include "serve/web/pages.h"

namespace pelago::serve {

namespace {

namespace fs = std::filesystem;

bool is_loopback(const std::string& host) {
  return host == "localhost" || host == "::1" || host.starts_with("127.");
}

fs::path model_folder(const fs::path& path) {
  if (fs::exists(path / "config.json")) return path;
  if (fs::exists(path / "model" / "config.json")) return path / "model";
  const bool is_run = fs::exists(path / "job.toml");
  fail_usage("{}: {}",
             path.string(),
             is_run ? "this run has no model/ yet; pelago export makes one of its newest checkpoint"
                    : "not a model folder (no config.json) and not a run (no job.toml)");
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

ConstraintMaker constraint_maker(const data::Tokenizer& tokenizer, int64_t vocab_size) {
  const Vocabulary vocabulary = make_vocabulary(tokenizer, vocab_size);
  return [vocabulary](ConstraintKind kind, const std::string& text) -> Result<Constraint> {
    switch (kind) {
      case ConstraintKind::kJsonObject:
        return json_object_constraint(vocabulary);
      case ConstraintKind::kJsonSchema:
        return json_schema_constraint(vocabulary, text);
      case ConstraintKind::kRegex:
        return regex_constraint(vocabulary, text);
      case ConstraintKind::kGrammar:
        return grammar_constraint(vocabulary, text);
    }
    return Error{ErrorCode::kRefused, "structured output of an unknown kind"};
  };
}

// As many connections as the system lets a process have.
void raise_file_limit() {
  struct rlimit files {};
  if (::getrlimit(RLIMIT_NOFILE, &files) != 0 || files.rlim_cur == files.rlim_max) return;
  files.rlim_cur = files.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &files);
}

}  // namespace

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
  engine.validate();
}

ModelServer::ModelServer(ServeOptions options)
    : options_((options.validate(), std::move(options))),
      folder_(model_folder(options_.folder)),
      name_(serve::model_name(options_)),
      api_(api_options(options_)),
      http_((raise_file_limit(), http_options(options_))) {
  opened_stamp_ = seen_stamp_ = stamp();
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
  auto engine = open_engine(folder_, options_.engine);
  ChatText text = ChatText::read(folder_);
  auto make_constraint = constraint_maker(
      text.tokenizer(), model::read_model_config(folder_ / "config.json").vocab_size);
  return std::make_unique<ServedModel>(
      ServedModel{.id = name_,
                  .created_s = static_cast<int64_t>(std::time(nullptr)),
                  .text = std::move(text),
                  .engine = std::move(engine),
                  .make_constraint = std::move(make_constraint)});
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
    api_.set_model(open());
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
