#include "serve/split/prefill_side.h"

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace pelago::serve {

/// What the link's thread knows of an order.
struct PrefillSide::Sending {
  std::atomic<int64_t> num_unsent{0};  // frames that will still read the order's pages
  std::atomic<bool> is_cancelled{false};
};

struct PrefillSide::Order {
  explicit Order(PagePool& pool) : pages(pool) {}
  uint64_t request = 0;
  std::vector<int32_t> tokens;
  size_t num_tokens = 0;  // that it will have
  size_t first_page = 0;  // that is wanted
  PageTable pages;
  bool is_admitted = false;
  size_t num_computed = 0;
  size_t num_pages_sent = 0;
  std::shared_ptr<Sending> sending = std::make_shared<Sending>();  // mine, and its frames'

  bool is_whole() const { return tokens.size() == num_tokens; }
  bool is_cancelled() const { return sending->is_cancelled.load(); }
  bool is_computed() const { return is_admitted && num_computed == num_tokens; }
};

/// An order's share of a pass, and which of its pages are whole after it.
struct PrefillSide::Part {
  Order* order;
  size_t num_tokens;
  size_t first_page, end_page;
};

struct PrefillSide::Mail {
  SplitHead head;
  std::vector<int32_t> tokens;
};

PrefillSide::PrefillSide(ModelRunner& runner,
                         std::unique_ptr<chips::FrameLink> link,
                         const PrefillOptions& options)
    : runner_(runner),
      options_(options),
      pool_(static_cast<int32_t>(runner.num_pages()), static_cast<int>(runner.page_tokens())),
      link_(std::move(link)) {
  PELAGO_ASSERT(options.step_tokens > 0 && options.step_tokens <= runner.max_batch_tokens(),
                "a pass fits into the runner's buffers");
  if (sizeof(SplitHead) + layer_bytes() > link_->frame_bytes()) {
    fail_usage("a layer of a page has {} bytes, a frame {}: choose a smaller page_tokens",
               layer_bytes(),
               link_->frame_bytes());
  }
  runner_.watch_layers([this](int64_t layer_idx) { send_layer(layer_idx); });
  link_->start({.on_frame = [this](std::span<const std::byte> frame) { on_frame(frame); },
                .on_lost =
                    [this](const std::string& why) {
                      const std::lock_guard lock(mail_mutex_);
                      lost_ = why;
                      noticed_.notify_all();
                    }});
  const Greeting greeting = {
      .model_key = options.model_key,
      .page_tokens = runner.page_tokens(),
      .bytes_per_page = runner.bytes_per_page(),
      .num_layers = runner.num_layers(),
      .vocab_size = runner.vocab_size(),
      .tokens_max = std::min(runner.num_pages() * runner.page_tokens(), runner.context_length())};
  link_->send([greeting](std::span<std::byte> frame) {
    return put_split(frame, {.kind = SplitKind::kHello}, std::as_bytes(std::span(&greeting, 1)));
  });
}

PrefillSide::~PrefillSide() {
  runner_.watch_layers({});
  link_.reset();
}

size_t PrefillSide::layer_bytes() const {
  return static_cast<size_t>(runner_.bytes_per_page() / runner_.num_layers());
}

std::string PrefillSide::run(const std::stop_token& stop) {
  while (!stop.stop_requested()) {
    const bool has_worked = step();
    std::unique_lock lock(mail_mutex_);
    if (!has_worked) {
      noticed_.wait(lock, stop, [&] { return has_news_ || !mail_.empty() || !lost_.empty(); });
    }
    if (!lost_.empty()) return lost_;
  }
  return "";
}

void PrefillSide::notice() {
  const std::lock_guard lock(mail_mutex_);
  has_news_ = true;
  noticed_.notify_all();
}

void PrefillSide::on_frame(std::span<const std::byte> frame) {
  std::span<const std::byte> content;
  const std::optional<SplitHead> head = read_split(frame, content);
  if (!head) return;
  Mail mail = {*head, {}};
  if (head->kind == SplitKind::kOrder) {
    if (content.size() != head->count * sizeof(int32_t)) return;
    mail.tokens.resize(head->count);
    std::memcpy(mail.tokens.data(), content.data(), content.size());
  }
  const std::lock_guard lock(mail_mutex_);
  mail_.push_back(std::move(mail));
  noticed_.notify_all();
}

void PrefillSide::read_mail() {
  std::vector<Mail> mails;
  {
    const std::lock_guard lock(mail_mutex_);
    mails = std::exchange(mail_, {});
    has_news_ = false;
  }
  for (const Mail& mail : mails) {
    if (mail.head.kind == SplitKind::kOrder) read_order(mail);
    if (mail.head.kind != SplitKind::kCancel) continue;
    for (const auto& order : orders_) {
      if (order->request == mail.head.request) order->sending->is_cancelled = true;
    }
  }
}

// The parts of one order come one after another, before any part of the next.
void PrefillSide::read_order(const Mail& mail) {
  const SplitHead& head = mail.head;
  const auto refuse = [&] {
    if (!orders_.empty() && orders_.back()->request == head.request) {
      orders_.back()->sending->is_cancelled = true;
    }
    link_->send([request = head.request](std::span<std::byte> frame) {
      return put_split(frame, {.kind = SplitKind::kRefused, .request = request});
    });
  };
  if (head.first == 0) {
    const int64_t tokens_max =
        std::min(runner_.num_pages() * runner_.page_tokens(), runner_.context_length());
    if (head.total == 0 || head.total > tokens_max) return refuse();
    orders_.push_back(std::make_unique<Order>(pool_));
    orders_.back()->request = head.request;
    orders_.back()->num_tokens = head.total;
    orders_.back()->first_page = head.first_page;
  }
  if (orders_.empty() || orders_.back()->request != head.request) return;  // refused before
  Order& order = *orders_.back();
  const bool is_good = std::ranges::all_of(
      mail.tokens, [&](int32_t token) { return token >= 0 && token < runner_.vocab_size(); });
  if (!is_good || head.first != order.tokens.size() ||
      order.tokens.size() + mail.tokens.size() > order.num_tokens) {
    return refuse();
  }
  order.tokens.insert(order.tokens.end(), mail.tokens.begin(), mail.tokens.end());
}

void PrefillSide::retire() {
  std::erase_if(orders_, [&](const std::unique_ptr<Order>& order) {
    const bool is_done = order->is_computed() || order->is_cancelled();
    if (!is_done || order->sending->num_unsent.load() > 0) return false;
    // Not before: remembering may put another page in a page's place, which frames still read.
    if (order->is_computed()) {
      order->pages.remember(order->tokens, static_cast<int64_t>(order->num_computed));
    }
    ++totals_.num_orders_done;
    return true;
  });
}

void PrefillSide::admit() {
  const auto page_tokens = static_cast<size_t>(runner_.page_tokens());
  for (const auto& order : orders_) {
    if (order->is_admitted || order->is_cancelled()) continue;
    if (!order->is_whole()) return;
    const auto num_tokens = static_cast<int64_t>(order->num_tokens);
    const int64_t num_found = order->pages.take_prefix(order->tokens, num_tokens);
    std::vector<PageCopy> copies;
    if (!order->pages.grow(num_found, num_tokens, copies)) {
      order->pages.clear();  // as soon as somebody's pages have been sent
      return;
    }
    PELAGO_ASSERT(copies.empty(), "only whole pages are found, and nobody writes to these");
    order->is_admitted = true;
    order->num_computed = static_cast<size_t>(num_found);
    order->num_pages_sent = std::max(order->first_page, order->num_computed / page_tokens);
    for (int64_t layer_idx = 0; layer_idx < runner_.num_layers(); ++layer_idx) {
      send_pages(*order, layer_idx, order->first_page, order->num_computed / page_tokens);
    }
  }
}

bool PrefillSide::step() {
  read_mail();
  retire();
  admit();
  const auto page_tokens = static_cast<size_t>(runner_.page_tokens());
  auto budget = static_cast<size_t>(options_.step_tokens);
  parts_.clear();
  std::vector<SequenceChunk> chunks;
  for (const auto& order : orders_) {
    if (!order->is_admitted || order->is_cancelled() || order->is_computed() || budget == 0) {
      continue;
    }
    const size_t num_tokens = std::min(order->num_tokens - order->num_computed, budget);
    budget -= num_tokens;
    const size_t end = order->num_computed + num_tokens;
    // A page goes out when it is whole, the last one when the prompt is.
    const size_t end_page =
        end == order->num_tokens ? order->pages.pages().size() : end / page_tokens;
    parts_.push_back({order.get(), num_tokens, order->num_pages_sent, end_page});
    chunks.push_back(
        {.tokens = std::span<const int32_t>(order->tokens).subspan(order->num_computed, num_tokens),
         .first_position = static_cast<int64_t>(order->num_computed),
         .pages = order->pages.pages(),
         .wanted = Wanted::kNothing});
  }
  if (chunks.empty()) return false;
  num_layers_sent_ = 0;
  runner_.forward(chunks);
  while (num_layers_sent_ < runner_.num_layers()) send_layer(num_layers_sent_);
  for (const Part& part : parts_) {
    part.order->num_computed += part.num_tokens;
    part.order->num_pages_sent = std::max(part.first_page, part.end_page);
    totals_.num_tokens_computed += part.num_tokens;
  }
  return true;
}

void PrefillSide::send_layer(int64_t layer_idx) {
  num_layers_sent_ = layer_idx + 1;
  for (const Part& part : parts_) {
    send_pages(*part.order, layer_idx, part.first_page, part.end_page);
  }
}

void PrefillSide::send_pages(Order& order, int64_t layer_idx, size_t begin, size_t end) {
  const size_t pages_max = (link_->frame_bytes() - sizeof(SplitHead)) / layer_bytes();
  for (; begin < end; begin += std::min(pages_max, end - begin)) {
    const size_t count = std::min(pages_max, end - begin);
    const auto first = order.pages.pages().begin() + static_cast<std::ptrdiff_t>(begin);
    const SplitHead head = {.kind = SplitKind::kPages,
                            .layer_idx = static_cast<uint32_t>(layer_idx),
                            .request = order.request,
                            .first = static_cast<uint32_t>(begin),
                            .count = static_cast<uint32_t>(count)};
    order.sending->num_unsent.fetch_add(1);
    link_->send([this,
                 head,
                 sending = order.sending,
                 pages = std::vector<int32_t>(first, first + static_cast<std::ptrdiff_t>(count))](
                    std::span<std::byte> frame) { return fill(frame, head, pages, *sending); });
  }
}

/// On the link's thread: the pages are kept until it has run.
size_t PrefillSide::fill(std::span<std::byte> frame,
                         SplitHead head,
                         const std::vector<int32_t>& pages,
                         Sending& sending) {
  size_t num_bytes = 0;
  if (!sending.is_cancelled.load()) {
    num_bytes = put_split(frame, head);
    for (const int32_t page_idx : pages) {
      runner_.read_layer(page_idx, head.layer_idx, frame.subspan(num_bytes, layer_bytes()));
      num_bytes += layer_bytes();
    }
  }
  if (sending.num_unsent.fetch_sub(1) == 1) notice();
  return num_bytes;
}

PrefillStats PrefillSide::stats() const {
  PrefillStats stats = totals_;
  stats.num_orders = static_cast<int64_t>(orders_.size());
  stats.num_pages_used = pool_.num_held();
  return stats;
}

}  // namespace pelago::serve
