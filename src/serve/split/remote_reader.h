// The decode side's end of the link: sends prompts to be read and receives their pages. The pages
// are reserved here before the order goes out, and keep room for the longest sequence, so what
// arrives always has a place and whoever runs can end. Without room a prompt waits here, in a queue
// that is fair between users; only few are ordered ahead.
//
// What cannot be read elsewhere is read here: short prompts, what the other side refuses, and
// everything while there is no link. Nobody's answer ends because a link is lost: what was on its
// way is read here. Where a keeper brings another link, prompts go over it as soon as the side
// behind it has greeted.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "chips/ucx/frames/frame_link.h"
#include "serve/split/link_keeper.h"
#include "serve/split/prompt_reader.h"
#include "serve/split/wire.h"

namespace pelago::serve {

struct RemoteOptions {
  int64_t tokens_min = 64;  // shorter prompts, or what of them is not known, are read here
  double local_share = 0;   // of prompt tokens that are read here all the same, as the plan has it
  int orders_max = 4;       // ahead: enough to keep the other side and the line at work
  uint64_t model_key = 0;   // of the weights; the prefill side must have the same
};

class RemoteReader final : public PromptReader {
 public:
  /// keeper: of the links that come after this one; null: none do.
  RemoteReader(std::unique_ptr<chips::FrameLink> link,
               const RemoteOptions& options,
               std::unique_ptr<LinkKeeper> keeper = nullptr);
  ~RemoteReader() override;

  void start(PagePool& pool, ModelRunner& runner, std::function<void()> wake) override;
  void stop() override;
  bool offer(Waiting& waiting) override;
  bool erase(RequestId request) override;
  std::vector<Waiting> take_ready(const Room& room) override;
  uint64_t num_read() const override { return num_read_; }
  bool is_up() const override { return is_up_; }
  uint64_t num_restarts() const override { return keeper_ ? keeper_->num_restarts() : 0; }
  int64_t num_waiting() const override;
  int64_t num_waiting_tokens() const override { return num_tokens_; }

  /// Why the other side reads nothing now; empty: it does, or is about to. Any thread.
  std::string lost() const;

 private:
  /// Where the pages of an order go.
  struct Import {
    std::vector<int32_t> pages;  // of the sequence
    size_t first_page = 0;       // that is to come
    size_t num_missing = 0;      // layers of pages
  };
  struct Ordered;
  void on_frame(std::span<const std::byte> frame);
  std::string greet(std::span<const std::byte> content);
  std::string take_pages(const SplitHead& head, std::span<const std::byte> content);
  void lose(const std::string& why);
  void note(const std::string& why_lost);
  void listen();
  /// Where the link is lost or another has come.
  void take_news(std::vector<Waiting>& ready);
  void hand_over(RequestId request, bool is_read, std::vector<Waiting>& ready);
  /// Returns the tokens that a prompt may have; 0: the other side has not greeted yet.
  int64_t take_arrived(std::vector<Waiting>& ready);
  bool reserve(const Waiting& waiting, const Room& room, PageTable& pages, int64_t& num_found);
  void order(Waiting waiting, PageTable pages, int64_t num_found);
  void send_order(const Waiting& waiting, size_t num_tokens, size_t first_page);
  size_t layer_bytes() const;

  const RemoteOptions options_;
  PagePool* pool_ = nullptr;       // outlives me
  ModelRunner* runner_ = nullptr;  // outlives me
  std::function<void()> wake_;
  FairQueue queue_;
  std::map<RequestId, Waiting> ordered_;  // with their pages
  int64_t num_tokens_ = 0;
  double local_debt_ = 0;  // tokens that ought to have been read here
  std::atomic<uint64_t> num_read_{0};
  std::atomic<bool> is_up_{false};  // it has greeted and is not lost
  bool is_down_ = false;            // the link was lost and no other has greeted: all is read here
  uint64_t link_idx_ = 0;

  mutable std::mutex imports_mutex_;  // guards what follows
  std::map<RequestId, Import> imports_;
  std::vector<RequestId> arrived_, refused_;
  int64_t tokens_max_ = 0;  // 0: the other side has not greeted yet
  std::string lost_;

  std::unique_ptr<LinkKeeper> keeper_;
  std::unique_ptr<chips::FrameLink> link_;  // last: its thread uses what is above
};

}  // namespace pelago::serve
