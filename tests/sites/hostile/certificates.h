// Certificates of a job made for one test, and real lines that show them.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "sites/grpc_transport.h"
#include "sites/tls.h"

namespace pelago::sites {

class Certificates {
 public:
  Certificates(const std::string& name, const std::vector<std::string>& sites)
      : dir_(std::filesystem::temp_directory_path() / ("pelago-hostile-" + name)) {
    std::filesystem::remove_all(dir_);
    std::filesystem::create_directories(dir_);
    make_certificates(dir_, sites);
  }
  ~Certificates() { std::filesystem::remove_all(dir_); }
  const std::filesystem::path& dir() const { return dir_; }
  std::unique_ptr<GrpcTransport> open(const std::string& name) const {
    GrpcTransportOptions options;
    options.name = name;
    options.certs_dir = dir_;
    return std::make_unique<GrpcTransport>(options);
  }

 private:
  std::filesystem::path dir_;
};

}  // namespace pelago::sites
