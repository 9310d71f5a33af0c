#include "serve/http/outbox.h"

#include <fmt/format.h>

namespace pelago::serve {

namespace {

class OutboxReply final : public HttpReply {
 public:
  OutboxReply(std::shared_ptr<Outbox> outbox,
              uint64_t request_idx,
              std::shared_ptr<void> server,
              std::function<HttpResponse()> unanswered)
      : server_(std::move(server)),
        outbox_(std::move(outbox)),
        request_idx_(request_idx),
        unanswered_(std::move(unanswered)) {}
  ~OutboxReply() override { outbox_->drop(request_idx_, unanswered_); }
  void send(HttpResponse response) override { outbox_->send(request_idx_, response); }
  void begin(HttpResponse head) override { outbox_->begin(request_idx_, head); }
  bool write(std::string_view piece) override { return outbox_->write(request_idx_, piece); }
  void end() override { outbox_->end(request_idx_); }
  void cut() override { outbox_->cut(request_idx_); }
  void on_gone(std::function<void()> callback) override {
    outbox_->on_gone(request_idx_, std::move(callback));
  }

 private:
  std::shared_ptr<void> server_;  // outlives the outbox: let go last
  std::shared_ptr<Outbox> outbox_;
  const uint64_t request_idx_;
  std::function<HttpResponse()> unanswered_;
};

}  // namespace

uint64_t Outbox::open(const Request& request) {
  const std::lock_guard lock(mutex_);
  request_ = request;
  answer_ = Answer::kNone;
  return ++request_idx_;
}

void Outbox::encourage() {
  const std::lock_guard lock(mutex_);
  put("HTTP/1.1 100 Continue\r\n\r\n");
}

bool Outbox::take(std::string& out) {
  const std::lock_guard lock(mutex_);
  is_awake_ = false;
  out.swap(waiting_);
  return out.empty() && answer_ == Answer::kComplete;
}

void Outbox::sent(size_t num_bytes) {
  const std::lock_guard lock(mutex_);
  unread_bytes_ -= num_bytes;
}

bool Outbox::closes() const {
  const std::lock_guard lock(mutex_);
  return request_.closes || *options_.is_draining;
}

std::function<void()> Outbox::close() {
  const std::lock_guard lock(mutex_);
  is_gone_ = true;
  waiting_.clear();
  std::function<void()> gone;
  gone.swap(gone_);
  return gone;
}

void Outbox::put(std::string_view text) {
  waiting_ += text;
  unread_bytes_ += text.size();
  wake();
}

void Outbox::wake() {
  if (is_awake_ || is_gone_) return;
  is_awake_ = true;
  options_.wake();
}

void Outbox::send(uint64_t request_idx, const HttpResponse& response) {
  std::function<void()> ended;  // what it holds is let go after the lock
  const std::lock_guard lock(mutex_);
  if (request_idx != request_idx_ || answer_ != Answer::kNone || is_gone_) return;
  answer_ = Answer::kComplete;
  ended.swap(gone_);
  put(format_head(response, {.closes = request_.closes || *options_.is_draining}));
  if (!request_.is_head && response.status != 204 && response.status != 304) put(response.body);
}

void Outbox::begin(uint64_t request_idx, const HttpResponse& head) {
  {
    const std::lock_guard lock(mutex_);
    if (request_idx != request_idx_ || answer_ != Answer::kNone || is_gone_) return;
    answer_ = Answer::kStreaming;
    request_.closes = request_.closes || request_.is_old;
    put(format_head(head,
                    {.is_stream = true,
                     .is_chunked = !request_.is_old,
                     .closes = request_.closes || *options_.is_draining}));
  }
  if (!head.body.empty()) write(request_idx, head.body);
}

bool Outbox::write(uint64_t request_idx, std::string_view piece) {
  const std::lock_guard lock(mutex_);
  if (request_idx != request_idx_ || answer_ != Answer::kStreaming || is_gone_) return false;
  if (unread_bytes_ + piece.size() > options_.unread_bytes_max) return false;
  if (request_.is_head || piece.empty()) return true;
  put(request_.is_old ? std::string(piece) : fmt::format("{:x}\r\n{}\r\n", piece.size(), piece));
  return true;
}

void Outbox::end(uint64_t request_idx) {
  std::function<void()> ended;
  const std::lock_guard lock(mutex_);
  if (request_idx != request_idx_ || answer_ != Answer::kStreaming || is_gone_) return;
  answer_ = Answer::kComplete;
  ended.swap(gone_);
  if (!request_.is_old && !request_.is_head) put("0\r\n\r\n");
  wake();
}

void Outbox::cut(uint64_t request_idx) {
  std::function<void()> ended;
  const std::lock_guard lock(mutex_);
  if (request_idx != request_idx_ || answer_ == Answer::kComplete || is_gone_) return;
  is_gone_ = true;
  ended.swap(gone_);
  options_.cut();
}

void Outbox::on_gone(uint64_t request_idx, std::function<void()> callback) {
  {
    const std::lock_guard lock(mutex_);
    if (request_idx != request_idx_ || answer_ == Answer::kComplete) return;
    if (!is_gone_) {
      gone_.swap(callback);  // the one before is let go after the lock
      return;
    }
  }
  callback();
}

void Outbox::drop(uint64_t request_idx, const std::function<HttpResponse()>& unanswered) {
  bool is_unanswered = false;
  {
    const std::lock_guard lock(mutex_);
    is_unanswered = request_idx == request_idx_ && answer_ == Answer::kNone && !is_gone_;
  }
  if (is_unanswered) send(request_idx, unanswered());
  cut(request_idx);  // does nothing if the answer is complete
}

HttpReplyPtr reply_over(std::shared_ptr<Outbox> outbox,
                        uint64_t request_idx,
                        std::shared_ptr<void> server,
                        std::function<HttpResponse()> unanswered) {
  return std::make_shared<OutboxReply>(
      std::move(outbox), request_idx, std::move(server), std::move(unanswered));
}

}  // namespace pelago::serve
