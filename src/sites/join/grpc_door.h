// The door of a run: where a site that holds a join token gets its certificate, the job and the
// plan, and the other end of that, at the site. The coordinator's server carries it beside the
// line between certified peers; it answers nothing else to a caller without a certificate.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "sites/join/join_token.h"

namespace grpc {
class Service;
}

namespace pelago::sites {

/// What every site must know of the run.
struct RunFiles {
  std::string job_toml, plan_json;
  std::string config_json;  // of model.config, where the job names one
};

struct JoinAnswer {
  std::string site;
  std::string certificate;  // PEM
  RunFiles files;
};

class Door {
 public:
  /// certs_dir holds the authority that signs; tokens_dir the book of tokens.
  Door(std::filesystem::path certs_dir,
       std::filesystem::path tokens_dir,
       RunFiles files,
       TokenBook::Keeper keeper = {});
  ~Door();
  Door(const Door&) = delete;
  Door& operator=(const Door&) = delete;

  /// For a server; lives as long as the door.
  grpc::Service* service();
  /// Who came since the last call: event name and JSON fields, for the record.
  std::vector<std::pair<std::string, std::string>> take_events();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Asks at the door, once. kRefused: the door says no, in its own words. kUnavailable: nobody
/// answers at the address, or whoever does is not the coordinator that the token is from.
Result<JoinAnswer> ask_at_door(const std::string& address,
                               const JoinToken& token,
                               const std::string& certificate_request,
                               double timeout_s);

}  // namespace pelago::sites
