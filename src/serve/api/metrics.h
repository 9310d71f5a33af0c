// Figures of the server in Prometheus's text form.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "serve/api/answers/answers.h"
#include "serve/engine.h"
#include "serve/http/http_server.h"

namespace pelago::serve {

class Metrics {
 public:
  /// A request of that route ended. who: the key's name; empty for none.
  void count_request(const std::string& route, int status, const std::string& who);
  void count_answer(const AnswerReport& report);
  std::string text(const EngineStats& engine,
                   const std::vector<WorkerStats>& workers,
                   const HttpServerStats& http,
                   const std::string& model) const;

 private:
  static constexpr std::array<double, 14> kBounds_s = {
      0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300};
  struct Histogram {
    std::array<uint64_t, kBounds_s.size() + 1> counts{};
    double sum = 0;
    uint64_t num = 0;
    void add(double seconds);
  };
  static void append(std::string& out,
                     const std::string& name,
                     const std::string& help,
                     const Histogram& histogram);

  struct Ended {
    std::string route, who;
    int status = 0;
    auto operator<=>(const Ended&) const = default;
  };
  mutable std::mutex mutex_;  // guards what follows
  std::map<Ended, uint64_t> requests_;
  Histogram first_token_, token_, total_;
};

}  // namespace pelago::serve
