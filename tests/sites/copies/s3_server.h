// A store of the tests' own that speaks as much of Amazon's S3 protocol over HTTP as pelago uses:
// objects with etags, conditions, ranges, uploads in parts. It checks every signature by a
// computation of its own, and can be told to answer 503, to break connections, to be slow, and to
// let another writer in at the worst moment.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace pelago::testing {

class S3Server {
 public:
  static constexpr const char* kAccessKey = "AKIDEXAMPLE";
  static constexpr const char* kSecretKey = "secret/of+the tests";

  S3Server();
  ~S3Server();

  std::string endpoint() const;
  /// "bucket/key" -> bytes.
  std::map<std::string, std::string> objects() const;
  void set_object(const std::string& path, const std::string& bytes);
  size_t num_open_uploads() const;

  // Faults, each for so many of the next requests.
  std::atomic<int> refuse_503 = 0;
  std::atomic<int> break_before = 0;     // the connection ends before the request was carried out
  std::atomic<int> break_after = 0;      // carried out, but the answer never comes
  std::atomic<int> break_answers = 0;    // half of the answer's body comes
  std::atomic<int> lose_completion = 0;  // as break_after, of uploads that are completed
  std::atomic<bool> is_silent = false;   // takes requests and answers none
  std::atomic<bool> is_down = false;     // 503 to everything
  /// Before the next conditional writing, once.
  void before_condition(std::function<void()> intrude);

  std::atomic<int> num_requests = 0;
  std::atomic<int> num_bad_signatures = 0;
  std::atomic<int> num_lost_races = 0;

 private:
  struct Request {
    std::string method, path, query, body;
    std::map<std::string, std::string> headers;  // names in small letters
  };
  struct Answer {
    int status = 200;
    std::string body;
    std::string etag = {};
  };
  void accept_all(const std::stop_token& stop);
  void serve(int connection, const std::stop_token& stop);
  bool read_request(int connection, const std::stop_token& stop, Request& request) const;
  Answer answer(const Request& request);
  Answer get(const Request& request) const;
  Answer put(const Request& request);
  Answer post(const Request& request);
  bool is_signed(const Request& request) const;

  int listener_ = -1;
  int port_ = 0;
  mutable std::mutex mutex_;  // guards the four below
  std::map<std::string, std::string> objects_;
  std::map<std::string, std::map<int, std::string>> uploads_;  // by id, parts by number
  int num_uploads_ = 0;
  std::function<void()> intrude_;
  std::mutex connections_mutex_;  // guards connections_
  std::vector<std::jthread> connections_;
  std::jthread acceptor_;  // last: it uses the members above
};

}  // namespace pelago::testing
