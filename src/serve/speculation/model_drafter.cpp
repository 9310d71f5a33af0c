#include "serve/speculation/model_drafter.h"

#include <algorithm>
#include <utility>

namespace pelago::serve {

/// A sequence that goes on guessing.
struct ModelDrafter::Reader {
  const DraftTask* task;
  Known* known;
};

ModelDrafter::ModelDrafter(std::unique_ptr<ModelRunner> runner)
    : runner_(std::move(runner)),
      pool_(static_cast<int32_t>(runner_->num_pages()), static_cast<int>(runner_->page_tokens())) {}

// Reads all but the last token of the sequence, and takes back what was guessed wrongly before.
bool ModelDrafter::catch_up(const DraftTask& task, Known& known) {
  const std::vector<int32_t>& tokens = task.sequence->tokens;
  const auto differs =
      std::mismatch(known.tokens.begin(), known.tokens.end(), tokens.begin(), tokens.end() - 1);
  known.tokens.erase(differs.first, known.tokens.end());
  std::vector<PageCopy> copies;  // none: no page is shared
  while (known.tokens.size() + 1 < tokens.size()) {
    const size_t begin = known.tokens.size();
    const size_t num_new =
        std::min(tokens.size() - 1 - begin, static_cast<size_t>(runner_->max_batch_tokens()));
    const auto end = static_cast<int64_t>(begin + num_new);
    if (!known.pages.grow(static_cast<int64_t>(begin), end, copies)) return false;
    const SequenceChunk chunk = {.tokens = std::span(tokens).subspan(begin, num_new),
                                 .first_position = static_cast<int64_t>(begin),
                                 .pages = known.pages.pages(),
                                 .wanted = Wanted::kNothing};
    runner_->forward(std::span(&chunk, 1));
    known.tokens.assign(tokens.begin(), tokens.begin() + end);
  }
  return true;
}

void ModelDrafter::propose(std::span<const DraftTask> tasks) {
  std::vector<Reader> readers;
  for (const DraftTask& task : tasks) {
    if (task.num_wanted < 1) continue;
    Known& known = known_.try_emplace(task.sequence, pool_).first->second;
    if (catch_up(task, known)) {
      readers.push_back({.task = &task, .known = &known});
    } else {
      known_.erase(task.sequence);  // no room: this one goes without guesses
    }
  }
  while (!readers.empty()) read_last(readers);
}

// One pass over the last token of each; those with guesses enough drop out.
void ModelDrafter::read_last(std::vector<Reader>& readers) {
  std::vector<PageCopy> copies;
  std::erase_if(readers, [&](const Reader& reader) {
    const Sequence& sequence = *reader.task->sequence;
    Known& known = *reader.known;
    const auto at = static_cast<int64_t>(known.tokens.size());
    if (static_cast<int>(sequence.draft.size()) == reader.task->num_wanted ||
        at + 1 >= runner_->context_length() || !known.pages.grow(at, at + 1, copies)) {
      return true;
    }
    known.tokens.push_back(sequence.draft.empty() ? sequence.tokens.back() : sequence.draft.back());
    return false;
  });
  const auto num_rows_max = static_cast<size_t>(runner_->max_batch_tokens());
  for (size_t begin = 0; begin < readers.size(); begin += num_rows_max) {
    const std::span<const Reader> some =
        std::span(readers).subspan(begin, std::min(num_rows_max, readers.size() - begin));
    std::vector<SequenceChunk> chunks;
    for (const Reader& reader : some) {
      chunks.push_back({.tokens = std::span(reader.known->tokens).last(1),
                        .first_position = static_cast<int64_t>(reader.known->tokens.size()) - 1,
                        .pages = reader.known->pages.pages()});
    }
    std::span<const float> logits = runner_->forward(chunks).logits;
    const auto vocab_size = static_cast<size_t>(runner_->vocab_size());
    for (const Reader& reader : some) {
      Sequence& sequence = *reader.task->sequence;
      const int64_t position =
          sequence.num_tokens() - sequence.num_prompt + static_cast<int64_t>(sequence.draft.size());
      const auto token =
          reader.task->sampler->draw(logits.first(vocab_size), nullptr, position, scratch_);
      sequence.draft.push_back(token.value_or(0));
      logits = logits.subspan(vocab_size);
    }
  }
}

}  // namespace pelago::serve
