#include "serve/split/remote_reader.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "base/log.h"

namespace pelago::serve {

RemoteReader::RemoteReader(std::unique_ptr<chips::FrameLink> link,
                           const RemoteOptions& options,
                           std::unique_ptr<LinkKeeper> keeper)
    : options_(options), keeper_(std::move(keeper)), link_(std::move(link)) {
  PELAGO_ASSERT(options.local_share >= 0 && options.local_share <= 1 && options.orders_max > 0,
                "a share is part of a whole");
}

RemoteReader::~RemoteReader() { stop(); }

size_t RemoteReader::layer_bytes() const {
  return static_cast<size_t>(runner_->bytes_per_page() / runner_->num_layers());
}

void RemoteReader::start(PagePool& pool, ModelRunner& runner, std::function<void()> wake) {
  pool_ = &pool;
  runner_ = &runner;
  wake_ = std::move(wake);
  listen();
  if (keeper_) keeper_->start(wake_);
}

void RemoteReader::listen() {
  link_->start({.on_frame = [this](std::span<const std::byte> frame) { on_frame(frame); },
                .on_lost = [this](const std::string& why) { lose(why); }});
}

void RemoteReader::stop() {
  if (keeper_) keeper_->close();
  link_.reset();  // while the other end is there to hear of it
  is_up_ = false;
  imports_.clear();
  ordered_.clear();
  while (queue_.front() != nullptr) queue_.pop();
  num_tokens_ = 0;
  note("the engine is closed");
}

// The link's thread.

void RemoteReader::on_frame(std::span<const std::byte> frame) {
  std::span<const std::byte> content;
  const std::optional<SplitHead> head = read_split(frame, content);
  std::string wrong = head ? "" : "it sent a frame that is cut short";
  if (head && head->kind == SplitKind::kHello) wrong = greet(content);
  if (head && head->kind == SplitKind::kPages) wrong = take_pages(*head, content);
  if (head && head->kind == SplitKind::kRefused) {
    const std::lock_guard lock(imports_mutex_);
    if (imports_.erase(head->request) > 0) refused_.push_back(head->request);
  }
  if (!wrong.empty()) return lose(wrong);
  if (!head || head->kind != SplitKind::kPages) wake_();
}

std::string RemoteReader::greet(std::span<const std::byte> content) {
  Greeting greeting;
  if (content.size() != sizeof greeting) return "its greeting is of another version";
  std::memcpy(&greeting, content.data(), sizeof greeting);
  if (greeting.model_key != options_.model_key || greeting.page_tokens != runner_->page_tokens() ||
      greeting.bytes_per_page != runner_->bytes_per_page() ||
      greeting.num_layers != runner_->num_layers() ||
      greeting.vocab_size != runner_->vocab_size() || greeting.tokens_max < 1) {
    return fmt::format(
        "it has another model, kv_dtype or page_tokens: {} bytes for {} tokens, here {} for {}",
        greeting.bytes_per_page,
        greeting.page_tokens,
        runner_->bytes_per_page(),
        runner_->page_tokens());
  }
  const std::lock_guard lock(imports_mutex_);
  tokens_max_ = greeting.tokens_max;
  return "";
}

std::string RemoteReader::take_pages(const SplitHead& head, std::span<const std::byte> content) {
  bool is_whole = false;
  {
    // Also while the pages are written: who cancels frees them under this mutex.
    const std::lock_guard lock(imports_mutex_);
    const auto found = imports_.find(head.request);
    if (found == imports_.end()) return "";  // cancelled meanwhile
    Import& import = found->second;
    const size_t begin = head.first, end = begin + head.count;
    if (head.layer_idx >= runner_->num_layers() || begin < import.first_page ||
        end > import.pages.size() || head.count > import.num_missing ||
        content.size() != head.count * layer_bytes()) {
      return fmt::format("it sent pages of request {} that nobody asked for", head.request);
    }
    for (size_t idx = begin; idx < end; ++idx) {
      runner_->write_layer(import.pages[idx],
                           head.layer_idx,
                           content.subspan((idx - begin) * layer_bytes(), layer_bytes()));
    }
    import.num_missing -= head.count;
    is_whole = import.num_missing == 0;
    if (is_whole) {
      imports_.erase(found);
      arrived_.push_back(head.request);
    }
  }
  if (is_whole) wake_();
  return "";
}

void RemoteReader::note(const std::string& why_lost) {
  const std::lock_guard lock(imports_mutex_);
  if (lost_.empty()) lost_ = why_lost;
}

void RemoteReader::lose(const std::string& why) {
  note(why);
  wake_();
}

std::string RemoteReader::lost() const {
  const std::lock_guard lock(imports_mutex_);
  return lost_;
}

// The engine's thread.

int64_t RemoteReader::num_waiting() const {
  return queue_.size() + static_cast<int64_t>(ordered_.size());
}

bool RemoteReader::offer(Waiting& waiting) {
  const auto num_prompt = static_cast<int64_t>(waiting.prompt.size());
  if (is_down_ || num_prompt <= options_.tokens_min) return false;
  local_debt_ += options_.local_share * static_cast<double>(num_prompt);
  if (local_debt_ >= static_cast<double>(num_prompt)) {
    local_debt_ -= static_cast<double>(num_prompt);
    return false;
  }
  num_tokens_ += num_prompt;
  queue_.push(std::move(waiting));
  return true;
}

bool RemoteReader::erase(RequestId request) {
  const int64_t num_before = queue_.num_tokens();
  if (queue_.erase(request)) {
    num_tokens_ -= num_before - queue_.num_tokens();
    return true;
  }
  const auto found = ordered_.find(request);
  if (found == ordered_.end()) return false;
  {
    const std::lock_guard lock(imports_mutex_);
    imports_.erase(request);
    std::erase(arrived_, request);
    std::erase(refused_, request);
  }
  num_tokens_ -= static_cast<int64_t>(found->second.prompt.size());
  ordered_.erase(found);
  link_->send([request](std::span<std::byte> frame) {
    return put_split(frame, {.kind = SplitKind::kCancel, .request = request});
  });
  return true;
}

std::vector<Waiting> RemoteReader::take_ready(const Room& room) {
  std::vector<Waiting> ready;
  take_news(ready);
  const int64_t tokens_max = take_arrived(ready);
  Room left = room;
  for (const Waiting& waiting : ready) {
    if (waiting.pages) {
      left.num_pages_waiting += static_cast<int64_t>(waiting.pages->pages().size());
    }
  }
  while (const Waiting* front = queue_.front()) {
    const bool is_full = ordered_.size() >= static_cast<size_t>(options_.orders_max);
    if (!is_down_ && (tokens_max == 0 || is_full)) break;
    PageTable pages(*pool_);
    int64_t num_found = 0;
    const auto num_prompt = static_cast<int64_t>(front->prompt.size());
    bool is_local = is_down_ || num_prompt - 1 > tokens_max;
    if (!is_local) {
      num_found = pages.take_prefix(front->prompt, num_prompt - 1);
      // Alone it must fit, or it would wait for ever.
      const int64_t num_pages =
          pages.num_missing(num_prompt - 1) + static_cast<int64_t>(pages.pages().size());
      is_local = num_prompt - num_found <= options_.tokens_min ||
                 num_pages + room.num_pages_kept > pool_->num_pages();
    }
    if (!is_local && !reserve(*front, left, pages, num_found)) break;
    Waiting waiting = queue_.pop();
    queue_.charge(waiting.user, num_prompt - num_found);
    if (is_local) {
      num_tokens_ -= num_prompt;
      ready.push_back(std::move(waiting));
    } else {
      order(std::move(waiting), std::move(pages), num_found);
    }
  }
  return ready;
}

void RemoteReader::hand_over(RequestId request, bool is_read, std::vector<Waiting>& ready) {
  auto node = ordered_.extract(request);
  num_tokens_ -= static_cast<int64_t>(node.mapped().prompt.size());
  num_read_ += is_read ? 1 : 0;
  if (!is_read) node.mapped().pages.reset();
  ready.push_back(std::move(node.mapped()));
}

void RemoteReader::take_news(std::vector<Waiting>& ready) {
  LinkKeeper::News news = keeper_ ? keeper_->news() : LinkKeeper::News();
  if (!news.lost.empty()) note(news.lost);
  const std::string why = lost();
  if (!why.empty() && link_ != nullptr) {
    take_arrived(ready);  // what came whole before
    log_warn("prefill side lost, prompts are read here why=\"{}\"", why);
    is_up_ = false;
    is_down_ = true;
    link_.reset();
    {
      const std::lock_guard lock(imports_mutex_);
      imports_.clear();
      arrived_.clear();
      refused_.clear();
    }
    while (!ordered_.empty()) hand_over(ordered_.begin()->first, /*is_read=*/false, ready);
    if (keeper_) keeper_->note_lost(link_idx_, why);
  }
  if (news.link == nullptr) return;
  {
    const std::lock_guard lock(imports_mutex_);
    lost_.clear();
    tokens_max_ = 0;
  }
  link_ = std::move(news.link);
  link_idx_ = news.link_idx;
  listen();
}

int64_t RemoteReader::take_arrived(std::vector<Waiting>& ready) {
  std::vector<RequestId> arrived, refused;
  int64_t tokens_max = 0;
  bool has_greeted = false;
  {
    const std::lock_guard lock(imports_mutex_);
    arrived = std::exchange(arrived_, {});
    refused = std::exchange(refused_, {});
    tokens_max = tokens_max_;
    has_greeted = lost_.empty() && tokens_max > 0;
  }
  for (const RequestId request : arrived) hand_over(request, /*is_read=*/true, ready);
  for (const RequestId request : refused) hand_over(request, /*is_read=*/false, ready);
  if (has_greeted && std::exchange(is_down_, false)) {
    log_warn("prefill side is back, prompts are read there restarts={}", num_restarts());
  }
  is_up_ = has_greeted;
  return tokens_max;
}

bool RemoteReader::reserve(const Waiting& waiting,
                           const Room& room,
                           PageTable& pages,
                           int64_t& num_found) {
  const auto num_tokens = static_cast<int64_t>(waiting.prompt.size()) - 1;
  int64_t num_reserved = room.num_pages_waiting + static_cast<int64_t>(pages.pages().size());
  for (const auto& [request, other] : ordered_) {
    num_reserved += static_cast<int64_t>(other.pages->pages().size());
  }
  const int64_t num_new = pages.num_missing(num_tokens);
  if (num_reserved + num_new + room.num_pages_kept > pool_->num_pages()) return false;
  // One page more for each that runs, or it would be preempted as soon as a page is full.
  if (num_new + room.num_running + 1 > pool_->num_available()) return false;
  std::vector<PageCopy> copies;
  const bool has_grown = pages.grow(num_found, num_tokens, copies);
  PELAGO_ASSERT(has_grown && copies.empty(), "there was room, and only whole pages are shared");
  return true;
}

void RemoteReader::order(Waiting waiting, PageTable pages, int64_t num_found) {
  const auto num_tokens = waiting.prompt.size() - 1;
  const auto first_page = static_cast<size_t>(num_found / runner_->page_tokens());
  Import import;
  import.pages.assign(pages.pages().begin(), pages.pages().end());
  import.first_page = first_page;
  import.num_missing =
      (import.pages.size() - first_page) * static_cast<size_t>(runner_->num_layers());
  {
    const std::lock_guard lock(imports_mutex_);
    imports_.emplace(waiting.request, std::move(import));
  }
  send_order(waiting, num_tokens, first_page);
  waiting.pages = std::move(pages);
  waiting.num_cached = num_found;
  const RequestId request = waiting.request;
  ordered_.emplace(request, std::move(waiting));
}

void RemoteReader::send_order(const Waiting& waiting, size_t num_tokens, size_t first_page) {
  const size_t tokens_max = (link_->frame_bytes() - sizeof(SplitHead)) / sizeof(int32_t);
  for (size_t begin = 0; begin < num_tokens; begin += tokens_max) {
    const size_t count = std::min(tokens_max, num_tokens - begin);
    const auto first = waiting.prompt.begin() + static_cast<std::ptrdiff_t>(begin);
    const SplitHead head = {.kind = SplitKind::kOrder,
                            .request = waiting.request,
                            .first = static_cast<uint32_t>(begin),
                            .count = static_cast<uint32_t>(count),
                            .total = static_cast<uint32_t>(num_tokens),
                            .first_page = static_cast<uint32_t>(first_page)};
    link_->send(
        [head, tokens = std::vector<int32_t>(first, first + static_cast<std::ptrdiff_t>(count))](
            std::span<std::byte> frame) {
          return put_split(frame, head, std::as_bytes(std::span(tokens)));
        });
  }
}

}  // namespace pelago::serve
