#include "sites/join/grpc_door.h"

#include <grpc/support/log.h>
#include <grpcpp/grpcpp.h>

#include <chrono>
#include <mutex>

#include "base/log.h"
#include "base/text/json.h"
#include "door.grpc.pb.h"
#include "sites/tls.h"
#include "sites/transport/transport.h"

namespace pelago::sites {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

constexpr size_t kWordBytesMax = 256;      // of a token's id or secret
constexpr size_t kEventsMax = 256;         // nobody can fill the memory with refusals
constexpr int kAnswerBytesMax = 64 << 20;  // the plan of 100,000 devices

int64_t unix_now_s() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::seconds>(now).count();
}

}  // namespace

struct Door::Impl final : public wire::Door::Service {
  Impl(fs::path certs, const fs::path& tokens, RunFiles given, TokenBook::Keeper keeper)
      : certs_dir(std::move(certs)), book(tokens, std::move(keeper)), files(std::move(given)) {}

  grpc::Status Join(grpc::ServerContext* context,
                    const wire::JoinRequest* request,
                    wire::JoinReply* reply) override {
    try {
      const Result<std::string> site = admit(*request);
      const Result<std::string> certificate =
          site ? sign_request(certs_dir, request->certificate_request(), *site)
               : Result<std::string>(site.error());
      if (!certificate) {
        if (certificate.error().code == ErrorCode::kUnavailable) {
          return {grpc::StatusCode::UNAVAILABLE, certificate.error().message};
        }
        note("join_refused", {{"peer", context->peer()}, {"reason", certificate.error().message}});
        return {grpc::StatusCode::PERMISSION_DENIED, certificate.error().message};
      }
      note("site_admitted", {{"site", *site}, {"peer", context->peer()}});
      reply->set_site(*site);
      reply->set_certificate(*certificate);
      reply->set_job_toml(files.job_toml);
      reply->set_plan_json(files.plan_json);
      reply->set_config_json(files.config_json);
      return grpc::Status::OK;
    } catch (const Failure& failure) {  // the disk is full, or the authority is gone
      log_error("door reason=\"{}\"", failure.what());
      return {grpc::StatusCode::UNAVAILABLE, failure.what()};
    }
  }

  Result<std::string> admit(const wire::JoinRequest& request) {
    if (request.token_id().size() > kWordBytesMax || request.secret().size() > kWordBytesMax) {
      return Error{ErrorCode::kRefused, "not a join token of this version"};
    }
    const Result<std::string> key_hash = request_key_hash(request.certificate_request());
    if (!key_hash) return key_hash;
    return book.admit(request.token_id(), request.secret(), *key_hash, unix_now_s());
  }

  void note(const std::string& name, const json& fields) {
    const std::lock_guard lock(events_mutex);
    if (events.size() < kEventsMax) events.emplace_back(name, fields.dump());
  }

  const fs::path certs_dir;
  TokenBook book;
  const RunFiles files;
  std::mutex events_mutex;  // guards events
  std::vector<std::pair<std::string, std::string>> events;
};

Door::Door(fs::path certs_dir, fs::path tokens_dir, RunFiles files, TokenBook::Keeper keeper)
    : impl_(std::make_unique<Impl>(
          std::move(certs_dir), tokens_dir, std::move(files), std::move(keeper))) {}

Door::~Door() = default;

grpc::Service* Door::service() { return impl_.get(); }

std::vector<std::pair<std::string, std::string>> Door::take_events() {
  const std::lock_guard lock(impl_->events_mutex);
  return std::exchange(impl_->events, {});
}

Result<JoinAnswer> ask_at_door(const std::string& address,
                               const JoinToken& token,
                               const std::string& certificate_request,
                               double timeout_s) {
  // What gRPC has to say about a failed handshake is said better by probe_line().
  gpr_set_log_function([](gpr_log_func_args* args) { log_debug("grpc {}", args->message); });
  grpc::ChannelArguments arguments;
  arguments.SetSslTargetNameOverride(kCoordinatorName);
  arguments.SetMaxReceiveMessageSize(kAnswerBytesMax);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  const auto channel = grpc::CreateCustomChannel(
      address,
      grpc::SslCredentials(
          {.pem_root_certs = token.authority, .pem_private_key = "", .pem_cert_chain = ""}),
      arguments);
  const auto stub = wire::Door::NewStub(channel);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() +
                       std::chrono::milliseconds(static_cast<int64_t>(1000 * timeout_s)));
  wire::JoinRequest request;
  request.set_token_id(token.id);
  request.set_secret(token.secret);
  request.set_certificate_request(certificate_request);
  wire::JoinReply reply;
  const grpc::Status status = stub->Join(&context, request, &reply);
  if (status.error_code() == grpc::StatusCode::PERMISSION_DENIED) {
    return Error{ErrorCode::kRefused, status.error_message()};
  }
  if (!status.ok()) return Error{ErrorCode::kUnavailable, status.error_message()};
  return JoinAnswer{.site = reply.site(),
                    .certificate = reply.certificate(),
                    .files = {.job_toml = reply.job_toml(),
                              .plan_json = reply.plan_json(),
                              .config_json = reply.config_json()}};
}

}  // namespace pelago::sites
