// One client's connection: from the bytes that come to requests, from replies to the bytes that go.
#include <boost/asio/post.hpp>

#include "base/clock.h"
#include "base/log.h"
#include "serve/http/http_core.h"

namespace pelago::serve {

namespace {

namespace http = boost::beast::http;

constexpr double kLinger_s = 2;                // as nginx's lingering_timeout, less than half
constexpr size_t kPendingBytesMax = 64 << 10;  // of next requests, while one is answered

}  // namespace

Connection::Connection(HttpServerCore& core, std::unique_ptr<Line> line, std::string peer)
    : outbox(
          {.unread_bytes_max = core.options.unread_bytes_max,
           .is_draining = &core.is_draining,
           .wake = [this] { asio::post(core_.io, [self = shared_from_this()] { self->flush(); }); },
           .cut =
               [this] { asio::post(core_.io, [self = shared_from_this()] { self->close(); }); }}),
      core_(core),
      line_(std::move(line)),
      peer_(std::move(peer)) {
  parser_.emplace();
}

void Connection::start() {
  deadline_s_ = steady_now_s() + core_.options.header_deadline_s;
  line_->handshake([self = shared_from_this()](const SystemError& error, size_t) {
    if (error) return self->close();
    self->idle_since_s_ = steady_now_s();
    self->deadline_s_ = self->idle_since_s_ + self->core_.options.idle_s;
    self->read();
  });
}

void Connection::read() {
  if (is_reading_ || state_ == State::kClosed) return;
  is_reading_ = true;
  line_->read_some(asio::buffer(chunk_),
                   [self = shared_from_this()](const SystemError& error, size_t num_bytes) {
                     self->is_reading_ = false;
                     self->on_read(error, num_bytes);
                   });
}

void Connection::on_read(const SystemError& error, size_t num_bytes) {
  if (state_ == State::kClosed) return;
  if (error) return close();
  if (state_ == State::kLingering) return read();
  pending_.append(chunk_.data(), num_bytes);
  if (state_ == State::kReading) parse();
  const bool is_full = state_ == State::kAnswering && pending_.size() >= kPendingBytesMax;
  if (!is_full) read();
}

void Connection::parse() {
  if (pending_.empty()) return;
  const bool had_header = parser_->is_header_done();
  if (!had_header && deadline_s_ > steady_now_s() + core_.options.header_deadline_s) {
    deadline_s_ = steady_now_s() + core_.options.header_deadline_s;
  }
  parser_->eager(true);
  parser_->header_limit(static_cast<uint32_t>(core_.options.header_bytes_max));
  parser_->body_limit(core_.options.body_bytes_max);
  while (!pending_.empty() && !parser_->is_done()) {
    SystemError error;
    const size_t num_used = parser_->put(asio::buffer(pending_), error);
    pending_.erase(0, num_used);
    if (error == http::error::body_limit) {
      return refuse(413,
                    fmt::format("the body is longer than {} bytes", core_.options.body_bytes_max));
    }
    if (error == http::error::header_limit || pending_.size() > core_.options.header_bytes_max) {
      return refuse(
          431, fmt::format("the header is longer than {} bytes", core_.options.header_bytes_max));
    }
    if (error && error != http::error::need_more) {
      return refuse(400, "not an HTTP request: " + error.message());
    }
    if (error || num_used == 0) break;
  }
  if (!had_header && parser_->is_header_done()) check_header();
  if (!hold_body(parser_->get().body().size())) {
    return refuse(503, "too many large requests at once; try again later");
  }
  if (parser_->is_done()) dispatch();
}

void Connection::check_header() {
  deadline_s_ = steady_now_s() + core_.options.body_deadline_s;
  const auto expect = parser_->get()[http::field::expect];
  if (!parser_->is_done() && lower_case(std::string(expect)) == "100-continue") {
    outbox.encourage();
  }
}

// Counts a body's bytes as they come, over all connections. False if that is too many.
bool Connection::hold_body(size_t num_bytes) {
  core_.all_bodies_bytes += num_bytes - held_bytes_;
  held_bytes_ = num_bytes;
  return core_.all_bodies_bytes <= core_.options.all_bodies_bytes_max;
}

void Connection::release_body() {
  core_.all_bodies_bytes -= held_bytes_;
  held_bytes_ = 0;
}

void Connection::dispatch() {
  auto message = parser_->release();
  HttpRequest request;
  request.method = std::string(message.method_string());
  if (!split_target(std::string(message.target()), request)) {
    return refuse(400, "the path holds a broken escape");
  }
  for (const auto& field : message) {
    request.headers.emplace_back(lower_case(std::string(field.name_string())),
                                 std::string(field.value()));
  }
  request.body = std::move(message.body());
  request.peer = peer_;
  request.is_tls = core_.tls != nullptr;

  state_ = State::kAnswering;
  deadline_s_ = kNever;
  ++core_.num_active;
  ++core_.num_requests;
  const uint64_t idx = outbox.open({.is_head = request.method == "HEAD",
                                    .is_old = message.version() < 11,
                                    .closes = !message.keep_alive()});
  auto reply = reply_over({shared_from_this(), &outbox}, idx, core_.shared_from_this(), [this] {
    return core_.error(500, "this request could not be answered; see the server's log");
  });
  const auto [handler, allowed] = core_.routes.find(request.method, request.path);
  if (handler == nullptr) {
    HttpResponse response =
        allowed.empty()
            ? core_.error(404, fmt::format("nothing is at {}", request.path))
            : core_.error(405, fmt::format("{} does not take {}", request.path, request.method));
    if (!allowed.empty()) response.headers.emplace_back("Allow", allowed);
    release_body();
    return reply->send(std::move(response));
  }
  asio::post(*core_.handlers,
             [handler = handler,
              reply,
              self = shared_from_this(),
              request = std::move(request)]() mutable {
               try {
                 (*handler)(std::move(request), std::move(reply));
               } catch (const std::exception& error) {
                 log_error("http handler failed why=\"{}\"", error.what());
               }
               asio::post(self->core_.io, [self] { self->release_body(); });
             });
}

void Connection::refuse(int status, const std::string& message) {
  if (state_ == State::kReading) ++core_.num_active;
  state_ = State::kAnswering;
  deadline_s_ = kNever;
  release_body();
  ++core_.num_refused;
  const uint64_t idx = outbox.open({.closes = true});
  outbox.send(idx, core_.error(status, message));
}

void Connection::flush() {
  if (is_writing_ || state_ == State::kClosed) return;
  writing_.clear();
  const bool is_complete = outbox.take(writing_);
  num_written_ = 0;
  if (!writing_.empty()) {
    is_writing_ = true;
    write_on();
  } else if (is_complete && state_ == State::kAnswering) {
    finish_answer();
  }
}

void Connection::write_on() {
  write_deadline_s_ = steady_now_s() + core_.options.stall_s;
  line_->write_some(asio::buffer(writing_) + num_written_,
                    [self = shared_from_this()](const SystemError& error, size_t num_bytes) {
                      if (error) return self->close();
                      self->num_written_ += num_bytes;
                      self->outbox.sent(num_bytes);
                      if (self->num_written_ < self->writing_.size()) return self->write_on();
                      self->is_writing_ = false;
                      self->write_deadline_s_ = kNever;
                      self->flush();
                    });
}

void Connection::finish_answer() {
  --core_.num_active;
  if (outbox.closes()) return linger();
  state_ = State::kReading;
  parser_.emplace();
  idle_since_s_ = steady_now_s();
  deadline_s_ = idle_since_s_ + core_.options.idle_s;
  parse();
  read();
}

void Connection::linger() {
  SystemError ignored;
  state_ = State::kLingering;
  deadline_s_ = steady_now_s() + kLinger_s;
  pending_.clear();
  line_->socket().shutdown(Tcp::socket::shutdown_send, ignored);
  read();
}

void Connection::check_deadline(double now_s) {
  if (now_s >= write_deadline_s_) return close();
  if (now_s < deadline_s_) return;
  const bool has_begun = !pending_.empty() || parser_->is_header_done();
  if (state_ != State::kReading || !has_begun) return close();
  refuse(408, "the request did not come in time");
}

void Connection::close() {
  if (state_ == State::kClosed) return;
  if (state_ == State::kAnswering) --core_.num_active;
  state_ = State::kClosed;
  SystemError ignored;
  line_->socket().close(ignored);
  release_body();
  if (const auto gone = outbox.close()) gone();
  const auto self = shared_from_this();
  core_.connections.erase(place);
  const std::lock_guard lock(core_.open_mutex);
  --core_.num_open;
  core_.open_changed.notify_all();
}

}  // namespace pelago::serve
