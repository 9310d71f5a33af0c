#include "serve/local/batch_engine.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "serve/grammar/token_constraint.h"
#include "serve/pages/page_table.h"

namespace pelago::serve {

namespace {

int64_t context_of(const ModelRunner& runner, const BatchOptions& options) {
  const int64_t held = runner.num_pages() * runner.page_tokens();
  const int64_t wanted = options.context_tokens_max > 0 ? options.context_tokens_max : held;
  return std::min({held, wanted, runner.context_length()});
}

/// If the constraint cannot say, the next draw will.
bool may_go_on(TokenCursor& cursor) {
  const Result<const TokenMask*> allowed = cursor.allowed();
  return !allowed || allows_any(**allowed);
}

}  // namespace

/// One of a request's answers.
struct BatchEngine::Choice {
  Choice(int choice_idx, const GenerateRequest& asked, const Rng& rng)
      : text(asked.stop), sampler(asked.sampling, asked.prompt, rng) {
    piece.choice = choice_idx;
    if (asked.constraint != nullptr) cursor = asked.constraint->start();
  }

  TextStream text;
  Sampler sampler;
  std::unique_ptr<TokenCursor> cursor;  // null: any text
  Piece piece;                          // what has come since the last one was sent
  Sequence* sequence = nullptr;         // the scheduler's, while it is under way
  bool is_open = true;
};

struct BatchEngine::Request {
  RequestId id = 0;
  GenerateRequest asked;  // its prompt moves on to the queue
  OnPiece on_piece;
  std::vector<Choice> choices;
  int num_open = 0;
  int64_t prompt_tokens = 0, cached_tokens = 0, completion_tokens = 0;
};

BatchEngine::BatchEngine(ModelRunner& runner,
                         const data::Tokenizer& tokenizer,
                         const BatchOptions& options)
    : BatchEngine(runner, tokenizer, options, repeated_text_drafter(options.speculation)) {}

BatchEngine::BatchEngine(ModelRunner& runner,
                         const data::Tokenizer& tokenizer,
                         const BatchOptions& options,
                         std::unique_ptr<Drafter> drafter)
    : runner_(runner),
      tokenizer_(tokenizer),
      options_(options),
      context_length_(context_of(runner, options)),
      pool_(static_cast<int32_t>(runner.num_pages()), static_cast<int>(runner.page_tokens())),
      scheduler_(pool_, options.scheduler),
      drafter_(std::move(drafter)) {
  const int64_t num_decoded_max =
      std::max(options.scheduler.rows_max(), options.speculation.rows_max);
  PELAGO_ASSERT(std::max(options.scheduler.step_tokens, num_decoded_max + runner.page_tokens()) <=
                    runner.max_batch_tokens(),
                "a pass must fit into the runner's buffers");
  PELAGO_ASSERT(context_length_ > 1, "there is room for a prompt and a token");
}

BatchEngine::~BatchEngine() = default;

void BatchEngine::submit(RequestId id, GenerateRequest request, OnPiece on_piece) {
  auto entry = std::make_unique<Request>();
  const uint64_t seed =
      request.sampling.seed.value_or(Rng(options_.seed).fork("request", id).state());
  for (int idx = 0; idx < request.num_choices; ++idx) {
    entry->choices.emplace_back(idx, request, Rng(seed).fork("choice", static_cast<uint64_t>(idx)));
  }
  entry->id = id;
  entry->num_open = request.num_choices;
  entry->prompt_tokens = static_cast<int64_t>(request.prompt.size());
  entry->on_piece = std::move(on_piece);
  Waiting waiting = {.request = id,
                     .user = request.user,
                     .prompt = std::move(request.prompt),
                     .num_choices = request.num_choices};
  if (reader_ == nullptr || !reader_->offer(waiting)) scheduler_.add(std::move(waiting));
  entry->asked = std::move(request);
  requests_.emplace(id, std::move(entry));
}

BatchEngine::Request& BatchEngine::request_of(const Sequence& sequence) {
  return *requests_.at(sequence.request);
}

// Guesses for those that decode, the oldest first, as long as the pass stays narrow.
void BatchEngine::propose_drafts() {
  if (drafter_ == nullptr) return;
  std::vector<DraftTask> tasks;
  int num_free = options_.speculation.rows_max;
  for (const auto& sequence : scheduler_.running()) num_free -= sequence->is_decoding() ? 1 : 0;
  for (const auto& sequence : scheduler_.running()) {
    if (!sequence->is_decoding() || num_free <= 0) continue;
    Request& request = request_of(*sequence);
    const Choice& choice = request.choices[static_cast<size_t>(sequence->choice)];
    const int64_t num_new = sequence->num_tokens() - sequence->num_prompt;
    // The last token of an answer is drawn, never guessed.
    const int64_t num_useful =
        std::min(request.asked.max_new_tokens - num_new, context_length_ - sequence->num_tokens()) -
        1;
    const int num_wanted = static_cast<int>(std::min<int64_t>(
        sequence->pace.num_wanted(std::min(num_free, options_.speculation.draft_max)), num_useful));
    if (num_wanted < 1) continue;
    tasks.push_back(
        {.sequence = sequence.get(), .sampler = &choice.sampler, .num_wanted = num_wanted});
    num_free -= num_wanted;
  }
  if (!tasks.empty()) drafter_->propose(tasks);
}

void BatchEngine::read_with(std::unique_ptr<PromptReader> reader, std::function<void()> wake) {
  reader_ = std::move(reader);
  reader_->start(pool_, runner_, std::move(wake));
}

void BatchEngine::stop_reading() {
  if (reader_ != nullptr) reader_->stop();
}

void BatchEngine::take_read_prompts() {
  if (reader_ == nullptr) return;
  const int64_t page_tokens = pool_.page_tokens();
  // A page more: a shared one is replaced before it is given back.
  const PromptReader::Room room = {
      .num_pages_kept = (context_length_ + page_tokens - 1) / page_tokens + 1,
      .num_pages_waiting = scheduler_.num_waiting_pages(),
      .num_running = scheduler_.num_running()};
  for (Waiting& waiting : reader_->take_ready(room)) scheduler_.add(std::move(waiting));
}

bool BatchEngine::step() {
  take_read_prompts();
  propose_drafts();
  const StepPlan plan = scheduler_.plan_step();
  for (Sequence* sequence : plan.started) start(*sequence);
  if (plan.shares.empty()) return false;
  for (const PageCopy& copy : plan.copies) runner_.copy_page(copy.from, copy.to);
  chunks_.clear();
  for (const Share& share : plan.shares) {
    Sequence& sequence = *share.sequence;
    const auto begin = static_cast<size_t>(sequence.num_computed);
    if (share.is_first) {
      request_of(sequence).cached_tokens = sequence.num_cached;
      totals_.cached_tokens += static_cast<uint64_t>(sequence.num_cached);
    }
    // The draft stands behind the tokens for the pass, so that both are one run of memory.
    if (share.reaches_end) {
      sequence.tokens.insert(sequence.tokens.end(), sequence.draft.begin(), sequence.draft.end());
    }
    const size_t num_tokens = static_cast<size_t>(share.num_tokens) + sequence.draft.size();
    chunks_.push_back(
        {.tokens = std::span<const int32_t>(sequence.tokens).subspan(begin, num_tokens),
         .first_position = sequence.num_computed,
         .pages = sequence.pages.pages(),
         .wanted = !share.reaches_end       ? Wanted::kNothing
                   : sequence.draft.empty() ? Wanted::kLastLogits
                                            : Wanted::kAllLogits});
  }
  read_step(plan, runner_.forward(chunks_).logits);
  return true;
}

void BatchEngine::start(Sequence& sequence) {
  Request& request = request_of(sequence);
  request.choices.front().sequence = &sequence;
  totals_.prompt_tokens += static_cast<uint64_t>(request.prompt_tokens);
}

void BatchEngine::read_step(const StepPlan& plan, std::span<const float> logits) {
  const auto vocab_size = static_cast<size_t>(runner_.vocab_size());
  for (const Share& share : plan.shares) {
    Sequence& sequence = *share.sequence;
    sequence.num_computed += share.num_tokens;
    if (!share.reaches_end) {
      sequence.pages.remember(sequence.tokens, sequence.num_computed);
      continue;
    }
    sequence.tokens.resize(sequence.tokens.size() - sequence.draft.size());
    const size_t num_values = (sequence.draft.size() + 1) * vocab_size;
    draw_tokens(sequence, logits.first(num_values));
    logits = logits.subspan(num_values);
  }
}

void BatchEngine::draw_tokens(Sequence& sequence, std::span<const float> logits) {
  Request& request = request_of(sequence);
  const auto vocab_size = static_cast<size_t>(runner_.vocab_size());
  Choice& choice = request.choices[static_cast<size_t>(sequence.choice)];
  if (sequence.num_forks > 0) fork_choices(request, sequence, logits);
  const std::vector<int32_t> draft = std::exchange(sequence.draft, {});
  totals_.draft_tokens += draft.size();
  // A token is drawn as if nothing had been guessed. Where it is the guess, the next position's
  // logits are there already, and right; elsewhere what lies behind it is for nothing.
  size_t num_held = 0;
  while (true) {
    const auto values = logits.subspan(num_held * vocab_size, vocab_size);
    if (!accept(request, choice, sequence, values)) return;
    if (num_held == draft.size() || sequence.tokens.back() != draft[num_held]) break;
    ++num_held;
    ++sequence.num_computed;
    ++totals_.draft_accepted;
  }
  sequence.pace.note(static_cast<int64_t>(draft.size()), static_cast<int64_t>(num_held));
  sequence.pages.remember(sequence.tokens, sequence.num_computed);
  send(request, choice);
}

void BatchEngine::fork_choices(Request& request,
                               Sequence& sequence,
                               std::span<const float> logits) {
  for (Choice& choice : request.choices) {
    if (choice.sequence != nullptr || !choice.is_open) continue;
    Sequence& twin = scheduler_.fork(sequence, choice.piece.choice);
    choice.sequence = &twin;
    if (accept(request, choice, twin, logits)) send(request, choice);
  }
}

bool BatchEngine::accept(Request& request,
                         Choice& choice,
                         Sequence& sequence,
                         std::span<const float> row) {
  const GenerateRequest& asked = request.asked;
  const int64_t position = sequence.num_tokens() - sequence.num_prompt;
  const auto lose = [&](const std::string& reason) {
    finish(request, choice, Finish::kError, reason);
    return false;
  };
  TokenMask mask;
  if (choice.cursor != nullptr) {
    const Result<const TokenMask*> allowed = choice.cursor->allowed();
    if (!allowed) return lose(allowed.error().message);
    mask = **allowed;
    if (choice.cursor->may_end()) {
      for (const int32_t token : options_.end_tokens) allow(mask, token);
    }
    if (!allows_any(mask)) return lose("no token of the vocabulary goes on as the format asks");
  }
  const std::optional<int32_t> drawn =
      choice.sampler.draw(row, mask.empty() ? nullptr : &mask, position, scratch_);
  if (!drawn) return lose("the model gives no token that may come next a finite logit");
  const int32_t token = *drawn;
  sequence.tokens.push_back(token);
  choice.piece.tokens.push_back(token);
  choice.sampler.note(token);
  ++request.completion_tokens;
  ++totals_.completion_tokens;
  if (asked.num_logprobs >= 0) {
    choice.piece.logprobs.push_back(logprob_of(row, token, asked.num_logprobs));
  }
  const auto is_in = [&](const std::vector<int32_t>& tokens) {
    return std::ranges::find(tokens, token) != tokens.end();
  };
  bool has_ended = is_in(asked.stop_tokens) || (!asked.ignore_end && is_in(options_.end_tokens));
  if (!has_ended) {
    // A model may have more rows than its tokenizer has tokens: those stand for nothing.
    const bool has_text = token < tokenizer_.vocab_size();
    has_ended = has_text && choice.text.add(tokenizer_.token_bytes(token));
    if (choice.cursor != nullptr && !has_ended) {
      choice.cursor->advance(token);
      has_ended = choice.cursor->may_end() && !may_go_on(*choice.cursor);
    }
  }
  const bool is_full =
      position + 1 >= asked.max_new_tokens || sequence.num_tokens() >= context_length_;
  if (!has_ended && !is_full) return true;
  finish(request, choice, has_ended ? Finish::kStop : Finish::kLength, "");
  return false;
}

void BatchEngine::finish(Request& request,
                         Choice& choice,
                         Finish reason,
                         const std::string& error) {
  choice.is_open = false;
  --request.num_open;
  if (Sequence* sequence = std::exchange(choice.sequence, nullptr)) {
    sequence->pages.remember(sequence->tokens, sequence->num_computed);
    scheduler_.charge(request.asked.user, 2 * (sequence->num_tokens() - sequence->num_prompt));
    if (drafter_ != nullptr) drafter_->forget(*sequence);
    scheduler_.remove(*sequence);
  }
  choice.text.finish();
  choice.piece.finish = reason;
  choice.piece.error = error;
  const RequestId id = request.id;
  const bool is_last = request.num_open == 0;
  if (is_last) {
    ++(reason == Finish::kCancelled ? totals_.num_cancelled : totals_.num_finished);
    choice.piece.is_last = true;
    choice.piece.prompt_tokens = request.prompt_tokens;
    choice.piece.cached_tokens = request.cached_tokens;
    choice.piece.completion_tokens = request.completion_tokens;
  }
  send(request, choice);
  if (is_last) requests_.erase(id);
}

void BatchEngine::send(Request& request, Choice& choice) {
  Piece& piece = choice.piece;
  piece.text = choice.text.take();
  if (piece.text.empty() && piece.finish == Finish::kNotYet) return;
  request.on_piece(piece);
  piece.tokens.clear();
  piece.logprobs.clear();
}

void BatchEngine::cancel(RequestId id) {
  const auto found = requests_.find(id);
  if (found != requests_.end()) end_all_choices(*found->second, Finish::kCancelled, "");
}

void BatchEngine::end_all_choices(Request& request, Finish reason, const std::string& error) {
  if (!scheduler_.erase_waiting(request.id) && reader_ != nullptr) reader_->erase(request.id);
  int num_left = request.num_open;
  for (size_t idx = 0; num_left > 0; ++idx) {
    if (!request.choices[idx].is_open) continue;
    --num_left;
    finish(request, request.choices[idx], reason, error);
  }
}

void BatchEngine::end_all(Finish reason, const std::string& error) {
  while (!requests_.empty()) end_all_choices(*requests_.begin()->second, reason, error);
}

Result<std::vector<float>> BatchEngine::embed(const std::vector<int32_t>& input) {
  GenerateRequest request;
  request.prompt = input;
  if (const Status status = check(request); !status) return status.error();
  const auto num_tokens = static_cast<int64_t>(input.size());
  PageTable pages(pool_);
  std::vector<PageCopy> copies;
  if (!pages.grow(0, num_tokens, copies)) {
    return Error{ErrorCode::kNoSpace, "all pages are in use: try again later"};
  }
  std::vector<float> mean(static_cast<size_t>(runner_.hidden_size()));
  for (int64_t begin = 0; begin < num_tokens; begin += runner_.max_batch_tokens()) {
    const int64_t num_new = std::min(num_tokens - begin, runner_.max_batch_tokens());
    const SequenceChunk chunk = {.tokens = std::span(input).subspan(static_cast<size_t>(begin),
                                                                    static_cast<size_t>(num_new)),
                                 .first_position = begin,
                                 .pages = pages.pages(),
                                 .wanted = Wanted::kHiddenStates};
    const std::span<const float> hidden = runner_.forward(std::span(&chunk, 1)).hidden_states;
    for (size_t idx = 0; idx < hidden.size(); ++idx) mean[idx % mean.size()] += hidden[idx];
  }
  double squares = 0;
  for (const float value : mean) squares += static_cast<double>(value) * value;
  const auto scale = static_cast<float>(1 / std::max(std::sqrt(squares), 1e-30));
  for (float& value : mean) value *= scale;
  return mean;
}

int64_t BatchEngine::num_waiting_tokens() const {
  return scheduler_.num_waiting_tokens() + (reader_ != nullptr ? reader_->num_waiting_tokens() : 0);
}

EngineStats BatchEngine::stats() const {
  EngineStats stats = totals_;
  stats.num_running = scheduler_.num_running();
  stats.num_waiting = scheduler_.num_waiting() + (reader_ != nullptr ? reader_->num_waiting() : 0);
  stats.num_pages = pool_.num_pages();
  stats.num_pages_used = pool_.num_held();
  stats.num_pages_cached = pool_.num_idle();
  stats.num_preempted = scheduler_.num_preemptions();
  if (reader_ != nullptr) {
    stats.num_read_elsewhere = reader_->num_read();
    stats.num_prefill_sides = 1;
    stats.num_prefill_up = reader_->is_up() ? 1 : 0;
    stats.num_prefill_restarts = reader_->num_restarts();
  }
  return stats;
}

}  // namespace pelago::serve
