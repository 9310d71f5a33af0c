#include "serve/local/batch_engine.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "serve/grammar/token_constraint.h"
#include "serve/pages/page_table.h"

namespace pelago::serve {

namespace {

constexpr size_t kStopsMax = 64;        // each is looked for in every token's text
constexpr size_t kStopBytesMax = 1024;  // and as much of the text may be held back
constexpr int kLogprobsMax = 128;       // alternatives a token

int64_t context_of(const ModelRunner& runner, const BatchOptions& options) {
  const int64_t held = runner.num_pages() * runner.page_tokens();
  const int64_t wanted = options.context_tokens_max > 0 ? options.context_tokens_max : held;
  return std::min({held, wanted, runner.context_length()});
}

template <typename... Args>
Error refused(fmt::format_string<Args...> format, Args&&... args) {
  return {ErrorCode::kRefused, fmt::format(format, std::forward<Args>(args)...)};
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
    : runner_(runner),
      tokenizer_(tokenizer),
      options_(options),
      context_length_(context_of(runner, options)),
      pool_(static_cast<int32_t>(runner.num_pages()), static_cast<int>(runner.page_tokens())),
      scheduler_(pool_, options.scheduler) {
  PELAGO_ASSERT(
      options.scheduler.step_tokens <= runner.max_batch_tokens() &&
          options.scheduler.sequences_max + runner.page_tokens() <= runner.max_batch_tokens(),
      "a pass must fit into the runner's buffers");
  PELAGO_ASSERT(context_length_ > 1, "there is room for a prompt and a token");
}

BatchEngine::~BatchEngine() = default;

Status BatchEngine::check(const GenerateRequest& request) const {
  const auto num_prompt = static_cast<int64_t>(request.prompt.size());
  if (num_prompt < 1) return refused("the prompt has no tokens: give at least one");
  if (num_prompt >= context_length_) {
    return refused("the prompt has {} tokens, the context holds {}: shorten it by {} or more",
                   num_prompt,
                   context_length_,
                   num_prompt - context_length_ + 1);
  }
  for (const int32_t token : request.prompt) {
    if (token < 0 || token >= runner_.vocab_size()) {
      return refused("token {} is not in the vocabulary of {}", token, runner_.vocab_size());
    }
  }
  if (request.max_new_tokens < 1) {
    return refused("max_new_tokens is {}: it must be 1 or more", request.max_new_tokens);
  }
  if (request.num_choices < 1 || request.num_choices > options_.scheduler.sequences_max) {
    return refused("num_choices is {}: it must be between 1 and {}",
                   request.num_choices,
                   options_.scheduler.sequences_max);
  }
  if (request.num_logprobs > kLogprobsMax) {
    return refused("num_logprobs is {}: it must be at most {}", request.num_logprobs, kLogprobsMax);
  }
  if (request.stop.size() > kStopsMax) {
    return refused("{} stop strings: at most {}", request.stop.size(), kStopsMax);
  }
  for (const std::string& stop : request.stop) {
    if (stop.empty() || stop.size() > kStopBytesMax) {
      return refused("a stop string of {} bytes: it must have 1 to {}", stop.size(), kStopBytesMax);
    }
  }
  try {
    validate(request.sampling, runner_.vocab_size());
  } catch (const Failure& failure) {
    return Error{ErrorCode::kRefused, failure.what()};
  }
  return ok();
}

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
  scheduler_.add({.request = id,
                  .user = request.user,
                  .prompt = std::move(request.prompt),
                  .num_choices = request.num_choices});
  entry->asked = std::move(request);
  requests_.emplace(id, std::move(entry));
}

BatchEngine::Request& BatchEngine::request_of(const Sequence& sequence) {
  return *requests_.at(sequence.request);
}

bool BatchEngine::step() {
  const StepPlan plan = scheduler_.plan_step();
  for (Sequence* sequence : plan.started) start(*sequence);
  if (plan.shares.empty()) return false;
  for (const PageCopy& copy : plan.copies) runner_.copy_page(copy.from, copy.to);
  chunks_.clear();
  for (const Share& share : plan.shares) {
    Sequence& sequence = *share.sequence;
    const auto begin = static_cast<size_t>(sequence.num_computed);
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
  request.cached_tokens = sequence.num_computed;
  totals_.prompt_tokens += static_cast<uint64_t>(request.prompt_tokens);
  totals_.cached_tokens += static_cast<uint64_t>(request.cached_tokens);
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
  for (size_t row = 0; row <= draft.size(); ++row) {
    const auto values = logits.subspan(row * vocab_size, vocab_size);
    if (!accept(request, choice, sequence, values)) return;
    if (row == draft.size() || sequence.tokens.back() != draft[row]) break;
    ++sequence.num_computed;
    ++totals_.draft_accepted;
  }
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
  TokenMask mask;
  if (choice.cursor != nullptr) {
    mask = choice.cursor->allowed();
    if (choice.cursor->may_end()) {
      for (const int32_t token : options_.end_tokens) allow(mask, token);
    }
  }
  const std::optional<int32_t> drawn =
      choice.sampler.draw(row, mask.empty() ? nullptr : &mask, position, scratch_);
  if (!drawn) {
    finish(request,
           choice,
           Finish::kError,
           "the model gives no token that may come next a finite logit");
    return false;
  }
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
      has_ended = choice.cursor->may_end() && !allows_any(choice.cursor->allowed());
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
  scheduler_.erase_waiting(request.id);
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

EngineStats BatchEngine::stats() const {
  EngineStats stats = totals_;
  stats.num_running = scheduler_.num_running();
  stats.num_waiting = scheduler_.num_waiting();
  stats.num_pages = pool_.num_pages();
  stats.num_pages_used = pool_.num_held();
  stats.num_pages_cached = pool_.num_idle();
  stats.num_preempted = scheduler_.num_preemptions();
  return stats;
}

}  // namespace pelago::serve
